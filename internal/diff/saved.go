// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/layer"
)

// A saved is the image of an archive as "docker save" used to write it: with a
// config and layers, and no manifest. The manifest is made up of them.
type saved struct {
	open     files
	manifest []byte
	config   []byte
	layers   map[digest.Digest]string // where the blob is
}

// newSaved reads the manifest.json of such an archive, whose layers are found by
// name and hashed, since nothing else says what they are.
func newSaved(open files, ref string) (*saved, error) {
	s := &saved{open: open, layers: map[digest.Digest]string{}}
	if err := s.read(ref); err != nil {
		return nil, fmt.Errorf("read docker archive: %w", err)
	}
	return s, nil
}

func (s *saved) read(ref string) error {
	raw, err := readAll(s.open, "manifest.json")
	if err != nil {
		return err
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return fmt.Errorf("manifest.json: %w", err)
	}
	at := -1
	for i, e := range list {
		if ref != "" && !slices.Contains(e.RepoTags, ref) {
			continue
		}
		if at >= 0 {
			return fmt.Errorf("it has %d images: name one", len(list))
		}
		at = i
	}
	if at < 0 {
		return fmt.Errorf("it has no image %q", ref)
	}
	if s.config, err = readAll(s.open, path.Clean(list[at].Config)); err != nil {
		return err
	}
	var descs []ocispecs.Descriptor
	for _, l := range list[at].Layers {
		d, err := s.describe(path.Clean(l))
		if err != nil {
			return err
		}
		descs = append(descs, d)
		s.layers[d.Digest] = path.Clean(l)
	}
	m, err := image.NewManifest(image.NewConfig(s.config, true), descs, nil, true)
	s.manifest = m.Data
	return err
}

// describe reads a layer once to learn its digest.
func (s *saved) describe(name string) (ocispecs.Descriptor, error) {
	f, err := s.open(name)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	defer f.Close()
	magic := make([]byte, 4)
	n, err := io.ReadFull(f, magic)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return ocispecs.Descriptor{}, err
	}
	magic = magic[:n]
	h := digest.SHA256.Hash()
	_, _ = h.Write(magic)
	rest, err := io.Copy(h, f)
	if err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("read %s: %w", name, err)
	}
	mt := image.DockerLayer
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		mt = image.DockerLayerGzip
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		mt = image.DockerLayerZstd
	}
	return ocispecs.Descriptor{MediaType: mt, Digest: digest.NewDigest(digest.SHA256, h), Size: int64(n) + rest}, nil
}

// Root implements [Blobs].
func (s *saved) Root(context.Context) ([]byte, string, error) {
	return s.manifest, image.DockerManifest, nil
}

// Document implements [Blobs].
func (s *saved) Document(context.Context, ocispecs.Descriptor) ([]byte, error) { return s.config, nil }

// Layer implements [Blobs].
func (s *saved) Layer(desc ocispecs.Descriptor) layer.Source {
	return fileSource{s.open, s.layers[desc.Digest]}
}
