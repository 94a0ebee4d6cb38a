// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"strings"
	"testing"
	"time"

	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
)

func seq(cs ...tree.Change) iter.Seq2[tree.Change, error] {
	return func(yield func(tree.Change, error) bool) {
		for _, c := range cs {
			if !yield(c, nil) {
				return
			}
		}
	}
}

func file(p, content string) tree.Change {
	return tree.Change{
		Entry:   tree.Entry{Path: p, Mode: tree.ModeRegular | 0o644, Size: int64(len(content)), ModTime: time.Unix(1000, 0)},
		Touched: true,
		Open:    func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
	}
}

func dir(p string) tree.Change {
	return tree.Change{Entry: tree.Entry{Path: p, Mode: tree.ModeDir | 0o755, ModTime: time.Unix(1000, 0)}, Touched: true}
}

func write(t *testing.T, st *store.Store, cs ...tree.Change) *layer.Layer {
	t.Helper()
	l, err := layer.Write(t.Context(), st, seq(cs...), layer.WriteOptions{Created: time.Unix(2000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func list(t *testing.T, ref *layer.Ref) string {
	t.Helper()
	fsys, err := ref.Tree(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	var walk func(p string)
	walk = func(p string) {
		es, err := fsys.ReadDir(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			b.WriteString(e.Path)
			if e.Mode.IsDir() {
				b.WriteString("/\n")
				walk(e.Path)
				continue
			}
			if e.Mode.IsRegular() {
				rc, err := fsys.Open(e.Path)
				if err != nil {
					t.Fatal(err)
				}
				c, err := io.ReadAll(rc)
				if err != nil {
					t.Fatalf("read %s: %v", e.Path, err)
				}
				rc.Close()
				b.WriteString("=" + string(c))
			}
			if e.Node != (tree.NodeID{}) {
				b.WriteString(" linked")
			}
			b.WriteString("\n")
		}
	}
	walk("")
	return b.String()
}

func TestChainView(t *testing.T) {
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	base := write(t, st, dir("a"), file("a/x", "1"), file("a/y", "2"), dir("b"), dir("b/c"), file("b/c/d", "3"), file("f", "4"))
	up := write(t, st, dir("a"), tree.Change{Entry: tree.Entry{Path: "a/x"}, Deleted: true},
		file("a/z", "5"), tree.Change{Entry: tree.Entry{Path: "a/zz", Mode: tree.ModeRegular | 0o644, Size: 1}, LinkTo: "a/z"},
		file("b", "now a file"), dir("f"), file("f/g", "6"))
	got := list(t, &layer.Ref{Layers: []*layer.Layer{base, up}})
	want := "a/\na/y=2\na/z=5 linked\na/zz=5 linked\nb=now a file\nf/\nf/g=6\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestWriteIsDeterministic(t *testing.T) {
	big := strings.Repeat("some text that compresses\n", 300_000)
	var last *layer.Layer
	for range 2 {
		st, err := store.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		l := write(t, st, dir("d"), file("d/big", big), file("d/small", "x"))
		if last != nil && (l.Descriptor().Digest != last.Descriptor().Digest || l.DiffID() != last.DiffID()) {
			t.Errorf("two writes differ: %v, %v", l.Descriptor(), last.Descriptor())
		}
		last = l
		if got := list(t, &layer.Ref{Layers: []*layer.Layer{l}}); len(got) < len(big) || !strings.HasSuffix(got, "d/small=x\n") {
			t.Errorf("read back %d bytes", len(got))
		}
		// As a foreign layer: the same index from the blob alone.
		st2, err := store.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		f := layer.New(st2, l.DiffID(), l.Descriptor(), source{l})
		if got, want := list(t, &layer.Ref{Layers: []*layer.Layer{f}}), list(t, &layer.Ref{Layers: []*layer.Layer{l}}); got != want {
			t.Error("the foreign layer differs from the written one")
		}
	}
}

type source struct{ l *layer.Layer }

func (s source) Open(ctx context.Context, off int64) (io.ReadCloser, error) {
	return s.l.OpenAt(ctx, off)
}

func TestReservedNames(t *testing.T) {
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, err = layer.Write(t.Context(), st, seq(dir("a"), file("a/.wh.b", "x")), layer.WriteOptions{})
	if err == nil || !strings.Contains(err.Error(), "/a/.wh.b") {
		t.Errorf("got %v, want an error that names the file", err)
	}
}

// A build that is stopped does not wait for the end of a file.
func TestWriteStopped(t *testing.T) {
	t.Parallel()
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	endless := file("a", "")
	endless.Size = 1 << 50
	endless.Open = func() (io.ReadCloser, error) {
		cancel()
		return io.NopCloser(strings.NewReader("begin")), nil
	}
	if _, err := layer.Write(ctx, st, seq(endless), layer.WriteOptions{Level: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
}
