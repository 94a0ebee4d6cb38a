// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"hako/internal/gz"
	"hako/internal/tree"
)

// sample returns an index with one record of each kind.
func sample(tb testing.TB) []byte {
	tb.Helper()
	b := &indexBuilder{}
	e := tree.Entry{ModTime: time.Unix(-7, 5), UID: 3, GID: 4}
	with := func(p string, m tree.Mode, fn func(e *tree.Entry)) {
		x := e
		x.Path, x.Mode = p, m|0o755
		if fn != nil {
			fn(&x)
		}
		if err := b.add(&record{Entry: x, kind: present, off: 512}); err != nil {
			tb.Fatal(err)
		}
	}
	with("d", tree.ModeDir, func(e *tree.Entry) { e.Xattrs = map[string]string{"user.a": "1", "user.b": ""} })
	with("d/f", tree.ModeRegular, func(e *tree.Entry) {
		e.Size, e.Digest = 3, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	})
	with("l", tree.ModeSymlink, func(e *tree.Entry) { e.Link = "d/f" })
	with("c", tree.ModeChar, func(e *tree.Entry) { e.Major, e.Minor = 1, 3 })
	with("implied/x", tree.ModeFIFO, nil)
	for p, k := range map[string]kind{"gone": whiteout, "d": opaque} {
		if err := b.add(&record{Entry: tree.Entry{Path: p}, kind: k}); err != nil {
			tb.Fatal(err)
		}
	}
	if err := errors.Join(b.addLink("hard", "d/f"), b.addLink("low", "elsewhere")); err != nil {
		tb.Fatal(err)
	}
	var w bytes.Buffer
	if err := b.finish(&w, []gz.Checkpoint{{In: 10, Bits: 3, Out: 100, Window: []byte("abc")}, {In: 20, Out: 200}}); err != nil {
		tb.Fatal(err)
	}
	return w.Bytes()
}

// A broken index gives errors, or nonsense that the digests of contents show.
func FuzzIndex(f *testing.F) {
	good := sample(f)
	f.Add(good)
	for _, n := range []int{0, 8, len(good) / 2, len(good) - 1} {
		f.Add(good[:n])
	}
	for _, i := range []int{len(good) - 8, len(good) - 16, len(good) - 24, len(good) - 48, 20} {
		b := bytes.Clone(good)
		b[i] ^= 0x85
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := parseIndex(data)
		if err != nil || x.count > 1000 {
			return
		}
		for i := range x.count {
			if r, err := x.record(i); err == nil && (r.Size < 0 || r.off < 0) {
				t.Errorf("record %d: size %d at %d", i, r.Size, r.off)
			}
			p := string(x.path(i))
			x.skip(i, p)
			_, _, _ = x.get(p)
			x.passes(i)
		}
		x.deletes()
		bottom, err := parseIndex(sample(t))
		if err != nil {
			t.Fatal(err)
		}
		c := &chain{levels: []level{{&Layer{}, x}, {&Layer{}, bottom}}, scopes: map[string]scope{}}
		if y, err := c.followImplied(0); err == nil {
			c.levels[0].idx = y
		}
		_ = c.findShared()
		left := 200
		var walk func(p string)
		walk = func(p string) {
			es, _ := c.ReadDir(p)
			for _, e := range es {
				if left--; left < 0 {
					return
				}
				if e.Mode.IsDir() {
					walk(e.Path)
				}
				if rc, err := c.Open(e.Path); err == nil {
					_, _ = rc.Read(make([]byte, 10))
					rc.Close()
				}
			}
		}
		walk("")
	})
}

// Markers and names are two readings of one string that must not mix.
func FuzzMarker(f *testing.F) {
	for _, s := range []string{"a", ".wh.a", "a/.wh.b", "a/.wh..wh..opq", ".wh..wh.plnk/x", ".wh.", ".wh..", "a/.wh...", "/../.wh.x", ".wh..wh..opq/x", "a/.wh.b/c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		p, err := cleanName(name)
		if err != nil {
			return
		}
		if p != tree.Clean(p) || strings.HasPrefix(p, "/") || p == ".." || strings.HasPrefix(p, "../") {
			t.Fatalf("%q is cleaned to %q", name, p)
		}
		m, about := parseMarker(p)
		if base := tree.Base(about); m != badMarker && (base == ".." || base == "." || about != tree.Clean(about)) {
			t.Errorf("%q is about %q", p, about)
		}
		if m == noMarker && about != p {
			t.Errorf("%q is about %q", p, about)
		}
		if m != noMarker && CheckName(p) == nil {
			t.Errorf("%q is a marker that could be written as a file", p)
		}
		if CheckName(p) == nil && p != "" {
			if m, about := parseMarker(whiteoutPath(p)); m != deleteMarker || about != p {
				t.Errorf("the whiteout %q of %q reads as %d of %q", whiteoutPath(p), p, m, about)
			}
		}
	})
}

func TestIndexRoundTrip(t *testing.T) {
	x, err := parseIndex(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range x.count {
		r, err := x.record(i)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Path)
	}
	if want := "c d d/f gone hard implied implied/x l low"; strings.Join(got, " ") != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if len(x.points) != 2 || string(x.points[0].Window) != "abc" || !x.implied || !x.lowlinks {
		t.Errorf("got %d points, implied %v, low %v", len(x.points), x.implied, x.lowlinks)
	}
	r, ok, err := x.get("hard")
	if err != nil || !ok || r.group == 0 || r.Size != 3 || r.ModTime.UnixNano() != -7e9+5 || r.off != 512 {
		t.Errorf("hard: %+v, %v, %v", r, ok, err)
	}
}
