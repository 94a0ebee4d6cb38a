// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/layer"
)

// A dirBackend is an OCI layout. It is used through a handle: where a command
// runs in place, paths lead elsewhere.
type dirBackend struct {
	path string
	root *os.Root
}

// InDirectory returns the backend that is an OCI layout at path. With make it is
// made if it is missing; else a missing one is an error.
func InDirectory(path string, create bool) (Backend, error) {
	if create {
		if err := os.MkdirAll(path, 0o777); err != nil {
			return nil, err
		}
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &dirBackend{path: path, root: root}, nil
}

const (
	blobsDir  = "blobs"
	lockFile  = ".lock"
	tmpPrefix = ".tmp-"
)

// DirectoryNames are the names in a directory that a cache in it writes to.
func DirectoryNames() []string {
	return []string{blobsDir, lockFile, ocispecs.ImageIndexFile, ocispecs.ImageLayoutFile}
}

func (b *dirBackend) Name() string   { return b.path }
func (b *dirBackend) Origin() string { return "" }
func (b *dirBackend) Close() error   { return b.root.Close() }

func blobPath(d digest.Digest) string {
	return path.Join(blobsDir, d.Algorithm().String(), d.Encoded())
}

// index reads the layout's index; a missing one is empty.
func (b *dirBackend) index() (ocispecs.Index, error) {
	x := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex}
	raw, err := b.root.ReadFile(ocispecs.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil
	}
	if err != nil {
		return x, err
	}
	if err := json.Unmarshal(raw, &x); err != nil {
		return x, errors.New(ocispecs.ImageIndexFile + " is not valid")
	}
	return x, nil
}

func (b *dirBackend) Load(_ context.Context, tag string) ([]byte, error) {
	x, err := b.index()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(x.Manifests, func(d ocispecs.Descriptor) bool { return d.Annotations[annotationTag] == tag })
	if i < 0 {
		return nil, fs.ErrNotExist
	}
	raw, err := b.read(x.Manifests[i])
	if err != nil {
		return nil, err
	}
	return documentOf(raw, b.read)
}

// read returns a small blob, compared with its digest.
func (b *dirBackend) read(d ocispecs.Descriptor) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, err
	}
	f, err := b.root.Open(blobPath(d.Digest))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, 4*maxPacked))
	if err == nil && digest.FromBytes(raw) != d.Digest {
		err = fmt.Errorf("blob %s: %w", d.Digest, layer.ErrDigestMismatch)
	}
	return raw, err
}

func (b *dirBackend) Update(ctx context.Context, tag string, change func([]byte) ([]byte, []ocispecs.Descriptor, error)) error {
	unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	old, err := b.Load(ctx, tag)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		old = nil // what cannot be read is replaced
	}
	doc, blobs, err := change(old)
	if err != nil {
		return err
	}
	config, raw, err := manifestFor(doc, blobs)
	if err != nil {
		return err
	}
	manifest := ocispecs.Descriptor{
		MediaType: ocispecs.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw)),
		Annotations: map[string]string{annotationTag: tag},
	}
	for _, x := range []struct {
		d digest.Digest
		b []byte
	}{{config.Digest, doc}, {manifest.Digest, raw}} {
		if err := b.write(blobPath(x.d), x.b); err != nil {
			return err
		}
	}
	return b.setTag(manifest)
}

// setTag puts the manifest into the index, in place of the one that had its tag.
func (b *dirBackend) setTag(manifest ocispecs.Descriptor) error {
	x, err := b.index()
	if err != nil {
		return err
	}
	tag := manifest.Annotations[annotationTag]
	x.Manifests = slices.DeleteFunc(x.Manifests, func(d ocispecs.Descriptor) bool { return d.Annotations[annotationTag] == tag })
	x.Manifests = append(x.Manifests, manifest)
	raw, err := json.Marshal(x)
	if err != nil {
		return err
	}
	layout, err := json.Marshal(ocispecs.ImageLayout{Version: ocispecs.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := b.write(ocispecs.ImageLayoutFile, layout); err != nil {
		return err
	}
	if err := b.write(ocispecs.ImageIndexFile, raw); err != nil {
		return err
	}
	b.sweep(x)
	return nil
}

// keepFor is how long a blob that nothing speaks of stays: a build that goes on
// may be about to.
const keepFor = 24 * time.Hour

// sweep removes blobs that no manifest needs. What cannot be read or removed stays.
func (b *dirBackend) sweep(x ocispecs.Index) {
	needed := map[string]bool{}
	for _, d := range x.Manifests {
		raw, err := b.read(d)
		var m ocispecs.Manifest
		if err != nil || json.Unmarshal(raw, &m) != nil {
			return
		}
		for _, k := range append(m.Layers, m.Config, d) {
			needed[k.Digest.Encoded()] = true
		}
	}
	b.sweepDir(path.Join(blobsDir, "sha256"), func(name string) bool { return !needed[name] })
	b.sweepDir(blobsDir, func(name string) bool { return strings.HasPrefix(name, tmpPrefix) })
}

// sweepDir removes old files of a directory.
func (b *dirBackend) sweepDir(name string, isGarbage func(name string) bool) {
	dir, err := b.root.Open(name)
	if err != nil {
		return
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err == nil && isGarbage(e.Name()) && time.Since(fi.ModTime()) > keepFor {
			_ = b.root.Remove(path.Join(name, e.Name()))
		}
	}
}

// write makes a file that is whole as soon as it is there.
func (b *dirBackend) write(name string, content []byte) error {
	return b.create(name, func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(content))
		return err
	})
}

func (b *dirBackend) create(name string, fill func(io.Writer) error) error {
	if err := b.root.MkdirAll(path.Dir(name), 0o777); err != nil {
		return err
	}
	if err := b.root.MkdirAll(blobsDir, 0o777); err != nil {
		return err
	}
	tmp := path.Join(blobsDir, tmpPrefix+rand.Text())
	f, err := b.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	err = errors.Join(fill(f), f.Close())
	if err == nil {
		err = b.root.Rename(tmp, name)
	}
	if err != nil {
		_ = b.root.Remove(tmp)
	}
	return err
}

func (b *dirBackend) Put(ctx context.Context, desc ocispecs.Descriptor, open func(context.Context, int64) (io.ReadCloser, error), _ string) error {
	p := blobPath(desc.Digest)
	if fi, err := b.root.Stat(p); err == nil && fi.Size() == desc.Size {
		now := time.Now()
		_ = b.root.Chtimes(p, now, now) // it is not garbage for a while
		return nil
	}
	rc, err := open(ctx, 0)
	if err != nil {
		return err
	}
	defer rc.Close()
	return b.create(p, func(w io.Writer) error {
		sum := sha256.New()
		n, err := io.Copy(io.MultiWriter(w, sum), rc)
		if err == nil && (n != desc.Size || digest.NewDigest(digest.SHA256, sum) != desc.Digest) {
			err = fmt.Errorf("blob %s: %w", desc.Digest, layer.ErrDigestMismatch)
		}
		return err
	})
}

func (b *dirBackend) Blob(desc ocispecs.Descriptor) layer.Source { return dirBlob{b, desc} }

type dirBlob struct {
	b    *dirBackend
	desc ocispecs.Descriptor
}

// Open implements layer.Source.
func (x dirBlob) Open(_ context.Context, offset int64) (io.ReadCloser, error) {
	f, err := x.b.root.Open(blobPath(x.desc.Digest))
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func bytesReader(b []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }
