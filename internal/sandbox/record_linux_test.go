// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// makeTree makes directories of files, one in another, and returns the tree's root.
func makeTree(tb testing.TB, dirs, files int) (string, int) {
	tb.Helper()
	top := tb.TempDir()
	for d := range dirs {
		dir := filepath.Join(top, fmt.Sprint(d%7), fmt.Sprintf("dir-%d", d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			tb.Fatal(err)
		}
		for f := range files {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("some-file-%d.h", f)), nil, 0o644); err != nil {
				tb.Fatal(err)
			}
		}
	}
	fd, err := unix.Open(top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Close(fd) })
	return top, fd
}

// lines returns a record as text.
func lines(d *dirRecord, path string) []string {
	var out []string
	for i := range d.nodes {
		n := d.nodes[i]
		p := tree.Join(path, n.name)
		kids := n.kids
		n.kids, n.name = nil, ""
		out = append(out, fmt.Sprintf("%s %+v", p, n))
		if kids != nil {
			out = append(out, lines(kids, p)...)
		}
	}
	return out
}

func TestRecordAfter(t *testing.T) {
	t.Parallel()
	top, fd := makeTree(t, 20, 30)
	// More names than fit into one read of a directory.
	for i := range 3000 {
		if err := os.WriteFile(filepath.Join(top, "1", "dir-1", strings.Repeat("x", 40)+fmt.Sprint(i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	masked := map[string]bool{"1/dir-8": true, "2/dir-2/some-file-3.h": true}
	before, err := takeRecord(t.Context(), fd, masked, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := 7 + 20 + 20*30 + 3000 - 30; before.looked != want {
		t.Errorf("%d names, want %d", before.looked, want)
	}
	change := func(how string, args ...error) {
		for _, err := range args {
			if err != nil {
				t.Fatalf("%s: %v", how, err)
			}
		}
		want, err := takeRecord(t.Context(), fd, masked, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := takeRecordAfter(t.Context(), fd, masked, before, nil)
		if err != nil {
			t.Fatal(err)
		}
		if g, w := lines(got.root, ""), lines(want.root, ""); !slices.Equal(g, w) || got.latest != want.latest || got.looked != want.looked {
			t.Errorf("%s: %d names until %d, want %d until %d", how, got.looked, got.latest, want.looked, want.latest)
		}
		before = got
	}
	in := func(p string) string { return filepath.Join(top, p) }
	change("nothing")
	change("new file", os.WriteFile(in("0/dir-7/a"), nil, 0o644))
	change("removed file", os.Remove(in("0/dir-7/some-file-0.h")))
	change("renamed file", os.Rename(in("3/dir-3/some-file-1.h"), in("3/dir-3/zzz")))
	change("mode", os.Chmod(in("4/dir-4/some-file-29.h"), 0o600))
	change("content", os.WriteFile(in("5/dir-5/some-file-4.h"), []byte("x"), 0o644))
	change("link", os.Link(in("5/dir-5/some-file-5.h"), in("6/dir-6/link")))
	change("swapped directories", os.Rename(in("5/dir-5"), in("5/x")), os.Rename(in("5/dir-12"), in("5/dir-5")), os.Rename(in("5/x"), in("5/dir-12")))
	change("a file for a directory", os.RemoveAll(in("6/dir-13")), os.WriteFile(in("6/dir-13"), nil, 0o644))
	change("a directory for a file", os.Remove(in("6/dir-13")), os.MkdirAll(in("6/dir-13/sub"), 0o755))
	change("masked", os.WriteFile(in("1/dir-8/some-file-0.h"), []byte("x"), 0o644))
}

// BenchmarkRecord walks a tree anew and as after a command.
func BenchmarkRecord(b *testing.B) {
	_, fd := makeTree(b, 2000, 20)
	before, err := takeRecord(b.Context(), fd, nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := takeRecord(b.Context(), fd, nil, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("after", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			now, err := takeRecordAfter(b.Context(), fd, nil, before, nil)
			if err != nil {
				b.Fatal(err)
			}
			sc := &scan{}
			if n, err := sc.run(b.Context(), before, now); n > 0 || err != nil {
				b.Fatal(n, err)
			}
			before = now
		}
	})
}
