// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"hako/internal/image"
	"hako/internal/layer"
)

// A Holder has one image, of one or more platforms, lying in a layout or an
// archive. What it returns is verified by the caller.
type Holder interface {
	// Root returns what the image's name stands for: a manifest or an index.
	Root(ctx context.Context) (raw []byte, mediaType string, err error)
	// Document returns a manifest, an index or a config.
	Document(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error)
	// Layer returns where to read a layer's blob.
	Layer(desc ocispecs.Descriptor) layer.Source
}

// maxStoredDepth limits indexes within indexes.
const maxStoredDepth = 4

// A Stored is a finished image that is pushed byte for byte as it lies there:
// nothing is compressed or made anew, so that the digest stays.
type Stored struct {
	Root image.Document

	from      Holder
	manifests []image.Document // below the root, what is pointed to first
	blobs     []blob
	layers    []digest.Digest
	seen      map[digest.Digest]bool
}

// ReadStored reads all documents of an image and verifies them. Layers are read
// and verified when they are pushed.
func ReadStored(ctx context.Context, from Holder) (*Stored, error) {
	s := &Stored{from: from, seen: map[digest.Digest]bool{}}
	raw, mediaType, err := from.Root(ctx)
	if err != nil {
		return nil, err
	}
	s.Root = image.Document{
		Desc: ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, Data: raw,
	}
	return s, s.read(ctx, s.Root, 0)
}

// Layers returns the layers' digests, once each.
func (s *Stored) Layers() []digest.Digest { return s.layers }

// read notes what a manifest or index points to.
func (s *Stored) read(ctx context.Context, d image.Document, depth int) error {
	switch d.Desc.MediaType {
	case ocispecs.MediaTypeImageManifest, image.DockerManifest:
		return s.readManifest(ctx, d)
	case ocispecs.MediaTypeImageIndex, image.DockerManifestList:
	default:
		return fmt.Errorf("%s has the media type %q, which is no image's", d.Desc.Digest, d.Desc.MediaType)
	}
	if depth == maxStoredDepth {
		return errors.New("too many indexes within indexes")
	}
	var x ocispecs.Index
	if err := json.Unmarshal(d.Data, &x); err != nil {
		return fmt.Errorf("index %s: %w", d.Desc.Digest, err)
	}
	if len(x.Manifests) == 0 {
		return fmt.Errorf("index %s lists no image", d.Desc.Digest)
	}
	for _, desc := range x.Manifests {
		if s.seen[desc.Digest] {
			continue
		}
		s.seen[desc.Digest] = true
		raw, err := s.document(ctx, desc)
		if err != nil {
			return err
		}
		child := image.Document{Desc: desc, Data: raw}
		if err := s.read(ctx, child, depth+1); err != nil {
			return err
		}
		s.manifests = append(s.manifests, child)
	}
	return nil
}

func (s *Stored) readManifest(ctx context.Context, d image.Document) error {
	var m ocispecs.Manifest
	if err := json.Unmarshal(d.Data, &m); err != nil {
		return fmt.Errorf("manifest %s: %w", d.Desc.Digest, err)
	}
	for _, l := range m.Layers {
		if err := l.Digest.Validate(); err != nil {
			return fmt.Errorf("manifest %s: digest %q: %w", d.Desc.Digest, l.Digest, err)
		}
		if isForeign(l) || s.seen[l.Digest] {
			continue
		}
		s.seen[l.Digest] = true
		s.layers = append(s.layers, l.Digest)
		s.blobs = append(s.blobs, s.layer(l))
	}
	if s.seen[m.Config.Digest] {
		return nil
	}
	s.seen[m.Config.Digest] = true
	raw, err := s.document(ctx, m.Config)
	if err != nil {
		return fmt.Errorf("manifest %s: config: %w", d.Desc.Digest, err)
	}
	s.blobs = append(s.blobs, documentBlob(image.Document{Desc: m.Config, Data: raw}))
	return nil
}

// document returns a document that is what its descriptor says.
func (s *Stored) document(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w", desc.Digest, err)
	}
	raw, err := s.from.Document(ctx, desc)
	switch {
	case err != nil:
		return nil, err
	case desc.Digest.Algorithm().FromBytes(raw) != desc.Digest, int64(len(raw)) != desc.Size:
		return nil, fmt.Errorf("%s is not the %d bytes that its descriptor promises", desc.Digest, desc.Size)
	}
	return raw, nil
}

func (s *Stored) layer(desc ocispecs.Descriptor) blob {
	src := s.from.Layer(desc)
	return blob{desc: desc, open: func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		r, err := src.Open(ctx, offset)
		if err != nil || offset != 0 {
			return r, err
		}
		return layer.Verify(r, desc), nil
	}}
}

// PushParts sends all that has to be there before the tags are set.
func (s *Stored) PushParts(ctx context.Context, p Pusher, tags []name.Tag) error {
	repos := repositories(tags)
	g, gctx := errgroup.WithContext(ctx)
	for _, same := range byRegistry(repos) {
		g.Go(func() error { return pushBlobs(gctx, p, same, s.blobs) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, repo := range repos {
		for _, m := range s.manifests {
			if err := pushManifest(ctx, p, repo, m); err != nil {
				return err
			}
		}
	}
	return nil
}

// PushTags sets the tags, once PushParts has sent what they stand for. It
// returns those that were set.
func (s *Stored) PushTags(ctx context.Context, p Pusher, tags []name.Tag) ([]name.Tag, error) {
	return pushTags(ctx, p, s.Root, tags)
}
