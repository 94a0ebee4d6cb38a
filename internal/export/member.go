// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/platforms"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/registry"
)

// A Library holds images that exist already: a [Repository], or an OCI layout.
// It is safe for concurrent use.
type Library interface {
	// Manifest returns a manifest or an index, compared with its digest.
	Manifest(ctx context.Context, d digest.Digest) (mediaType string, raw []byte, err error)
	// OpenBlob opens a blob's bytes from offset on.
	OpenBlob(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error)
}

// A Repository is the [Library] of one repository in a registry.
type Repository struct {
	Client *registry.Client
	Repo   name.Repository
}

// Manifest implements [Library].
func (r Repository) Manifest(ctx context.Context, d digest.Digest) (mediaType string, raw []byte, err error) {
	m, err := r.Client.FetchManifest(ctx, r.Repo.Digest(d.String()))
	if err != nil {
		return "", nil, err
	}
	return m.MediaType, m.Raw, nil
}

// OpenBlob implements [Library].
func (r Repository) OpenBlob(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	return r.Client.OpenBlob(ctx, r.Repo, desc, offset)
}

// A Member is an image that exists already and is to be listed in an index.
type Member struct {
	// Desc is the entry of the index; it has a platform.
	Desc ocispecs.Descriptor
	// Annotations are those of the manifest itself.
	Annotations map[string]string

	raw   []byte
	blobs []ocispecs.Descriptor // config and layers that lie in a registry
	from  Library
}

// Members reads what the digest d stands for: an image, or all the images of
// an index, whose entries are taken over as they are.
func Members(ctx context.Context, from Library, d digest.Digest) ([]Member, error) {
	mediaType, raw, err := from.Manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	if !isIndex(mediaType) {
		m, err := newMember(ctx, from, ocispecs.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(raw))}, raw)
		return []Member{m}, err
	}
	var x ocispecs.Index
	if err := json.Unmarshal(raw, &x); err != nil {
		return nil, fmt.Errorf("read index %s: %w", d, err)
	}
	if len(x.Manifests) == 0 {
		return nil, fmt.Errorf("index %s lists no image", d)
	}
	members := make([]Member, 0, len(x.Manifests))
	for _, desc := range x.Manifests {
		m, err := listedMember(ctx, from, desc)
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", d, err)
		}
		members = append(members, m)
	}
	return members, nil
}

// listedMember reads an image that an index lists, and holds it to its entry.
func listedMember(ctx context.Context, from Library, desc ocispecs.Descriptor) (Member, error) {
	if err := desc.Digest.Validate(); err != nil {
		return Member{}, fmt.Errorf("entry %q: %w", desc.Digest, err)
	}
	mediaType, raw, err := from.Manifest(ctx, desc.Digest)
	switch {
	case err != nil:
		return Member{}, err
	case isIndex(mediaType):
		return Member{}, fmt.Errorf("%s is an index in an index, which is not supported: name its images", desc.Digest)
	case desc.Size != int64(len(raw)), desc.MediaType != "" && desc.MediaType != mediaType:
		return Member{}, fmt.Errorf("%s is not the %s of %d bytes that the index lists", desc.Digest, desc.MediaType, desc.Size)
	}
	desc.MediaType = mediaType
	return newMember(ctx, from, desc, raw)
}

func newMember(ctx context.Context, from Library, desc ocispecs.Descriptor, raw []byte) (Member, error) {
	m := Member{Desc: desc, raw: raw, from: from}
	var doc ocispecs.Manifest
	if err := json.Unmarshal(raw, &doc); err != nil {
		return m, fmt.Errorf("read manifest %s: %w", desc.Digest, err)
	}
	m.Annotations = doc.Annotations
	for _, b := range append([]ocispecs.Descriptor{doc.Config}, doc.Layers...) {
		if err := b.Digest.Validate(); err != nil {
			return m, fmt.Errorf("read manifest %s: digest %q: %w", desc.Digest, b.Digest, err)
		}
		if !isForeign(b) {
			m.blobs = append(m.blobs, b)
		}
	}
	if desc.Platform != nil {
		return m, nil
	}
	p, err := platformOf(ctx, from, doc.Config)
	m.Desc.Platform = p
	if err != nil {
		return m, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	return m, nil
}

// maxConfig is the size of a config that is read to learn its platform.
const maxConfig = 8 << 20

// platformOf reads the platform in an image's config.
func platformOf(ctx context.Context, from Library, desc ocispecs.Descriptor) (*ocispecs.Platform, error) {
	if desc.Size > maxConfig {
		return nil, fmt.Errorf("config %s has %d bytes, more than the limit of %d", desc.Digest, desc.Size, maxConfig)
	}
	r, err := from.OpenBlob(ctx, desc, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("read config %s: %w", desc.Digest, err)
	}
	if got := desc.Digest.Algorithm().FromBytes(data); got != desc.Digest {
		return nil, fmt.Errorf("config %s has the digest %s", desc.Digest, got)
	}
	var p ocispecs.Platform
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("read config %s: %w", desc.Digest, err)
	}
	if p.OS == "" || p.Architecture == "" {
		return nil, errors.New("its config names no platform, so it has no place in an index")
	}
	p = platforms.Normalize(p)
	return &p, nil
}

// isForeign tells whether a layer's bytes lie elsewhere than in registries.
func isForeign(d ocispecs.Descriptor) bool {
	return len(d.URLs) > 0 && (strings.Contains(d.MediaType, ".nondistributable.") || strings.Contains(d.MediaType, ".foreign."))
}

func isIndex(mediaType string) bool {
	return mediaType == ocispecs.MediaTypeImageIndex || mediaType == image.DockerManifestList
}

// isAttestation tells what BuildKit lists beside images without being one.
func isAttestation(d ocispecs.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != "" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}
