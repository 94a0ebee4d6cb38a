// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package treetest makes trees from text and text from trees, for tests.
//
// A line is a path, a type and what the type needs, in any order after it:
//
//	/bin        dir  0755 0:0 t=10
//	/bin/sh     file 0755 c=content x.security.capability=abc
//	/bin/ash    hard /bin/sh
//	/sbin       link bin
//	/dev/null   char 0666 1,3
//	/dev/sda    block 0600 8,0
//	/run/pipe   fifo 0644
//	/run/sock   sock 0644
//
// Modes default to 0755 for directories and 0644 otherwise, owners to 0:0 and
// times (t=seconds) to 0. Parents that have no line of their own are made.
package treetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hako/internal/tree"
)

// New returns the tree that text describes.
func New(tb testing.TB, text string) *tree.Overlay {
	tb.Helper()
	o := tree.NewOverlay(nil)
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 {
			if err := Add(o, f); err != nil {
				tb.Fatalf("%s: %v", strings.TrimSpace(line), err)
			}
		}
	}
	return o
}

func types() map[string]tree.Mode {
	return map[string]tree.Mode{
		"dir": tree.ModeDir, "file": tree.ModeRegular, "link": tree.ModeSymlink, "char": tree.ModeChar,
		"block": tree.ModeBlock, "fifo": tree.ModeFIFO, "sock": tree.ModeSocket,
	}
}

// Add makes one line's file in o.
func Add(o *tree.Overlay, f []string) error {
	if len(f) < 2 {
		return fmt.Errorf("want a path and a type")
	}
	e := tree.Entry{Path: tree.Clean(f[0]), Mode: types()[f[1]] | 0o644, ModTime: time.Unix(0, 0)}
	if err := parents(o, tree.Parent(e.Path)); err != nil {
		return err
	}
	switch f[1] {
	case "hard":
		return o.Link(e.Path, tree.Clean(f[2]))
	case "dir":
		e.Mode = tree.ModeDir | 0o755
	case "link":
		e.Mode = tree.ModeSymlink | 0o777
		e.Link, f = f[2], f[1:]
	default:
		if types()[f[1]] == 0 {
			return fmt.Errorf("unknown type %q", f[1])
		}
	}
	var content []byte
	for _, w := range f[2:] {
		if err := word(&e, &content, w); err != nil {
			return err
		}
	}
	switch {
	case e.Mode.IsDir():
		return o.Mkdir(e)
	case e.Mode.IsRegular():
		e.Size = int64(len(content))
		return o.Put(e, Content(content))
	}
	return o.Special(e)
}

// Content returns an opener of b.
func Content(b []byte) tree.Opener {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

func parents(o *tree.Overlay, p string) error {
	if _, err := o.Lstat(p); err == nil {
		return nil
	}
	if err := parents(o, tree.Parent(p)); err != nil {
		return err
	}
	return o.Mkdir(tree.Entry{Path: p, Mode: tree.ModeDir | 0o755, ModTime: time.Unix(0, 0)})
}

// word reads one word after the type into e.
func word(e *tree.Entry, content *[]byte, w string) error {
	if k, v, ok := strings.Cut(w, "="); ok {
		switch {
		case k == "c":
			*content = []byte(v)
			return nil
		case k == "t":
			n, err := strconv.ParseInt(v, 10, 64)
			e.ModTime = time.Unix(n, 0)
			return err
		case strings.HasPrefix(k, "x."):
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[k[2:]] = v
			return nil
		}
	}
	for sep, to := range map[string][2]*uint32{":": {&e.UID, &e.GID}, ",": {&e.Major, &e.Minor}} {
		if a, b, ok := strings.Cut(w, sep); ok {
			x, err := strconv.ParseUint(a, 10, 32)
			y, err2 := strconv.ParseUint(b, 10, 32)
			*to[0], *to[1] = uint32(x), uint32(y)
			return errors.Join(err, err2)
		}
	}
	n, err := strconv.ParseUint(w, 8, 12)
	if err != nil {
		return fmt.Errorf("word %q: %w", w, err)
	}
	e.Mode = e.Mode.Type() | tree.Mode(n)
	return nil
}

// List describes the tree below dir, one line a name, in the order of
// [tree.ComparePaths]. What defaults is left out: owner 0:0 and time 0.
func List(tb testing.TB, fsys tree.FS, dir string) string {
	tb.Helper()
	var b strings.Builder
	first := map[tree.NodeID]string{}
	var walk func(p string)
	walk = func(p string) {
		es, err := fsys.ReadDir(p)
		if err != nil {
			tb.Fatalf("list %q: %v", p, err)
		}
		for _, e := range es {
			one, err := fsys.Lstat(e.Path)
			if err != nil {
				tb.Fatalf("lstat %q: %v", e.Path, err)
			}
			if a, c := line(tb, fsys, e, nil), line(tb, fsys, one, nil); a != c {
				tb.Fatalf("ReadDir and Lstat differ:\n%s%s", a, c)
			}
			b.WriteString(line(tb, fsys, e, first))
			if e.Mode.IsDir() {
				walk(e.Path)
			}
		}
	}
	walk(dir)
	return b.String()
}

func line(tb testing.TB, fsys tree.FS, e tree.Entry, first map[tree.NodeID]string) string {
	if p, ok := first[e.Node]; ok && e.Node != (tree.NodeID{}) {
		return fmt.Sprintf("/%s hard /%s\n", e.Path, p)
	}
	if first != nil {
		first[e.Node] = e.Path
	}
	b := &strings.Builder{}
	fmt.Fprintf(b, "/%s", e.Path)
	for name, t := range types() {
		if t == e.Mode.Type() {
			fmt.Fprintf(b, " %s", name)
		}
	}
	if e.Mode.IsSymlink() {
		fmt.Fprintf(b, " %s", e.Link)
	} else {
		fmt.Fprintf(b, " %04o", e.Mode.Perm())
	}
	if e.UID != 0 || e.GID != 0 {
		fmt.Fprintf(b, " %d:%d", e.UID, e.GID)
	}
	if e.Mode.IsDevice() {
		fmt.Fprintf(b, " %d,%d", e.Major, e.Minor)
	}
	if n := e.ModTime.Unix(); n != 0 && !e.ModTime.IsZero() {
		fmt.Fprintf(b, " t=%d", n)
	}
	if e.Mode.IsRegular() && e.Size > 0 {
		r, err := fsys.Open(e.Path)
		if err != nil {
			tb.Fatalf("open %q: %v", e.Path, err)
		}
		c, err := io.ReadAll(r)
		if err != nil {
			tb.Fatalf("read %q: %v", e.Path, err)
		}
		r.Close()
		fmt.Fprintf(b, " c=%s", c)
	}
	for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
		fmt.Fprintf(b, " x.%s=%s", k, e.Xattrs[k])
	}
	return b.String() + "\n"
}

// MemoryDir returns a directory like tb.TempDir, in memory where there is a place
// for that: most of what some fuzz targets do is to make and delete files.
func MemoryDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "hako-test-") //nolint:usetesting // TempDir is on a disk
	if err != nil {
		return tb.TempDir()
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}
