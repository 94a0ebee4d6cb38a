// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/layer"
	"hako/internal/registry"
)

// Media types of what is in a registry or layout: a manifest whose config is the
// document, and whose layers are the blobs that records speak of, so that no
// registry takes them for garbage.
const (
	artifactType  = "application/vnd.hako.cache.v1"
	mediaTypeDoc  = "application/vnd.hako.cache.document.v1+zstd"
	annotationTag = ocispecs.AnnotationRefName
)

// manifestFor returns the manifest of a document. The document is in it, so that
// one request answers everything.
func manifestFor(doc []byte, blobs []ocispecs.Descriptor) (ocispecs.Descriptor, []byte, error) {
	config := ocispecs.Descriptor{MediaType: mediaTypeDoc, Digest: digest.FromBytes(doc), Size: int64(len(doc))}
	m := ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest, ArtifactType: artifactType,
		Config: config, Layers: blobs,
	}
	m.Config.Data = doc
	if m.Layers == nil {
		m.Layers = []ocispecs.Descriptor{}
	}
	raw, err := json.Marshal(m)
	return config, raw, err
}

// documentOf returns the document in a manifest; fetch gets it if it is not there.
func documentOf(raw []byte, fetch func(ocispecs.Descriptor) ([]byte, error)) ([]byte, error) {
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil || m.Config.MediaType != mediaTypeDoc {
		return nil, errOther
	}
	if len(m.Config.Data) > 0 && digest.FromBytes(m.Config.Data) == m.Config.Digest {
		return m.Config.Data, nil
	}
	if m.Config.Size > 2*maxPacked {
		return nil, errors.New("its document is too big")
	}
	return fetch(m.Config)
}

// A Repository says where in registries a cache is.
type Repository struct {
	Client *registry.Client
	Repo   name.Repository
	// Tag is that of the document, instead of the cache's own.
	Tag string
	// Else is used if the registry takes nothing into Repo, as those do that have no
	// nested repositories. With it Repo is a guess, and may well not exist.
	Else *name.Repository
}

// A registryBackend is a repository.
type registryBackend struct {
	Repository

	mu   sync.Mutex
	repo name.Repository
}

// InRegistry returns the backend that is a repository.
func InRegistry(r Repository) Backend { return &registryBackend{Repository: r, repo: r.Repo} }

func (b *registryBackend) Name() string   { return b.current().Name() }
func (b *registryBackend) Origin() string { return b.current().Name() }
func (b *registryBackend) Close() error   { return nil }

func (b *registryBackend) current() name.Repository {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.repo
}

// elsewhere runs f for the repository, and once more for the other one if the
// registry refuses the first.
func (b *registryBackend) elsewhere(refuses func(error) bool, f func(name.Repository) error) error {
	repo := b.current()
	err := f(repo)
	if err == nil || b.Else == nil || !refuses(err) || repo.Name() == b.Else.Name() {
		return err
	}
	if err := f(*b.Else); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.repo = *b.Else
	return nil
}

// isRefusal tells whether a registry does not want to know of a repository. Some
// say of one that does not exist that nobody may see it.
func isRefusal(err error) bool {
	e, ok := errors.AsType[*registry.Error](err)
	if !ok {
		return false
	}
	switch e.Status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
		return true
	}
	return false
}

func isMissing(err error) bool {
	e, ok := errors.AsType[*registry.Error](err)
	return ok && e.Status == http.StatusNotFound
}

var errOther = errors.New("the tag is something else than a cache of hako")

// Load looks under the tag that was given, and if an image is there under the
// cache's own: a cache may be beside the image it was made with.
func (b *registryBackend) Load(ctx context.Context, tag string) (doc []byte, err error) {
	err = b.elsewhere(isRefusal, func(repo name.Repository) (err error) {
		if b.Tag == "" {
			doc, err = b.load(ctx, repo, tag)
			return err
		}
		if doc, err = b.load(ctx, repo, b.Tag); errors.Is(err, errOther) {
			doc, err = b.load(ctx, repo, tag)
		}
		return err
	})
	if err != nil && (isMissing(err) || b.Else != nil && isRefusal(err)) {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return doc, err
}

func (b *registryBackend) load(ctx context.Context, repo name.Repository, tag string) ([]byte, error) {
	m, err := b.Client.FetchManifest(ctx, repo.Tag(tag))
	if err != nil {
		return nil, err
	}
	return documentOf(m.Raw, func(d ocispecs.Descriptor) ([]byte, error) { return b.Client.FetchBlob(ctx, repo, d) })
}

func (b *registryBackend) Update(ctx context.Context, tag string, change func([]byte) ([]byte, []ocispecs.Descriptor, error)) error {
	if b.Tag != "" {
		tag = b.Tag
	}
	repo := b.current()
	old, err := b.load(ctx, repo, tag)
	if err != nil && !isMissing(err) && !errors.Is(err, errOther) {
		return err
	}
	doc, blobs, err := change(old)
	if err != nil {
		return err
	}
	config, raw, err := manifestFor(doc, blobs)
	if err != nil {
		return err
	}
	open := func(context.Context, int64) (io.ReadCloser, error) { return bytesReader(doc), nil }
	if _, err := b.Client.PushBlob(ctx, repo, config, open, nil); err != nil {
		return err
	}
	return b.Client.PushManifest(ctx, repo.Tag(tag), ocispecs.MediaTypeImageManifest, raw)
}

func (b *registryBackend) Put(ctx context.Context, desc ocispecs.Descriptor, open func(context.Context, int64) (io.ReadCloser, error), origin string) error {
	var from []name.Repository
	if r, err := name.NewRepository(origin); origin != "" && err == nil {
		from = append(from, r)
	}
	return b.elsewhere(isRefusal, func(repo name.Repository) error {
		_, err := b.Client.PushBlob(ctx, repo, desc, open, from)
		return err
	})
}

func (b *registryBackend) Blob(desc ocispecs.Descriptor) layer.Source {
	return registry.BlobSource{Client: b.Client, Repo: b.current(), Descriptor: desc}
}
