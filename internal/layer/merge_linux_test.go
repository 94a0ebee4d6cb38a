// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hako/internal/layer"
	"hako/internal/tree"
	"hako/internal/tree/treetest"
)

// Layers merged into one are the same tree as before, as a view and unpacked by
// containerd, and delete nothing that is not there.
func TestMergeRandom(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for seed := range 80 {
		r := rand.New(rand.NewPCG(uint64(seed), 7))
		st := open(t)
		var made []*layer.Layer
		want := ""
		for range 2 + r.IntN(4) {
			base, err := (&layer.Ref{Layers: made}).Tree(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			o := tree.NewOverlay(base)
			for range 25 {
				change(t, r, o)
			}
			want = treetest.List(t, o, "")
			l, err := layer.Write(t.Context(), st, o.Changes(), layer.WriteOptions{Created: time.Unix(5, 0)})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			made = append(made, l)
		}
		n := r.IntN(len(made))
		merged, err := (&layer.Ref{Layers: made}).Merge(t.Context(), st, n, nil, layer.WriteOptions{Created: time.Unix(5, 0)})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		now := append(made[:n:n], merged)
		fsys, err := (&layer.Ref{Layers: now}).Tree(t.Context())
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if d := cmp.Diff(want, treetest.List(t, fsys, "")); d != "" {
			t.Errorf("seed %d: view (-want +got):\n%s", seed, d)
		}
		var tars [][]byte
		for _, l := range now {
			tars = append(tars, plainOf(t, l))
		}
		dir, err := containerd(t, tars...)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if d := cmp.Diff(want, disk(t, dir)); d != "" {
			t.Errorf("seed %d: unpacked by containerd (-want +got):\n%s", seed, d)
		}
		checkWhiteouts(t, made[:n], merged)
	}
}

func checkWhiteouts(t *testing.T, base []*layer.Layer, merged *layer.Layer) {
	t.Helper()
	below, err := (&layer.Ref{Layers: base}).Tree(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	items, err := merged.Items(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for it, err := range items {
		if err != nil {
			t.Fatal(err)
		}
		if _, err := below.Lstat(it.Path); it.Deleted && err != nil {
			t.Errorf("/%s is deleted, and was not there", it.Path)
		}
	}
}

func TestMergeSkips(t *testing.T) {
	t.Parallel()
	st := open(t)
	base := write(t, st, dir("keep"), file("keep/old", "o"), dir("x"), file("x/old", "o"))
	one := write(t, st, dir("keep"), file("keep/new", "n"), dir("x"), file("x/new", "n"))
	two := write(t, st, dir("x"), tree.Change{Entry: tree.Entry{Path: "x/old"}, Deleted: true}, dir("y"), file("y/z", "z"))
	skip := func(p string) bool { return p == "x" || strings.HasPrefix(p, "x/") }
	merged, err := (&layer.Ref{Layers: []*layer.Layer{base, one, two}}).Merge(t.Context(), st, 1, skip, layer.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := list(t, &layer.Ref{Layers: []*layer.Layer{base, merged}})
	for _, p := range []string{"keep/new", "x/old", "y/z"} {
		if !strings.Contains(got, p) {
			t.Errorf("%s is missing:\n%s", p, got)
		}
	}
	if strings.Contains(got, "x/new") {
		t.Errorf("x/new is there:\n%s", got)
	}
	for _, l := range []struct {
		l    *layer.Layer
		want bool
	}{{one, true}, {merged, false}} {
		if has, err := l.l.HasPath(t.Context(), skip); has != l.want || err != nil {
			t.Errorf("HasPath = %t, %v, want %t", has, err, l.want)
		}
	}
}
