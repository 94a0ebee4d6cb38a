// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// followed is a tree with a watch and the record of it.
type followed struct {
	top    string
	tick   string // a directory beside it
	fd     int
	masked map[string]bool
	watch  *dirWatch
	rec    *record
}

func follow(tb testing.TB, dirs, files int, masked ...string) *followed {
	tb.Helper()
	f := &followed{tick: tb.TempDir(), masked: make(map[string]bool)}
	for _, m := range masked {
		f.masked[m] = true
	}
	f.top, f.fd = makeTree(tb, dirs, files)
	var err error
	if f.watch, err = newDirWatch(f.fd, 0); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = f.watch.close() })
	f.rec, err = takeRecord(tb.Context(), f.fd, f.masked, f.watch)
	if err != nil || !f.watch.whole() {
		tb.Fatal(err, "whole:", f.watch.whole())
	}
	return f
}

// change makes a change and compares what following it gives with a look at all.
// It returns the record before.
func (f *followed) change(tb testing.TB, how string, do func() error) *record {
	tb.Helper()
	if err := waitTick(f.tick, f.rec.latest); err != nil {
		tb.Fatal(err)
	}
	if err := f.watch.during(do); err != nil {
		tb.Fatalf("%s: %v", how, err)
	}
	want, err := takeRecord(tb.Context(), f.fd, f.masked, nil)
	if err != nil {
		tb.Fatal(err)
	}
	got, err := followRecord(tb.Context(), f.fd, f.masked, f.rec, f.watch)
	if err != nil {
		tb.Fatal(err)
	}
	g, w := withoutCtime(lines(got.root, "")), withoutCtime(lines(want.root, ""))
	if !slices.Equal(g, w) || got.latest < want.latest {
		tb.Errorf("%s: %d names until %d, want %d until %d", how, len(g), got.latest, len(w), want.latest)
		for i, l := range w {
			if i >= len(g) || g[i] != l {
				tb.Fatalf("first difference: %q, want %q", g[min(i, len(g)):min(i+1, len(g))], l)
			}
		}
		tb.FailNow()
	}
	before := f.rec
	f.rec = got
	return before
}

// withoutCtime returns lines without ctimes: that of a file moves with names of it
// that come and go, of which nothing is told if nothing else comes of it. What
// comes of it shows in the other fields.
func withoutCtime(lines []string) []string {
	re := regexp.MustCompile(`ctime:\d+ `)
	for i, l := range lines {
		lines[i] = re.ReplaceAllString(l, "")
	}
	return lines
}

func TestFollowRecord(t *testing.T) {
	t.Parallel()
	f := follow(t, 20, 30, "1/dir-8", "2/dir-2/some-file-3.h")
	in := func(p string) string { return filepath.Join(f.top, p) }
	write := func(p string) func() error { return func() error { return os.WriteFile(in(p), []byte("x"), 0o644) } }
	rename := func(a, b string) error { return os.Rename(in(a), in(b)) }
	all := func(fns ...func() error) func() error {
		return func() error {
			for _, fn := range fns {
				if err := fn(); err != nil {
					return err
				}
			}
			return nil
		}
	}
	move := func(a, b string) func() error { return func() error { return rename(a, b) } }
	tests := []struct {
		name string
		do   func() error
		most int // how many names may be looked at; 0: all have to be
	}{
		{"nothing", func() error { return nil }, 1},
		{"new file", write("0/dir-7/a"), 5},
		{"removed file", func() error { return os.Remove(in("0/dir-7/some-file-0.h")) }, 5},
		{"renamed file", move("3/dir-3/some-file-1.h", "3/dir-3/zzz"), 5},
		{"mode", func() error { return os.Chmod(in("4/dir-4/some-file-29.h"), 0o600) }, 5},
		{"mode of a directory", func() error { return os.Chmod(in("4/dir-4"), 0o700) }, 8},
		{"content", write("5/dir-5/some-file-4.h"), 5},
		{"truncated", func() error { return os.Truncate(in("5/dir-5/some-file-4.h"), 0) }, 5},
		{"time", func() error { return os.Chtimes(in("5/dir-5/some-file-4.h"), time.Unix(5, 0), time.Unix(5, 0)) }, 5},
		{"stored through a mapping", func() error {
			mapped, unmap, err := mapShared(in("5/dir-5/some-file-5.h"))
			if err == nil {
				unmap()
				_ = mapped
			}
			return err
		}, 5},
		{"link", func() error { return os.Link(in("5/dir-5/some-file-6.h"), in("6/dir-6/link")) }, 8},
		{"content through one name", write("6/dir-6/link"), 8},
		{"mode through the other", func() error { return os.Chmod(in("5/dir-5/some-file-6.h"), 0o755) }, 8},
		{"one name moved to a third directory", move("6/dir-6/link", "0/link"), 200},
		{"a directory with a link", all(func() error { return os.Mkdir(in("0/new"), 0o755) }, func() error { return os.Link(in("4/dir-4/some-file-7.h"), in("0/new/link")) }), 0},
		{"written and removed with its directory", all(write("0/new/link"), func() error { return os.RemoveAll(in("0/new")) }), 60},
		{"unlinked while open", func() error {
			h, err := os.OpenFile(in("0/link"), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer h.Close()
			if err := os.Remove(in("0/link")); err != nil {
				return err
			}
			_, err = h.WriteString("by the other name")
			return err
		}, 200},
		{"moved while open", func() error {
			h, err := os.OpenFile(in("3/dir-3/zzz"), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer h.Close()
			if err := rename("3/dir-3/zzz", "4/dir-4/zzz"); err != nil {
				return err
			}
			_, err = h.WriteString("elsewhere")
			return err
		}, 200},
		{"new directories", all(func() error { return os.MkdirAll(in("n/e/w"), 0o755) }, write("n/e/w/file"), write("n/file")), 0},
		{"in a new directory", write("n/e/w/other"), 10},
		{"moved directory", move("n/e", "0/e"), 0},
		{"in a moved directory", write("0/e/w/third"), 60},
		{"moved and written to", all(move("0/e", "6/e"), write("6/e/w/fourth")), 0},
		{"moved in a moved one", all(move("6/e/w", "6/e/v"), move("6/e", "n/e"), write("n/e/v/fifth")), 0},
		{"there and back", all(move("n/e", "0/e"), write("0/e/v/sixth"), move("0/e", "n/e")), 0},
		{"temporary file", all(write("0/dir-0/tmp"), move("0/dir-0/tmp", "0/dir-0/some-file-9.h")), 8},
		{"temporary link that nobody writes to", all(func() error { return os.Link(in("4/dir-4/some-file-9.h"), in("6/lock")) }, func() error { return os.Remove(in("6/lock")) }), 60},
		{"removed directory", func() error { return os.RemoveAll(in("0/dir-14")) }, 60},
		{"written to by a name that is gone", all(func() error { return os.Link(in("4/dir-4/some-file-9.h"), in("6/tmp")) }, write("6/tmp"), func() error { return os.Remove(in("6/tmp")) }), 0},
		{"written to by a name that is gone, later", func() error {
			if err := os.Link(in("4/dir-4/some-file-9.h"), in("6/tmp")); err != nil {
				return err
			}
			h, err := os.OpenFile(in("6/tmp"), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer h.Close()
			if err := errors.Join(os.Remove(in("6/tmp")), os.WriteFile(in("6/tmp"), nil, 0o644)); err != nil {
				return err
			}
			_, err = h.WriteString("yes")
			return err
		}, 0},
		{"written to by a name that was replaced", all(func() error { return os.Link(in("4/dir-4/some-file-9.h"), in("6/tmp2")) }, write("6/tmp2"), write("6/tmp3"), move("6/tmp3", "6/tmp2")), 0},
		{"written to by a name in a directory that is gone", all(func() error { return os.Mkdir(in("6/gone"), 0o755) },
			func() error { return os.Link(in("4/dir-4/some-file-9.h"), in("6/gone/tmp")) }, write("6/gone/tmp"), func() error { return os.RemoveAll(in("6/gone")) }), 0},
		{"chmod by a name that moved and is gone", all(func() error { return os.Link(in("4/dir-4/some-file-9.h"), in("6/tmp4")) }, move("6/tmp4", "0/tmp5"),
			func() error { return os.Chmod(in("0/tmp5"), 0o711) }, func() error { return os.Remove(in("0/tmp5")) }), 0},
		{"swapped directories", all(move("5/dir-5", "5/x"), move("5/dir-12", "5/dir-5"), move("5/x", "5/dir-12")), 0},
		{"exchanged", func() error {
			return unix.Renameat2(unix.AT_FDCWD, in("5/dir-5"), unix.AT_FDCWD, in("3/dir-3"), unix.RENAME_EXCHANGE)
		}, 0},
		{"in an exchanged one", write("3/dir-3/new"), 60},
		{"removed and made again", all(func() error { return os.RemoveAll(in("n/e")) }, func() error { return os.MkdirAll(in("n/e/v"), 0o755) }, write("n/e/v/file")), 0},
		{"a file for a directory", all(func() error { return os.RemoveAll(in("6/dir-13")) }, write("6/dir-13")), 60},
		{"a directory for a file", all(func() error { return os.Remove(in("6/dir-13")) }, func() error { return os.MkdirAll(in("6/dir-13/sub"), 0o755) }), 0},
		{"masked", write("1/dir-8/some-file-0.h"), 10},
		{"extended attribute", func() error { return unix.Setxattr(in("5/dir-19/some-file-2.h"), "user.x", []byte("y"), 0) }, 60},
		{"root", write("top"), 20},
	}
	for _, tt := range tests {
		before := f.change(t, tt.name, tt.do)
		switch {
		case tt.most == 0 && f.rec.followed:
			t.Errorf("%s: only %d names were looked at", tt.name, f.rec.looked)
		case tt.most > 0 && f.rec.looked > tt.most:
			t.Errorf("%s: %d names were looked at, want at most %d", tt.name, f.rec.looked, tt.most)
		}
		if tt.name == "nothing" && before.root != f.rec.root {
			t.Error("nothing changed, and the record is another")
		}
	}
}

// Random changes, several at a time, followed and looked for.
func TestFollowRandom(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			f := follow(t, 14, 6)
			rnd := rand.New(rand.NewPCG(seed, 1))
			followed := 0
			for i := range 150 {
				f.change(t, fmt.Sprint("step ", i), func() error {
					for range 1 + rnd.IntN(6) {
						randomChange(rnd, f.top)
					}
					return nil
				})
				if f.rec.followed {
					followed++
				}
			}
			if followed < 20 {
				t.Errorf("%d of 150 steps were followed", followed)
			}
		})
	}
}

// randomChange does something to the tree at top, or fails to.
func randomChange(rnd *rand.Rand, top string) {
	var all []string
	_ = filepath.WalkDir(top, func(p string, _ os.DirEntry, _ error) error {
		if p != top {
			all = append(all, p)
		}
		return nil
	})
	if len(all) < 40 {
		_ = os.MkdirAll(filepath.Join(top, fmt.Sprint("d", rnd.IntN(9)), fmt.Sprint("e", rnd.IntN(9))), 0o755)
	}
	if len(all) == 0 {
		return
	}
	a, b := all[rnd.IntN(len(all))], all[rnd.IntN(len(all))]
	fresh := filepath.Join(filepath.Dir(b), fmt.Sprint("n", rnd.IntN(1000)))
	switch rnd.IntN(12) {
	case 0:
		_ = os.WriteFile(a, []byte(fmt.Sprint(rnd.Uint64())), 0o644)
	case 1:
		_ = os.WriteFile(fresh, []byte("new"), 0o644)
	case 2:
		_ = os.Remove(a)
	case 3:
		if rnd.IntN(4) == 0 {
			_ = os.RemoveAll(a)
		}
	case 4, 5:
		_ = os.Rename(a, fresh)
	case 6:
		_ = os.Rename(a, b)
	case 7:
		_ = os.Link(a, fresh)
	case 8:
		_ = os.Mkdir(fresh, 0o755)
	case 9:
		_ = os.Chmod(a, os.FileMode(0o700+rnd.IntN(64)))
	case 10:
		_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	case 11:
		_ = os.Symlink("somewhere", fresh)
	}
}

// Where not all can be watched, or events are lost, all is looked at.
func TestFollowNotAll(t *testing.T) {
	t.Parallel()
	f := follow(t, 20, 3)
	f.watch.lose()
	f.change(t, "lost events", func() error { return os.WriteFile(filepath.Join(f.top, "1", "dir-1", "a"), nil, 0o644) })
	if f.rec.followed {
		t.Error("events were lost and nobody looked")
	}
	f.change(t, "after that", func() error { return os.WriteFile(filepath.Join(f.top, "1", "dir-1", "b"), nil, 0o644) })
	if !f.rec.followed {
		t.Error("all was looked at without need")
	}
	f.watch.most = 30
	f.change(t, "too many", func() error {
		for i := range 10 {
			if err := os.Mkdir(filepath.Join(f.top, fmt.Sprint("new", i)), 0o755); err != nil {
				return err
			}
		}
		return nil
	})
	if f.watch.whole() {
		t.Error("more is watched than may be")
	}
	f.change(t, "after that", func() error { return os.WriteFile(filepath.Join(f.top, "new3", "b"), nil, 0o644) })
	if f.rec.followed {
		t.Error("a directory is not watched and nobody looked")
	}
}

// What is put into the tree before a command and taken out after it is known.
func TestFollowOwn(t *testing.T) {
	t.Parallel()
	f := follow(t, 2, 2)
	hosts := filepath.Join(f.top, "1", "hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost"), 0o644); err != nil {
		t.Fatal(err)
	}
	f.change(t, "in between", func() error { return os.WriteFile(filepath.Join(f.top, "a"), nil, 0o644) })
	if !f.rec.followed {
		t.Error("all was looked at because of a file that was there before")
	}
	if err := os.Remove(hosts); err != nil {
		t.Fatal(err)
	}
	f.change(t, "after", func() error { return nil })
	if !f.rec.followed {
		t.Error("all was looked at because of a file that was there before and is gone")
	}
}

// A queue that overflows is told by the kernel.
func TestFollowOverflow(t *testing.T) {
	t.Parallel()
	f := follow(t, 2, 2)
	dir := filepath.Join(f.top, "1", "dir-1")
	for i := range 20000 { // nobody reads meanwhile; two events in turn are not merged
		p := filepath.Join(dir, fmt.Sprint("f", i%2))
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f.change(t, "after", func() error { return nil })
	if f.rec.followed {
		t.Error("the queue is said not to have been full")
	}
}

// A command that makes any number of names does not take any amount of memory.
func TestWatchForgets(t *testing.T) {
	t.Parallel()
	f := follow(t, 1, 1)
	for i := range mostNames {
		f.watch.event(madeName{1, fmt.Sprint(i)}, unix.IN_CREATE, 0)
	}
	if f.watch.lost {
		t.Error("fewer names than may be are lost")
	}
	for i := range mostNames {
		f.watch.event(madeName{2, fmt.Sprint(i)}, unix.IN_CREATE, 0)
	}
	if n := len(f.watch.made) + f.watch.names; n > 1 {
		t.Errorf("%d names are kept in mind", n)
	}
	if _, ok := f.watch.changed(); ok {
		t.Error("names were forgotten, and nobody is told")
	}
}

func TestWatchesTrusted(t *testing.T) {
	t.Parallel()
	if err := trustsWatches(t.TempDir()); err != nil {
		t.Error(err)
	}
}
