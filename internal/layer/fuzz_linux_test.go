// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
	"hako/internal/tree/treetest"
)

// FuzzUnpackTar unpacks two hostile layers on each other, beside files that must
// stay as they are, and looks at them as a tree.
func FuzzUnpackTar(f *testing.F) {
	link := func(name, to string) member {
		return member{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, ""}
	}
	hard := func(name, to string) member {
		return member{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}, ""}
	}
	file := func(name string) member { return member{fileHeader(name), "bad"} }
	for _, ms := range [][2][]member{
		{{link("l", "/"), file("l/victim")}, {file("l/victim")}},
		{{link("l", "../.."), file("l/victim")}, {file("l/x/victim"), file("l/.wh.victim")}},
		{{link("l", "/proc/self/root"), file("l/tmp/x")}, {hard("h", "l/etc/passwd")}},
		{{link("l", "/proc/self/cwd/.."), file("l/victim")}, {file("l/.wh..wh..opq")}},
		{{link("l", "../victim"), file("l")}, {hard("l", "../victim"), {dirHeader("l", 0o777, 1), ""}}},
		{{link("a", "b"), link("b", "a"), file("a/x")}, {file("a/.wh.x"), file("b/.wh..wh..opq")}},
		{{hard("h", "../victim")}, {hard("h", "/victim"), hard("h", "h")}},
		{{link(".", "/"), file("..")}, {file("."), file(".wh..")}},
		{{file("d/.wh...")}, {file(".wh..."), file(".wh."), file("d/.wh./x")}},
		{{{dirHeader("d", 0o755, 0), ""}, file("d/f"), link("d", "/victims")}, {file("d/.wh..wh..opq"), file("d/f")}},
	} {
		f.Add(tarOf(f, ms[0]...), tarOf(f, ms[1]...))
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		if len(one)+len(two) > 1<<16 {
			return
		}
		st, err := store.Open(treetest.MemoryDir(t))
		if err != nil {
			t.Fatal(err)
		}
		ls := []*layer.Layer{foreign(st, one, one), foreign(st, two, two)}
		checkView(t, ls)
		if os.Getuid() == 0 {
			checkEscape(t, ls)
		}
	})
}

// checkView walks the layers as a tree.
func checkView(t *testing.T, ls []*layer.Layer) {
	fsys, err := (&layer.Ref{Layers: ls}).Tree(t.Context())
	if err != nil {
		return
	}
	_ = tree.Walk(t.Context(), fsys, "", func(e tree.Entry) error {
		if e.Path != tree.Clean(e.Path) {
			t.Errorf("a path %q", e.Path)
		}
		if one, err := fsys.Lstat(e.Path); err == nil && one.Mode != e.Mode {
			t.Errorf("%s: %o and %o", e.Path, one.Mode, e.Mode)
		}
		if e.Mode.IsRegular() {
			if rc, err := fsys.Open(e.Path); err == nil {
				_, _ = rc.Read(make([]byte, 100))
				rc.Close()
			}
		}
		return nil
	})
}

// checkEscape unpacks the layers, with the index known and not known.
func checkEscape(t *testing.T, ls []*layer.Layer) {
	out := treetest.MemoryDir(t)
	root := filepath.Join(out, "root")
	err := errors.Join(os.Mkdir(root, 0o755), os.Mkdir(filepath.Join(out, "victims"), 0o755),
		os.WriteFile(filepath.Join(out, "victim"), []byte("good"), 0o600), os.WriteFile(filepath.Join(out, "victims/f"), []byte("good"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	r, err := layer.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range ls {
		_ = r.Apply(t.Context(), l, true)
	}
	_ = r.Close()
	if err := layer.RemoveAll(root); err != nil {
		t.Errorf("remove: %v", err)
	}
	var names []string
	_ = filepath.WalkDir(out, func(p string, _ os.DirEntry, _ error) error {
		names = append(names, p)
		return nil
	})
	if len(names) != 4 {
		t.Errorf("there are %v", names)
	}
	for _, p := range []string{"victim", "victims/f"} {
		p = filepath.Join(out, p)
		b, err := os.ReadFile(p)
		if fi, serr := os.Lstat(p); serr != nil || fi.Mode() != 0o600 || err != nil || string(b) != "good" {
			t.Errorf("%s: %q, %v, %v", p, b, fi, err)
		}
	}
}
