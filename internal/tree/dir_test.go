// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hako/internal/tree"
)

func openDir(t testing.TB, path string) *tree.Dir {
	t.Helper()
	d, err := tree.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func write(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func symlink(t testing.TB, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Skipf("symbolic links cannot be made here: %v", err)
	}
}

func read(fsys tree.FS, p string) (string, error) {
	r, err := fsys.Open(p)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

func TestDirEntries(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, root, map[string]string{"b": "bb", "a.b": "", "a/x": "xyz"})
	symlink(t, "../nowhere", filepath.Join(root, "l"))
	when := time.Unix(1234567890, 987654321)
	if err := os.Chtimes(filepath.Join(root, "b"), when, when); err != nil {
		t.Fatal(err)
	}
	d := openDir(t, root)
	var got []string
	err := tree.Walk(t.Context(), d, "", func(e tree.Entry) error {
		got = append(got, fmt.Sprintf("%s %o %d %s", e.Path, e.Mode.Type()>>12, e.Size, e.Link))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{" 4 0 ", "a 4 0 ", "a/x 10 3 ", "a.b 10 0 ", "b 10 2 ", "l 12 0 ../nowhere"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	e, err := d.Lstat("b")
	if err != nil || !e.ModTime.Equal(when) {
		t.Errorf("mtime = %v, %v, want %v", e.ModTime, err, when)
	}
	if s, err := read(d, "a/x"); s != "xyz" || err != nil {
		t.Errorf("read a/x = %q, %v", s, err)
	}
}

func TestWalkSkips(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write(t, root, map[string]string{"a/1": "", "a/2": "", "b/1": "", "c": ""})
	for stop, want := range map[string][]string{
		"a":   {"", "a", "b", "b/1", "c"},
		"a/1": {"", "a", "a/1", "b", "b/1", "c"},
		"c":   {"", "a", "a/1", "a/2", "b", "b/1", "c"},
		"":    {""},
	} {
		var got []string
		err := tree.Walk(t.Context(), openDir(t, root), "", func(e tree.Entry) error {
			got = append(got, e.Path)
			if e.Path == stop {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("skip at %q: %q, %v, want %q", stop, got, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := tree.Walk(ctx, openDir(t, root), "", func(tree.Entry) error { return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("walk after cancel: %v", err)
	}
}

// TestDirStays is about everything that could lead out of the directory.
func TestDirStays(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	write(t, outside, map[string]string{"secret": "S"})
	root := filepath.Join(outside, "root")
	write(t, root, map[string]string{"in/f": "inside"})
	symlink(t, outside, filepath.Join(root, "abs"))
	symlink(t, "..", filepath.Join(root, "up"))
	symlink(t, "/proc/self/root", filepath.Join(root, "magic"))
	symlink(t, "loop", filepath.Join(root, "loop"))
	symlink(t, "in", filepath.Join(root, "ok"))
	d := openDir(t, root)
	for _, p := range []string{
		"..", "../secret", "in/../../secret", "abs/secret", "up/secret", "magic/etc/passwd",
		"loop/x", "/in/f", "in//f", "in/./f", "in/f/", "ok/f", "in/f/x", "none", "a\x00b", "no/such",
		string(make([]byte, 10)),
	} {
		if _, err := d.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Lstat(%q): %v, want not exist", p, err)
		}
		if _, err := d.ReadDir(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ReadDir(%q): %v, want not exist", p, err)
		}
		if _, err := d.Open(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open(%q): %v, want not exist", p, err)
		}
	}
	for _, p := range []string{"abs", "up", "loop", "in", ""} {
		if _, err := d.Open(p); !errors.Is(err, tree.ErrNotRegular) {
			t.Errorf("Open(%q): %v, want %v", p, err, tree.ErrNotRegular)
		}
	}
	for _, p := range []string{"abs", "in/f"} {
		if _, err := d.ReadDir(p); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ReadDir(%q): %v, want not a directory", p, err)
		}
	}
	if _, err := tree.Resolve(d, "loop", true); !errors.Is(err, tree.ErrTooManyLinks) {
		t.Errorf("resolve a loop: %v", err)
	}
}

func TestDirIsAHandle(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "d")
	write(t, root, map[string]string{"f": "old"})
	d := openDir(t, root)
	if err := os.Rename(root, root+".moved"); err != nil {
		t.Skipf("an open directory cannot be renamed here: %v", err)
	}
	write(t, root, map[string]string{"f": "new"})
	if s, err := read(d, "f"); s != "old" || err != nil {
		t.Errorf("read f = %q, %v, want the directory that was opened", s, err)
	}
}

func FuzzDirResolve(f *testing.F) {
	for _, s := range [][3]string{
		{"a/b", "../..", "a/b/secret"}, {"l", "/", "l/../secret"}, {"x", "x/../..", "x"},
		{"p", "../secret", "p"}, {"p", "/../../../etc", "p/passwd"}, {"a", ".", "a/a/a/../../secret"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, link, target, p string) {
		outside := t.TempDir()
		write(t, outside, map[string]string{"secret": "OUTSIDE"})
		root := filepath.Join(outside, "root")
		write(t, root, map[string]string{"secret": "in", "a/secret": "in"})
		at := tree.Clean(link)
		if at != "" {
			_ = os.MkdirAll(filepath.Join(root, filepath.FromSlash(tree.Parent(at))), 0o755)
			_ = os.Symlink(target, filepath.Join(root, filepath.FromSlash(at)))
		}
		d := openDir(t, root)
		got, err := tree.Resolve(d, p, true)
		if err != nil {
			return
		}
		if tree.Clean(got) != got {
			t.Fatalf("Resolve(%q) = %q is not clean", p, got)
		}
		for _, q := range []string{got, p} {
			if s, err := read(d, q); err == nil && s != "in" {
				t.Fatalf("%q (link %q to %q) read %q", q, link, target, s)
			}
		}
	})
}

func BenchmarkDirWalk(b *testing.B) {
	root := b.TempDir()
	const files = 10000
	for i := range files {
		write(b, root, map[string]string{fmt.Sprintf("d%d/e%d/file%d", i%20, i%200, i): "x"})
	}
	for name, d := range map[string]*tree.Dir{"plain": openDir(b, root), "xattrs": openDir(b, root).WithXattrs()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n = 0
				if err := tree.Walk(b.Context(), d, "", func(tree.Entry) error { n++; return nil }); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/file")
		})
	}
}
