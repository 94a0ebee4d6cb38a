// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/layer"
	"hako/internal/store"
)

// A blob is a layer's source in memory.
type blob []byte

func (b blob) Open(_ context.Context, off int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b[min(off, int64(len(b))):])), nil
}

func open(tb testing.TB) *store.Store {
	tb.Helper()
	st, err := store.Open(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	return st
}

// foreign returns the layer whose tar is plain and whose blob is packed.
func foreign(st *store.Store, plain, packed []byte) *layer.Layer {
	return layer.New(st, image.DiffID(digest.FromBytes(plain)), ocispecs.Descriptor{
		MediaType: ocispecs.MediaTypeImageLayer, Digest: digest.FromBytes(packed), Size: int64(len(packed)),
	}, blob(packed))
}

// A member is one entry of a tar; Size and defaults are filled in by tarOf.
type member struct {
	tar.Header
	content string
}

func tarOf(tb testing.TB, ms ...member) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range ms {
		h := m.Header
		h.Format = tar.FormatPAX
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1000, 0)
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.Size = int64(len(m.content))
		if err := w.WriteHeader(&h); err != nil {
			tb.Fatalf("%s: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(tb testing.TB, level int, data []byte) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func dirHeader(name string, mode int64, gid int) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Gid: gid}
}

func fileHeader(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }

// inflated returns what a gzip or zstd blob holds.
func inflated(tb testing.TB, packed []byte) []byte {
	tb.Helper()
	var r io.Reader
	var err error
	if bytes.HasPrefix(packed, []byte{0x1f, 0x8b}) {
		r, err = gzip.NewReader(bytes.NewReader(packed))
	} else {
		r, err = zstd.NewReader(bytes.NewReader(packed))
	}
	if err != nil {
		tb.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		tb.Fatal(err)
	}
	return plain
}
