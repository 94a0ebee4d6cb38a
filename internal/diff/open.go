// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/layer"
	"hako/internal/registry"
)

// OpenRegistry returns the image that ref names in a registry.
func OpenRegistry(c *registry.Client, ref name.Reference) Blobs { return remote{c, ref} }

type remote struct {
	client *registry.Client
	ref    name.Reference
}

func (r remote) Root(ctx context.Context) ([]byte, string, error) {
	m, err := r.client.FetchManifest(ctx, r.ref)
	if err != nil {
		return nil, "", err
	}
	return m.Raw, m.MediaType, nil
}

func (r remote) Document(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	switch desc.MediaType {
	case ocispecs.MediaTypeImageManifest, ocispecs.MediaTypeImageIndex, image.DockerManifest, image.DockerManifestList:
		m, err := r.client.FetchManifest(ctx, r.ref.Context().Digest(desc.Digest.String()))
		if err != nil {
			return nil, err
		}
		return m.Raw, nil
	}
	return r.client.FetchBlob(ctx, r.ref.Context(), desc)
}

func (r remote) Layer(desc ocispecs.Descriptor) layer.Source {
	return registry.BlobSource{Client: r.client, Repo: r.ref.Context(), Descriptor: desc}
}

// A files opens a file of a layout, wherever that is.
type files func(name string) (io.ReadSeekCloser, error)

// OpenLayout returns the image in the OCI layout directory dir; ref is a tag, a
// full name or a digest in its index.json, or "" if there is one image only.
func OpenLayout(dir *os.Root, ref string) Blobs {
	return layout{ref: ref, open: func(name string) (io.ReadSeekCloser, error) { return dir.Open(name) }}
}

// OpenArchive returns the image in a tar of size bytes: an OCI layout, or what
// "docker save" writes. With ref it is the image of that name.
func OpenArchive(r io.ReaderAt, size int64, ref string) (Blobs, error) {
	entries, err := scanTar(r, size)
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	open := func(name string) (io.ReadSeekCloser, error) {
		e, ok := entries[name]
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return section{io.NewSectionReader(r, e.offset, e.size)}, nil
	}
	if _, ok := entries[ocispecs.ImageIndexFile]; ok {
		return layout{ref: ref, open: open}, nil
	}
	if _, ok := entries["manifest.json"]; ok {
		return newSaved(open, ref)
	}
	return nil, errors.New("read archive: it has neither an index.json nor a manifest.json")
}

type section struct{ *io.SectionReader }

func (section) Close() error { return nil }

type tarEntry struct{ offset, size int64 }

// scanTar finds the regular files of a tar.
func scanTar(r io.ReaderAt, size int64) (map[string]tarEntry, error) {
	s := io.NewSectionReader(r, 0, size)
	tr := tar.NewReader(s)
	entries := map[string]tarEntry{}
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		// The reader reads headers by the block and no further, so that s stands
		// where the content starts.
		offset, err := s.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if h.Size > size-offset {
			return nil, fmt.Errorf("%s: %w", h.Name, io.ErrUnexpectedEOF)
		}
		entries[path.Clean(h.Name)] = tarEntry{offset, h.Size}
	}
}

// A layout is an OCI image layout.
type layout struct {
	open files
	ref  string
}

func readAll(open files, name string) ([]byte, error) {
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > maxDocument {
		return nil, fmt.Errorf("read %s: larger than %d bytes", name, maxDocument)
	}
	return b, nil
}

func blobName(d digest.Digest) string {
	return path.Join(ocispecs.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// Root implements [Blobs]. If the index.json has one image, however often, that
// is what is meant; else it is an index of platforms, if it tells which.
func (l layout) Root(context.Context) ([]byte, string, error) {
	raw, err := readAll(l.open, ocispecs.ImageIndexFile)
	if err != nil {
		return nil, "", err
	}
	var x ocispecs.Index
	if err := json.Unmarshal(raw, &x); err != nil {
		return nil, "", fmt.Errorf("read %s: %w", ocispecs.ImageIndexFile, err)
	}
	var found []ocispecs.Descriptor
	for _, m := range x.Manifests {
		same := func(o ocispecs.Descriptor) bool { return o.Digest == m.Digest }
		if l.means(m) && !slices.ContainsFunc(found, same) {
			found = append(found, m)
		}
	}
	noPlatform := func(m ocispecs.Descriptor) bool { return m.Platform == nil }
	switch {
	case len(found) == 0:
		return nil, "", fmt.Errorf("the layout has no image %q: %w", l.ref, fs.ErrNotExist)
	case len(found) == 1:
		return l.root(found[0])
	case l.ref == "" && !slices.ContainsFunc(found, noPlatform):
		return raw, ocispecs.MediaTypeImageIndex, nil
	}
	return nil, "", fmt.Errorf("the layout has %d images: name one", len(found))
}

func (l layout) root(d ocispecs.Descriptor) ([]byte, string, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, "", fmt.Errorf("digest %q: %w", d.Digest, err)
	}
	raw, err := readAll(l.open, blobName(d.Digest))
	if err == nil && (d.Digest.Algorithm().FromBytes(raw) != d.Digest || int64(len(raw)) != d.Size) {
		err = fmt.Errorf("%s is not what index.json says it is", d.Digest)
	}
	return raw, d.MediaType, err
}

func (l layout) means(m ocispecs.Descriptor) bool {
	return l.ref == "" || l.ref == m.Digest.String() ||
		l.ref == m.Annotations[ocispecs.AnnotationRefName] || l.ref == m.Annotations["io.containerd.image.name"]
}

// Document implements [Blobs].
func (l layout) Document(_ context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	return readAll(l.open, blobName(desc.Digest))
}

// Layer implements [Blobs].
func (l layout) Layer(desc ocispecs.Descriptor) layer.Source {
	return fileSource{l.open, blobName(desc.Digest)}
}

// A fileSource is the blob in a file.
type fileSource struct {
	open files
	name string
}

// Open implements [layer.Source].
func (s fileSource) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	f, err := s.open(s.name)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
