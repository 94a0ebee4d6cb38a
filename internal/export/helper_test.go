// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/export"
	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
)

var (
	amd64 = ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = ocispecs.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
)

func file(p, content string, mode tree.Mode) tree.Change {
	return tree.Change{
		Entry:   tree.Entry{Path: p, Mode: tree.ModeRegular | mode, Size: int64(len(content)), ModTime: time.Unix(1000, 0), UID: 1, GID: 2},
		Touched: true,
		Open:    func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
	}
}

func dir(p string, mode tree.Mode) tree.Change {
	return tree.Change{Entry: tree.Entry{Path: p, Mode: tree.ModeDir | mode, ModTime: time.Unix(3000, 0)}, Touched: true}
}

func symlink(p, to string) tree.Change {
	return tree.Change{Entry: tree.Entry{Path: p, Mode: tree.ModeSymlink | 0o777, Link: to, ModTime: time.Unix(1000, 0)}, Touched: true}
}

func hardlink(p, to string) tree.Change {
	c := file(p, "", 0o644)
	c.LinkTo, c.Open = to, nil
	return c
}

func newLayer(t *testing.T, st *store.Store, changes ...tree.Change) *layer.Layer {
	t.Helper()
	seq := func(yield func(tree.Change, error) bool) {
		for _, c := range changes {
			if !yield(c, nil) {
				return
			}
		}
	}
	l, err := layer.Write(t.Context(), st, seq, layer.WriteOptions{Created: time.Unix(2000, 0), Description: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// newImages returns an image per platform; the lower layer is common to all.
func newImages(t *testing.T, ps ...ocispecs.Platform) []export.Image {
	t.Helper()
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	lower := newLayer(t, st, dir("d", 0o555), file("d/f", "one", 0o4755), hardlink("d/g", "d/f"), symlink("d/l", "/d/f"), file("gone", "x", 0o600))
	var images []export.Image
	for _, p := range ps {
		upper := newLayer(t, st, file("arch", p.Architecture, 0o644), tree.Change{Entry: tree.Entry{Path: "gone"}, Deleted: true})
		images = append(images, export.Image{
			Platform: p,
			Ref:      &layer.Ref{Layers: []*layer.Layer{lower, upper}},
			Config:   []byte(`{"os":"linux","architecture":"` + p.Architecture + `","config":{"Cmd":["sh"]}}`),
		})
	}
	return images
}

func newBundle(t *testing.T, opt export.Options, ps ...ocispecs.Platform) *export.Bundle {
	t.Helper()
	b, err := export.Finish(newImages(t, ps...), opt)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tags(t *testing.T, names ...string) []name.Tag {
	t.Helper()
	var list []name.Tag
	for _, n := range names {
		tag, err := name.NewTag(n)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, tag)
	}
	return list
}
