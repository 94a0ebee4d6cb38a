// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"hako/internal/layer"
)

// bigTar returns a tar of some 24 MB, which is several restart points long, and
// the digests of its files.
func bigTar(tb testing.TB) ([]byte, map[string]digest.Digest) {
	tb.Helper()
	r := rand.New(rand.NewPCG(3, 3))
	sums := map[string]digest.Digest{}
	var ms []member
	for i := range 60 {
		b := make([]byte, r.IntN(800_000))
		for k := range b {
			b[k] = byte(r.IntN(1 + i*4)) // from very regular to random
		}
		h := fileHeader(fmt.Sprintf("d%d/f%d", i%7, i))
		sums[h.Name] = digest.FromBytes(b)
		ms = append(ms, member{h, string(b)})
	}
	return tarOf(tb, ms...), sums
}

func pigz(t *testing.T, data []byte) []byte {
	t.Helper()
	cmd := exec.Command("pigz", "-c", "-p", "2", "-b", "128")
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("needs pigz")
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Files are read in any order from the middle of a blob, whoever made it, from
// a new process too.
func TestRandomAccess(t *testing.T) {
	t.Parallel()
	plain, sums := bigTar(t)
	for name, pack := range map[string]func(t *testing.T) []byte{
		"plain":  func(*testing.T) []byte { return plain },
		"gzip-1": func(t *testing.T) []byte { return gzipped(t, 1, plain) },
		"gzip-9": func(t *testing.T) []byte { return gzipped(t, 9, plain) },
		"stored": func(t *testing.T) []byte { return gzipped(t, 0, plain) },
		"members": func(t *testing.T) []byte {
			var out []byte
			for i := 0; i < len(plain); i += 3_000_000 {
				out = append(out, gzipped(t, 6, plain[i:min(i+3_000_000, len(plain))])...)
			}
			return out
		},
		"pigz": func(t *testing.T) []byte { return pigz(t, plain) },
		"zstd": func(t *testing.T) []byte {
			w, err := zstd.NewWriter(nil)
			if err != nil {
				t.Fatal(err)
			}
			return w.EncodeAll(plain, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st, packed := open(t), pack(t)
			readAll(t, foreign(st, plain, packed), sums)
			again := foreign(st, plain, packed)
			if !again.HasIndex() {
				t.Error("the index was not kept")
			}
			readAll(t, again, sums)
		})
	}
}

func readAll(t *testing.T, l *layer.Layer, sums map[string]digest.Digest) {
	t.Helper()
	fsys, err := (&layer.Ref{Layers: []*layer.Layer{l}}).Tree(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range sums { // in random order
		rc, err := fsys.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		d, err := digest.FromReader(rc)
		if err != nil || d != want {
			t.Errorf("%s: %v, %v, want %v", p, d, err, want)
		}
		if err := rc.Close(); err != nil {
			t.Error(err)
		}
	}
	l.Forget()
}

// What is not the blob that was asked for is an error, and leaves nothing.
func TestBadBlobs(t *testing.T) {
	t.Parallel()
	plain := tarOf(t, member{dirHeader("d", 0o755, 0), ""}, member{fileHeader("d/f"), string(bytes.Repeat([]byte("abc"), 50_000))})
	packed := gzipped(t, 6, plain)
	for name, tt := range map[string]struct {
		blob []byte
		want error
	}{
		"good":      {packed, nil},
		"empty":     {nil, io.ErrUnexpectedEOF},
		"truncated": {packed[:len(packed)/2], io.ErrUnexpectedEOF},
		"one short": {packed[:len(packed)-1], io.ErrUnexpectedEOF},
		"longer":    {append(bytes.Clone(packed), 0), layer.ErrDigestMismatch},
		"other":     {gzipped(t, 1, plain), nil},
	} {
		l := foreign(open(t), plain, packed)
		bad := layer.New(open(t), l.DiffID(), l.Descriptor(), blob(tt.blob))
		_, err := (&layer.Ref{Layers: []*layer.Layer{bad}}).Tree(t.Context())
		switch {
		case name == "other" && err == nil:
			t.Errorf("%s: another blob with the same content was taken", name)
		case name != "other" && !errors.Is(err, tt.want):
			t.Errorf("%s: error %v, want %v", name, err, tt.want)
		}
		if (bad.Local() || bad.HasIndex()) != (err == nil) {
			t.Errorf("%s: after error %v: local %v, index %v", name, err, bad.Local(), bad.HasIndex())
		}
	}
	// A flipped bit shows, wherever it is.
	for i := 0; i < len(packed); i += 1 + len(packed)/40 {
		b := bytes.Clone(packed)
		b[i] ^= 1 << (i % 8)
		l := foreign(open(t), plain, packed)
		bad := layer.New(open(t), l.DiffID(), l.Descriptor(), blob(b))
		if _, err := (&layer.Ref{Layers: []*layer.Layer{bad}}).Tree(t.Context()); err == nil || bad.Local() || bad.HasIndex() {
			t.Errorf("bit in byte %d: error %v", i, err)
		}
	}
	// The right blob of the wrong layer.
	l := foreign(open(t), tarOf(t), packed)
	if _, err := (&layer.Ref{Layers: []*layer.Layer{l}}).Tree(t.Context()); !errors.Is(err, layer.ErrDigestMismatch) {
		t.Errorf("wrong diffID: error %v", err)
	}
}

// Names that are not what they seem are refused or stay inside.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]bool{
		"../x": true, "a/../../x": true, "/../x": true, "a/../x": false, "/x": false, "./x": false, "x//y": false, "..x": false,
		".wh...": true, "a/.wh..": true, "a/.wh.": true, ".wh.x": false, ".wh..x": false,
	} {
		b := tarOf(t, member{tar.Header{Name: name}, "x"})
		_, err := (&layer.Ref{Layers: []*layer.Layer{foreign(open(t), b, b)}}).Tree(t.Context())
		if (err != nil) != bad {
			t.Errorf("%q: %v", name, err)
		}
	}
}
