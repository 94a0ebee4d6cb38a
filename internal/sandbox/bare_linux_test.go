// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
)

// A barely is a tree that was unpacked from a layer, with two records: one that is
// bare, and one for which all was looked at.
type barely struct {
	top, tick string
	fd        int
	view      tree.FS
	rec       [2]*record
	watch     [2]*dirWatch
}

// fileTime is what the files of the tree are from.
var fileTime = time.Unix(1700000000, 0)

func unpackBarely(tb testing.TB) *barely {
	tb.Helper()
	b := &barely{top: tb.TempDir(), tick: tb.TempDir()}
	st, err := store.Open(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	l, err := layer.Write(tb.Context(), st, barelyChanges(), layer.WriteOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	l.Forget() // as it would come from a registry
	root, err := layer.OpenRoot(b.top)
	if err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(root.Apply(tb.Context(), l, false), root.Close()); err != nil {
		tb.Fatal(err)
	}
	if b.view, err = (&layer.Ref{Layers: []*layer.Layer{l}}).Tree(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	if b.fd, err = unix.Open(b.top, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Close(b.fd) })
	asOf, err := newCtime(b.tick)
	if err != nil {
		tb.Fatal(err)
	}
	for i := range b.watch {
		if b.watch[i], err = newDirWatch(b.fd, 0); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = b.watch[i].close() })
	}
	if b.rec[0], err = takeBareRecord(tb.Context(), b.fd, nil, b.watch[0], b.view, asOf); err != nil {
		tb.Fatal(err)
	}
	if b.rec[1], err = takeRecord(tb.Context(), b.fd, nil, b.watch[1]); err != nil {
		tb.Fatal(err)
	}
	return b
}

// barelyChanges are ten directories with files, of which a few have second names.
func barelyChanges() iter.Seq2[tree.Change, error] {
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	var entries []tree.Entry
	for d := range 10 {
		dir := fmt.Sprintf("d%d", d)
		entries = append(entries, tree.Entry{Path: dir, Mode: tree.ModeDir | 0o755, ModTime: fileTime, UID: uid, GID: gid})
		for f := range 6 {
			entries = append(entries, tree.Entry{
				Path: fmt.Sprintf("%s/file%d", dir, f), Mode: tree.ModeRegular | 0o644, Size: int64(1 + f), ModTime: fileTime, UID: uid, GID: gid,
			})
		}
		entries = append(entries, tree.Entry{Path: dir + "/link", Mode: tree.ModeSymlink | 0o777, Link: "file1", ModTime: fileTime, UID: uid, GID: gid})
	}
	return func(yield func(tree.Change, error) bool) {
		for c := range changesOf(entries) {
			if !yield(c, nil) {
				return
			}
		}
		for d := range 3 {
			e := entries[1]
			e.Path = fmt.Sprintf("d%d/second", 7+d)
			if !yield(tree.Change{Entry: e, LinkTo: fmt.Sprintf("d%d/file3", d), Touched: true}, nil) {
				return
			}
		}
	}
}

// change makes a change and returns what the scans by both records find.
func (b *barely) change(tb testing.TB, do func() error) [2][]found {
	tb.Helper()
	if err := waitTick(b.tick, b.rec[0].latest); err != nil {
		tb.Fatal(err)
	}
	err := b.watch[0].during(func() error { return b.watch[1].during(do) })
	if err != nil {
		tb.Fatal(err)
	}
	return b.scans(tb, func(i int) (*record, error) {
		return followRecord(tb.Context(), b.fd, nil, b.rec[i], b.watch[i])
	})
}

// scans compares each record with a later one, which takes its place.
func (b *barely) scans(tb testing.TB, look func(i int) (*record, error)) (out [2][]found) {
	tb.Helper()
	for i := range b.rec {
		after, err := look(i)
		if err != nil {
			tb.Fatal(err)
		}
		live, err := tree.OpenDir(b.top)
		if err != nil {
			tb.Fatal(err)
		}
		sc := &scan{live: live.WithXattrs(), base: b.view}
		if _, err := sc.run(tb.Context(), b.rec[i], after); err != nil {
			tb.Fatal(err)
		}
		_ = live.Close()
		b.rec[i], out[i] = after, sc.list
	}
	return out
}

// names are those that changed themselves.
func names(list []found) string {
	var out []string
	for _, f := range list {
		if f.touched {
			out = append(out, f.path)
		}
	}
	return strings.Join(out, " ")
}

func TestBareRecord(t *testing.T) {
	t.Parallel()
	keepTime := func(p string, do func() error) error { return errors.Join(do(), os.Chtimes(p, fileTime, fileTime)) }
	write := func(p, s string) error { return os.WriteFile(p, []byte(s), 0o644) }
	tests := []struct {
		name string
		do   func(top string) error
		want string // the names that changed
		all  bool   // all files have to be looked at
	}{
		{"nothing", func(string) error { return nil }, "", false},
		{"written", func(top string) error { return write(top+"/d1/file2", "new") }, "d1/file2", false},
		{"written alike, at another time", func(top string) error { return write(top+"/d1/file2", "xxx") }, "d1/file2", false},
		{"written alike, at the same time", func(top string) error {
			return keepTime(top+"/d1/file2", func() error { return write(top+"/d1/file2", "xxx") })
		}, "", false},
		{"other bytes, of the same time", func(top string) error {
			return keepTime(top+"/d1/file2", func() error { return write(top+"/d1/file2", "yyy") })
		}, "d1/file2", false},
		{"within the same second", func(top string) error {
			return os.Chtimes(top+"/d1/file2", time.Time{}, fileTime.Add(time.Millisecond))
		}, "d1/file2", false},
		{"mode", func(top string) error { return os.Chmod(top+"/d1/file2", 0o600) }, "d1/file2", false},
		{"the same mode", func(top string) error { return os.Chmod(top+"/d1/file2", 0o644) }, "", false},
		{"new", func(top string) error { return write(top+"/d1/new", "x") }, "d1/new", false},
		{"mode of a directory", func(top string) error { return os.Chmod(top+"/d1", 0o700) }, "d1", false},
		{"new link to a file", func(top string) error { return os.Link(top+"/d1/file2", top+"/d3/other") }, "d3/other", true},
		{"removed", func(top string) error { return os.Remove(top + "/d1/file2") }, "d1/file2", false},
		{"removed name of two", func(top string) error { return os.Remove(top + "/d7/second") }, "d7/second", true},
		{"written by one name, which another file has then", func(top string) error {
			return errors.Join(write(top+"/d7/second", "new"), os.Remove(top+"/d7/second"), write(top+"/d7/second", "x"))
		}, "d0/file3 d7/second", true},
		{"written by one name, which another file is moved to", func(top string) error {
			return errors.Join(write(top+"/d7/second", "new"), os.Rename(top+"/d1/file2", top+"/d7/second"))
		}, "d0/file3 d1/file2 d7/second", true},
		{"written by one name of two", func(top string) error { return write(top+"/d7/second", "new") }, "d0/file3 d7/second", true},
		{"written by one name, which is gone", func(top string) error {
			return errors.Join(write(top+"/d7/second", "new"), os.Remove(top+"/d7/second"))
		}, "d0/file3 d7/second", true},
		{"new directory", func(top string) error {
			return errors.Join(os.Mkdir(top+"/d", 0o755), write(top+"/d/a", "x"), keepTime(top+"/d1/file2", func() error { return write(top+"/d1/file2", "yyy") }))
		}, "d d/a d1/file2", true},
		{"renamed", func(top string) error { return os.Rename(top+"/d1/file2", top+"/d2/new") }, "d1/file2 d2/new", false},
		{"a link for a file", func(top string) error {
			return errors.Join(os.Remove(top+"/d1/file2"), os.Symlink("x", top+"/d1/file2"))
		}, "d1/file2", false},
		{"another link", func(top string) error {
			return errors.Join(os.Remove(top+"/d1/link"), os.Symlink("file2", top+"/d1/link"))
		}, "d1/link", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := unpackBarely(t)
			before := b.rec[0]
			lists := b.change(t, func() error { return tt.do(b.top) })
			if n := bareNodes(before.root); tt.all && n > 3 {
				t.Errorf("all was looked at, but nothing is known of what %d files were", n)
			}
			if got := names(lists[0]); got != tt.want || !slices.Equal(lists[0], lists[1]) {
				t.Errorf("changed: %q, want %q, and %q where all was looked at", got, tt.want, names(lists[1]))
			}
			if b.rec[0].followed == tt.all {
				t.Errorf("followed: %t, want %t", b.rec[0].followed, !tt.all)
			}
			if bare := b.rec[0].image != nil; bare == tt.all {
				t.Errorf("bare: %t, want %t", bare, !tt.all)
			}
			b.prove(t)
		})
	}
}

func bareNodes(d *dirRecord) (n int) {
	for i := range d.nodes {
		if d.nodes[i].bare {
			n++
		}
		if d.nodes[i].kids != nil {
			n += bareNodes(d.nodes[i].kids)
		}
	}
	return n
}

// prove looks at everything: there must be no change that was not found before.
func (b *barely) prove(tb testing.TB) {
	tb.Helper()
	lists := b.scans(tb, func(i int) (*record, error) { return takeRecordAfter(tb.Context(), b.fd, nil, b.rec[i], nil) })
	if len(lists[0]) > 0 || len(lists[1]) > 0 {
		tb.Errorf("changed untold: %q by the bare record, %q by the other", names(lists[0]), names(lists[1]))
	}
	if got, want := lines(b.rec[0].root, ""), lines(b.rec[1].root, ""); !slices.Equal(got, want) {
		tb.Error("in the end the records differ")
	}
}

// Random changes: a bare record finds what another one finds.
func TestBareRandom(t *testing.T) {
	t.Parallel()
	for seed := range uint64(24) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			b := unpackBarely(t)
			rnd := rand.New(rand.NewPCG(seed, 2))
			for i := range 25 {
				lists := b.change(t, func() error {
					for range 1 + rnd.IntN(3) {
						randomChange(rnd, b.top)
					}
					return nil
				})
				if !slices.Equal(lists[0], lists[1]) {
					t.Fatalf("step %d: changed: %q, want %q", i, names(lists[0]), names(lists[1]))
				}
			}
			b.prove(t)
		})
	}
}

// What a change behind the kernel's back was, the proof tells.
func TestBareUntold(t *testing.T) {
	t.Parallel()
	b := unpackBarely(t)
	if err := waitTick(b.tick, b.rec[0].latest); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(b.top, "d1", "file2")
	if err := errors.Join(os.WriteFile(p, []byte("yyy"), 0o644), os.Chtimes(p, fileTime, fileTime)); err != nil {
		t.Fatal(err)
	}
	lists := b.scans(t, func(i int) (*record, error) { return takeRecordAfter(t.Context(), b.fd, nil, b.rec[i], nil) })
	if got := names(lists[0]); got != "d1/file2" {
		t.Errorf("changed untold: %q, want d1/file2", got)
	}
}

// Where the clock stands still, contents are compared, of all files.
func TestBareStill(t *testing.T) {
	t.Parallel()
	b := unpackBarely(t)
	b.rec[0].asOf += time.Hour.Nanoseconds() // what changes from now on has no later ctime
	l := &installed{record: b.rec[0], watch: b.watch[0]}
	if err := l.lookAtAll(); err != nil || l.watch != nil {
		t.Fatal(err, "watch:", l.watch)
	}
	p := filepath.Join(b.top, "d1", "file2")
	link := filepath.Join(b.top, "d1", "link")
	if err := errors.Join(os.WriteFile(p, []byte("yyy"), 0o644), os.Chtimes(p, fileTime, fileTime), os.Remove(link), os.Symlink("file2", link)); err != nil {
		t.Fatal(err)
	}
	live, err := tree.OpenDir(b.top)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	after, err := takeRecordAfter(t.Context(), b.fd, nil, b.rec[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	sc := &scan{live: live.WithXattrs(), base: b.view, hashAll: true}
	if _, err := sc.run(t.Context(), b.rec[0], after); err != nil || names(sc.list) != "d1/file2 d1/link" {
		t.Errorf("changed: %q, %v, want d1/file2 and d1/link", names(sc.list), err)
	}
	// A file that nobody has looked at is no file that is as it was.
	if _, err := sc.run(t.Context(), unpackBarely(t).rec[0], b.rec[0]); err == nil {
		t.Error("files were compared that nobody has looked at")
	}
}

// If the clock was set, ctimes tell nothing of a bare record.
func TestBareClock(t *testing.T) {
	t.Parallel()
	b := unpackBarely(t)
	c, err := newClock()
	if err != nil {
		t.Fatal(err)
	}
	if c.wasSet() {
		t.Error("nobody set the clock, but it says so")
	}
	if err := c.close(); err != nil {
		t.Error(err)
	}
	// As if the clock had been set back by an hour since.
	b.rec[0].asOf += time.Hour.Nanoseconds()
	l := &installed{record: b.rec[0], clock: c} // closed: it cannot say that it was not
	l.heedClock()
	lists := b.change(t, func() error {
		p := filepath.Join(b.top, "d1", "file2")
		return errors.Join(os.Mkdir(b.top+"/d", 0o755), os.WriteFile(p, []byte("yyy"), 0o644), os.Chtimes(p, fileTime, fileTime))
	})
	if got := names(lists[0]); got != "d d1/file2" {
		t.Errorf("changed: %q, want d and d1/file2", got)
	}
}
