// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
)

// viewOf writes entries, sorted, as a layer and returns its view.
func viewOf(tb testing.TB, entries []tree.Entry) tree.FS {
	tb.Helper()
	st, err := store.Open(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	l, err := layer.Write(tb.Context(), st, changesOf(entries), layer.WriteOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	view, err := (&layer.Ref{Layers: []*layer.Layer{l}}).Tree(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return view
}

func changesOf(entries []tree.Entry) iter.Seq2[tree.Change, error] {
	return func(yield func(tree.Change, error) bool) {
		for _, e := range entries {
			c := tree.Change{Entry: e, Touched: true}
			if e.Size > 0 {
				c.Open = func() (io.ReadCloser, error) {
					return io.NopCloser(strings.NewReader(strings.Repeat("x", int(e.Size)))), nil
				}
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

// recordOf returns the record of a tree with entries, sorted.
func recordOf(entries []tree.Entry, masked ...string) *record {
	r := &record{root: &dirRecord{}}
	dirs := map[string]*dirRecord{"": r.root}
	for i := range entries {
		e := &entries[i]
		n := node{name: tree.Base(e.Path), mode: uint32(e.Mode), uid: e.UID, gid: e.GID, size: e.Size, mtime: e.ModTime.UnixNano()}
		switch {
		case e.Mode.IsDir():
			n.kids = &dirRecord{}
			dirs[e.Path] = n.kids
		case e.Mode.IsSymlink():
			n.size = int64(len(e.Link))
		case e.Mode.IsDevice():
			n.size = int64(unix.Mkdev(e.Major, e.Minor))
		}
		for _, m := range masked {
			n.masked = n.masked || m == e.Path
		}
		up := dirs[tree.Parent(e.Path)]
		up.nodes = append(up.nodes, n)
	}
	return r
}

// sample has one of each kind, in path order.
func sample() []tree.Entry {
	at := time.Unix(1700000000, 0)
	return []tree.Entry{
		{Path: "d", Mode: tree.ModeDir | 0o755, ModTime: at},
		{Path: "d/dev", Mode: tree.ModeChar | 0o600, Major: 1, Minor: 3, ModTime: at},
		{Path: "d/file", Mode: tree.ModeRegular | 0o644, Size: 5, UID: 1, GID: 2, ModTime: at},
		{Path: "d/link", Mode: tree.ModeSymlink | 0o777, Link: "file", ModTime: at},
		{Path: "d/pipe", Mode: tree.ModeFIFO | 0o644, ModTime: at},
		{Path: "e", Mode: tree.ModeDir | 0o700, ModTime: at},
		{Path: "e/suid", Mode: tree.ModeRegular | 0o4755, Size: 1, ModTime: at},
	}
}

// edited returns the sample with one entry changed; without it if fn is nil.
func edited(path string, fn func(*tree.Entry)) []tree.Entry {
	var out []tree.Entry
	for _, e := range sample() {
		if e.Path == path {
			if fn == nil {
				continue
			}
			fn(&e)
		}
		out = append(out, e)
	}
	return out
}

func TestVerifyFindsMismatches(t *testing.T) {
	t.Parallel()
	view := viewOf(t, sample())
	for _, c := range []struct {
		name, path, want string
		live             func(*tree.Entry)
	}{
		{"gone", "d/file", "/d/file: in the layers, not in the tree", nil},
		{"type", "d/pipe", "/d/pipe: a pipe in the layers, a file in the tree", func(e *tree.Entry) { e.Mode = tree.ModeRegular | 0o644 }},
		{"directory", "d/pipe", "/d/pipe: a pipe in the layers, a directory in the tree", func(e *tree.Entry) { e.Mode = tree.ModeDir | 0o644 }},
		{"mode", "e/suid", "/e/suid: mode 4755 in the layers, 0755 in the tree", func(e *tree.Entry) { e.Mode &^= tree.ModeSetuid }},
		{"mode of a directory", "e", "/e: mode 0700 in the layers, 0755 in the tree", func(e *tree.Entry) { e.Mode = tree.ModeDir | 0o755 }},
		{"user", "d/file", "/d/file: owner 1:2 in the layers, 0:2 in the tree", func(e *tree.Entry) { e.UID = 0 }},
		{"group", "d/link", "/d/link: owner 0:0 in the layers, 0:7 in the tree", func(e *tree.Entry) { e.GID = 7 }},
		{"size", "d/file", "/d/file: 5 bytes in the layers, 6 in the tree", func(e *tree.Entry) { e.Size = 6 }},
		{"link", "d/link", `/d/link: a link to "file" in the layers, one of 5 bytes in the tree`, func(e *tree.Entry) { e.Link = "other" }},
		{"device", "d/dev", "/d/dev: device 1:3 in the layers, 1:5 in the tree", func(e *tree.Entry) { e.Minor = 5 }},
		{
			"time", "d/file", "/d/file: of 2023-11-14T22:13:20Z in the layers, of 2023-11-14T22:13:21Z in the tree",
			func(e *tree.Entry) { e.ModTime = e.ModTime.Add(time.Second) },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := verify(t.Context(), recordOf(edited(c.path, c.live)), view, allowances{})
			e, ok := errors.AsType[*MismatchError](err)
			if !ok || len(e.Found) != 1 || e.More != 0 {
				t.Fatalf("verify = %v (%+v), want one mismatch", err, e)
			}
			if got := e.Found[0].Path + ": " + e.Found[0].What; got != c.want {
				t.Errorf("found  %q\nwant   %q", got, c.want)
			}
		})
	}
}

func TestVerifyMissingFromLayers(t *testing.T) {
	t.Parallel()
	// A whole directory that no layer has is named once.
	err := verify(t.Context(), recordOf(sample()), viewOf(t, edited("d/file", nil)[:4]), allowances{})
	e, ok := errors.AsType[*MismatchError](err)
	if !ok || len(e.Found) != 2 {
		t.Fatalf("verify = %v, want two mismatches", err)
	}
	e.After = "[1/1] RUN x"
	const want = ` after   [1/1] RUN x
 differs /d/file: missing from the layers
 differs /e: missing from the layers
`
	if got := e.Explain(); !strings.HasPrefix(got, want) {
		t.Errorf("Explain() = %s\nwant it to begin\n%s", got, want)
	}
}

func TestVerifyNamesTheFirst(t *testing.T) {
	t.Parallel()
	var live []tree.Entry
	for i := range maxMismatches + 3 {
		live = append(live, tree.Entry{Path: fmt.Sprintf("f%d", i), Mode: tree.ModeRegular | 0o644})
	}
	err := verify(t.Context(), recordOf(live), viewOf(t, nil), allowances{})
	e, ok := errors.AsType[*MismatchError](err)
	if !ok || len(e.Found) != maxMismatches || e.More != 3 || !strings.Contains(e.Explain(), "and 3 more") || !strings.Contains(e.Error(), "at 8 paths") {
		t.Errorf("verify = %v (%+v)", err, e)
	}
}

func TestVerifyAllows(t *testing.T) {
	t.Parallel()
	clamp := time.Unix(1600000000, 0)
	clamped := sample()
	for i := range clamped {
		clamped[i].ModTime = clamp
	}
	with := func(more ...tree.Entry) []tree.Entry {
		list := append(sample(), more...)
		slices.SortFunc(list, func(a, b tree.Entry) int { return tree.ComparePaths(a.Path, b.Path) })
		return list
	}
	dir := func(p string) tree.Entry { return tree.Entry{Path: p, Mode: tree.ModeDir | 0o755} }
	file := func(p string) tree.Entry { return tree.Entry{Path: p, Mode: tree.ModeRegular | 0o644} }
	for _, c := range []struct {
		name       string
		live, view []tree.Entry
		masked     []string
		clamp      *time.Time
		wrong      bool
	}{
		{name: "equal", live: sample(), view: sample()},
		{name: "times of directories", live: edited("e", func(e *tree.Entry) { e.ModTime = time.Unix(1, 0) }), view: sample()},
		{name: "parts of seconds", live: edited("d/file", func(e *tree.Entry) { e.ModTime = e.ModTime.Add(999 * time.Millisecond) }), view: sample()},
		{name: "modes of links", live: sample(), view: edited("d/link", func(e *tree.Entry) { e.Mode = tree.ModeSymlink | 0o755 })},
		{name: "a time that a file system cannot hold", live: sample(), view: edited("d/file", func(e *tree.Entry) { e.ModTime = time.Unix(1<<40, 0) })},
		{name: "limited times", live: sample(), view: clamped, clamp: &clamp},
		{name: "limited times, though none were", live: sample(), view: clamped, wrong: true},
		{name: "older than the limit", live: edited("d/file", func(e *tree.Entry) { e.ModTime = clamp.Add(-time.Hour) }), view: clamped, clamp: &clamp, wrong: true},
		{name: "a socket", live: with(tree.Entry{Path: "s", Mode: tree.ModeSocket | 0o755}), view: sample()},
		{name: "a mount", live: with(dir("proc"), file("proc/1")), view: sample(), masked: []string{"proc"}},
		{name: "a mount over another kind", live: with(file("etc")), view: with(dir("etc")), masked: []string{"etc"}},
		{name: "a mount's parents", live: with(dir("run"), dir("run/a"), file("run/a/m"), file("run/n")), view: sample(), masked: []string{"run/a/m", "run/n"}},
		{name: "beside a mount", live: with(dir("run"), file("run/m"), file("run/x")), view: sample(), masked: []string{"run/m"}, wrong: true},
		{name: "an empty directory", live: with(dir("run")), view: sample(), wrong: true},
		{name: "a device in dev", live: with(dir("dev")), view: with(dir("dev"), tree.Entry{Path: "dev/null", Mode: tree.ModeChar | 0o666, Major: 1, Minor: 3})},
		{name: "a file in dev", live: with(dir("dev")), view: with(dir("dev"), file("dev/null")), wrong: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := verify(t.Context(), recordOf(c.live, c.masked...), viewOf(t, c.view), allowances{clamp: c.clamp})
			if _, wrong := errors.AsType[*MismatchError](err); wrong != c.wrong || err != nil && !wrong {
				t.Errorf("verify = %v", err)
			}
		})
	}
}

func TestVerifyStops(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := verify(ctx, recordOf(sample()), viewOf(t, sample()), allowances{}); !errors.Is(err, context.Canceled) {
		t.Errorf("verify = %v, want it canceled", err)
	}
}

// BenchmarkVerify compares 100,000 names.
func BenchmarkVerify(b *testing.B) {
	var entries []tree.Entry
	for d := range 2000 {
		dir := fmt.Sprintf("d%04d", d)
		entries = append(entries, tree.Entry{Path: dir, Mode: tree.ModeDir | 0o755})
		for f := range 49 {
			entries = append(entries, tree.Entry{Path: fmt.Sprintf("%s/file%02d", dir, f), Mode: tree.ModeRegular | 0o644, Size: 10})
		}
	}
	live, view := recordOf(entries), viewOf(b, entries)
	b.ReportAllocs()
	for b.Loop() {
		if err := verify(b.Context(), live, view, allowances{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(entries)*b.N)/b.Elapsed().Seconds(), "names/s")
}
