// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/layer"
	"hako/internal/store"
)

const (
	// maxDocument bounds what is read into memory: indexes, manifests, configs.
	maxDocument = 8 << 20
	maxDepth    = 4 // of indexes in indexes
)

// An Image is an image to be compared, of one or more platforms.
type Image struct {
	Name        string // for errors
	MediaType   string
	Digest      digest.Digest
	Annotations map[string]string // of the index
	Manifests   []Manifest
	// Others counts what an index has besides images, like attestations.
	Others int
}

// A Manifest is the image of one platform.
type Manifest struct {
	Name       string // of the platform; what follows a # tells equal ones apart
	Descriptor ocispecs.Descriptor
	Manifest   ocispecs.Manifest
	Config     []byte
	Ref        *layer.Ref
}

// Blobs gives access to an image where it lies. What it returns is verified by
// the caller.
type Blobs interface {
	// Root returns what the image's name stands for: a manifest or an index.
	Root(ctx context.Context) (raw []byte, mediaType string, err error)
	// Document returns a manifest, an index or a config.
	Document(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error)
	// Layer returns where to read a layer's blob.
	Layer(desc ocispecs.Descriptor) layer.Source
}

// A loader reads an image's documents.
type loader struct {
	blobs   Blobs
	scratch string
	image   *Image
}

// Load reads the image that blobs leads to. Layers are read when they are
// compared; they and their indexes are kept in a new directory below scratch, which
// the caller removes.
func Load(ctx context.Context, name string, blobs Blobs, scratch string) (*Image, error) {
	dir, err := os.MkdirTemp(scratch, "image-")
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	l := &loader{blobs: blobs, scratch: dir, image: &Image{Name: name}}
	raw, mediaType, err := blobs.Root(ctx)
	if err == nil {
		l.image.Digest = digest.FromBytes(raw)
		l.image.MediaType = mediaType
		err = l.document(ctx, ocispecs.Descriptor{MediaType: mediaType, Digest: l.image.Digest, Size: int64(len(raw))}, raw, 0)
	}
	if err == nil && len(l.image.Manifests) == 0 {
		err = errors.New("there is no image in it")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return l.image, nil
}

// document reads a manifest or an index.
func (l *loader) document(ctx context.Context, desc ocispecs.Descriptor, raw []byte, depth int) error {
	switch desc.MediaType {
	case ocispecs.MediaTypeImageManifest, image.DockerManifest:
		return l.manifest(ctx, desc, raw)
	case ocispecs.MediaTypeImageIndex, image.DockerManifestList:
	default:
		return fmt.Errorf("%s has the media type %q, which is no image's", desc.Digest, desc.MediaType)
	}
	if depth == maxDepth {
		return errors.New("too many indexes within indexes")
	}
	var x ocispecs.Index
	if err := json.Unmarshal(raw, &x); err != nil {
		return fmt.Errorf("index %s: %w", desc.Digest, err)
	}
	if depth == 0 {
		l.image.Annotations = x.Annotations
	}
	for _, d := range x.Manifests {
		if d.Annotations["vnd.docker.reference.type"] != "" || d.Platform != nil && d.Platform.OS == "unknown" {
			l.image.Others++
			continue
		}
		child, err := l.verified(ctx, d)
		if err != nil {
			return err
		}
		if err := l.document(ctx, d, child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// verified returns a document that is what its descriptor says.
func (l *loader) verified(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w", desc.Digest, err)
	}
	raw, err := l.blobs.Document(ctx, desc)
	if err != nil {
		return nil, err
	}
	if got := desc.Digest.Algorithm().FromBytes(raw); got != desc.Digest {
		return nil, fmt.Errorf("%s has the digest %s", desc.Digest, got)
	}
	if int64(len(raw)) != desc.Size {
		return nil, fmt.Errorf("%s has %d bytes, its descriptor says %d", desc.Digest, len(raw), desc.Size)
	}
	return raw, nil
}

func (l *loader) manifest(ctx context.Context, desc ocispecs.Descriptor, raw []byte) error {
	m := Manifest{Descriptor: desc}
	if err := json.Unmarshal(raw, &m.Manifest); err != nil {
		return fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	var err error
	if m.Config, err = l.verified(ctx, m.Manifest.Config); err != nil {
		return fmt.Errorf("manifest %s: config: %w", desc.Digest, err)
	}
	var config ocispecs.Image
	if err := json.Unmarshal(m.Config, &config); err != nil {
		return fmt.Errorf("config %s: %w", m.Manifest.Config.Digest, err)
	}
	if m.Ref, err = l.layers(m.Manifest.Layers, config.RootFS.DiffIDs); err != nil {
		return fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	p := config.Platform
	if desc.Platform != nil {
		p = *desc.Platform
	}
	name := platforms.FormatAll(platforms.Normalize(p))
	m.Name = name
	for n := 2; indexOf(l.image.Manifests, m.Name) >= 0; n++ {
		m.Name = name + "#" + strconv.Itoa(n)
	}
	l.image.Manifests = append(l.image.Manifests, m)
	return nil
}

func (l *loader) layers(descs []ocispecs.Descriptor, diffIDs []digest.Digest) (*layer.Ref, error) {
	if len(descs) != len(diffIDs) {
		return nil, fmt.Errorf("it has %d layers, its config %d", len(descs), len(diffIDs))
	}
	ref := &layer.Ref{}
	for i, d := range descs {
		if err := errors.Join(d.Digest.Validate(), diffIDs[i].Validate()); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		// A store of its own for each blob of each image: an index is known by its
		// diffID, and a diffID that one blob was found to have proves nothing of
		// another blob that only claims it; nor does a good copy of a blob in one
		// image of the copy in the other.
		st, err := store.Open(filepath.Join(l.scratch, d.Digest.Encoded()+"-"+strconv.FormatInt(d.Size, 10)))
		if err != nil {
			return nil, err
		}
		ref.Layers = append(ref.Layers, layer.New(st, image.DiffID(diffIDs[i]), d, l.blobs.Layer(d)))
	}
	return ref, nil
}
