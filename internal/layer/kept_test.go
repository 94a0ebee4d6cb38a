// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/layer"
	"hako/internal/store"
)

// A counted is a source that counts what is read of it.
type counted struct {
	blob

	opened atomic.Int32
	read   atomic.Int64
}

func (c *counted) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	c.opened.Add(1)
	rc, err := c.blob.Open(ctx, off)
	return &countedReader{rc, c}, err
}

type countedReader struct {
	io.ReadCloser
	c *counted
}

func (r *countedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.c.read.Add(int64(n))
	return n, err
}

func depot(t *testing.T, dir string) *store.Depot {
	t.Helper()
	d, err := store.OpenDepot(dir, store.DepotOptions{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// zippedLayer is a layer with a file of a megabyte that does not compress.
func zippedLayer(t *testing.T) (plain, zipped []byte) {
	t.Helper()
	noise := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(noise)
	plain = tarOf(t, member{tar.Header{Name: "big", Mode: 0o644}, string(noise)}, member{tar.Header{Name: "last", Mode: 0o600}, "last"})
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return plain, b.Bytes()
}

func keptLayer(t *testing.T, d *store.Depot, plain []byte, src *counted) *layer.Layer {
	t.Helper()
	desc := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromBytes(src.blob), Size: int64(len(src.blob))}
	return layer.NewKept(layer.New(open(t), image.DiffID(digest.FromBytes(plain)), desc, src), d)
}

// The first build fetches a layer once, and keeps it and its index; the second
// fetches nothing, whatever it reads.
func TestKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain, zipped := zippedLayer(t)
	src := &counted{blob: zipped}
	d := depot(t, dir)
	first := keptLayer(t, d, plain, src)
	want := list(t, &layer.Ref{Layers: []*layer.Layer{first}})
	if n := src.read.Load(); n != int64(len(zipped)) {
		t.Errorf("%d bytes were fetched of %d", n, len(zipped))
	}
	if !first.Local() {
		t.Error("the blob is not on this disk")
	}
	if err := first.KeepIndex(t.Context(), d); err != nil {
		t.Fatal(err)
	}

	none := &counted{blob: zipped}
	second := keptLayer(t, depot(t, dir), plain, none)
	if !second.HasIndex() || !second.Local() {
		t.Error("the second build knows nothing of the layer")
	}
	if got := list(t, &layer.Ref{Layers: []*layer.Layer{second}}); got != want {
		t.Error("the trees differ")
	}
	if n := none.opened.Load(); n != 0 {
		t.Errorf("the second build opened the blob %d times", n)
	}
}

// Wherever a kept blob is broken, its bytes come from the registry, and are the
// right ones; what is broken is replaced by whoever reads all of it.
func TestKeptBroken(t *testing.T) {
	t.Parallel()
	plain, zipped := zippedLayer(t)
	for name, spoil := range map[string]func(p string) error{
		"at the start": flip(10),
		"later":        flip(700_000),
		"cut off":      func(p string) error { return os.Truncate(p, 500_000) },
		"gone":         os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if _, err := io.Copy(io.Discard, must(keptLayer(t, depot(t, dir), plain, &counted{blob: zipped}).Open(t.Context()))); err != nil {
				t.Fatal(err)
			}
			if err := spoil(filepath.Join(dir, store.DepotDir, "blobs/sha256", digest.FromBytes(zipped).Encoded())); err != nil {
				t.Fatal(err)
			}
			src := &counted{blob: zipped}
			l := keptLayer(t, depot(t, dir), plain, src)
			got := list(t, &layer.Ref{Layers: []*layer.Layer{l}})
			if !strings.HasSuffix(got, "last=last\n") {
				t.Error("the tree is not the layer's")
			}
			if src.read.Load() == 0 {
				t.Error("nothing was fetched")
			}
			// Now, or the next time, it is whole again.
			again := &counted{blob: zipped}
			for range 2 {
				if _, err := io.Copy(io.Discard, must(keptLayer(t, depot(t, dir), plain, again).Open(t.Context()))); err != nil {
					t.Fatal(err)
				}
			}
			if n := again.opened.Load(); n > 1 {
				t.Errorf("the blob was fetched %d times more", n)
			}
		})
	}
}

// An index that is broken is made anew.
func TestKeptIndexBroken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain, zipped := zippedLayer(t)
	d := depot(t, dir)
	first := keptLayer(t, d, plain, &counted{blob: zipped})
	want := list(t, &layer.Ref{Layers: []*layer.Layer{first}})
	if err := first.KeepIndex(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dir, store.DepotDir, "index", layer.IndexFormat, "sha256", first.DiffID().Digest().Encoded())
	if err := flip(60)(p); err != nil {
		t.Fatal(err)
	}
	none := &counted{blob: zipped}
	second := keptLayer(t, depot(t, dir), plain, none)
	if got := list(t, &layer.Ref{Layers: []*layer.Layer{second}}); got != want {
		t.Error("the trees differ")
	}
	if n := none.opened.Load(); n != 0 {
		t.Errorf("the blob was fetched %d times", n)
	}
}

// A source that lies is found out, and what it said is not kept.
func TestKeptWrongBytes(t *testing.T) {
	t.Parallel()
	plain, zipped := zippedLayer(t)
	d := depot(t, t.TempDir())
	src := &counted{blob: bytes.Clone(zipped)}
	l := keptLayer(t, d, plain, src)
	src.blob[500] ^= 1
	if err := l.Index(t.Context()); err == nil {
		t.Error("wrong bytes were taken")
	}
	if d.Has(l.Descriptor().Digest, l.Descriptor().Size) {
		t.Error("wrong bytes were kept")
	}
}

func flip(at int) func(p string) error {
	return func(p string) error {
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		b[at] ^= 1
		return os.WriteFile(p, b, 0o600)
	}
}

func must(rc io.ReadCloser, err error) io.Reader {
	if err != nil {
		panic(err)
	}
	return &closing{rc}
}

// A closing closes at its end.
type closing struct{ io.ReadCloser }

func (c *closing) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}
