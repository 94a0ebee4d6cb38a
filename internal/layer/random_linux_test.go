// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hako/internal/layer"
	"hako/internal/tree"
	"hako/internal/tree/treetest"
)

// change does something random to o; what is not possible is left.
func change(t *testing.T, r *rand.Rand, o *tree.Overlay) {
	t.Helper()
	name := func() string {
		var c []string
		for range 1 + r.IntN(3) {
			c = append(c, string("abc"[r.IntN(3)]))
		}
		return strings.Join(c, "/")
	}
	p := name()
	if up, err := o.Lstat(tree.Parent(p)); err != nil || !up.Mode.IsDir() {
		return
	}
	e := tree.Entry{
		Path: p, UID: uint32(r.IntN(2) * 1000), GID: uint32(r.IntN(2) * 5), ModTime: time.Unix(int64(r.IntN(1e9)), 0),
		Mode: tree.Mode(r.IntN(0o10000)),
	}
	var err error
	switch r.IntN(9) {
	case 0, 1:
		e.Mode |= tree.ModeDir
		err = o.Mkdir(e)
	case 2, 3:
		e.Mode |= tree.ModeRegular
		content := strings.Repeat("x", r.IntN(2)*r.IntN(1000))
		if e.Size = int64(len(content)); r.IntN(3) == 0 {
			e.Xattrs = map[string]string{"security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
		}
		err = o.Put(e, treetest.Content([]byte(content)))
	case 4:
		e.Mode, e.Link = tree.ModeSymlink|0o777, name()
		err = o.Special(e)
	case 5:
		e.Mode |= []tree.Mode{tree.ModeChar, tree.ModeBlock, tree.ModeFIFO}[r.IntN(3)]
		if e.Mode.IsDevice() {
			e.Major, e.Minor = 1, uint32(r.IntN(300))
		}
		err = o.Special(e)
	case 6:
		err = o.Remove(p)
	case 7:
		_ = o.Link(p, name()) // the other may not be there, or be a directory
	case 8:
		_ = o.SetAttr(p, func(old *tree.Entry) { old.UID, old.Mode = e.UID, old.Mode.Type()|e.Mode })
	}
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
}

// Random changes, written as layers, are the same tree in every form: as
// pending changes, as layers written here, on disk made of the changes and of the
// blobs, as layers that came from elsewhere, and unpacked by containerd.
func TestRandomChanges(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for seed := range 60 {
		r := rand.New(rand.NewPCG(uint64(seed), 2))
		st, other := open(t), open(t)
		var made, came []*layer.Layer
		var tars [][]byte
		want := ""
		for range 1 + r.IntN(3) {
			base, err := (&layer.Ref{Layers: made}).Tree(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			o := tree.NewOverlay(base)
			for range 40 {
				change(t, r, o)
			}
			want = treetest.List(t, o, "")
			l, err := layer.Write(t.Context(), st, o.Changes(), layer.WriteOptions{Created: time.Unix(5, 0), Workers: 2, Zstd: seed%4 == 0})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			made = append(made, l)
			f := layer.New(other, l.DiffID(), l.Descriptor(), source{l})
			came = append(came, f)
			tars = append(tars, plainOf(t, l))
		}
		same := func(what, got string) {
			t.Helper()
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("seed %d: %s (-want +got):\n%s", seed, what, d)
			}
		}
		onDisk := func(what string, dir string, err error) {
			t.Helper()
			if err != nil {
				t.Errorf("seed %d: %s: %v", seed, what, err)
				return
			}
			same(what, disk(t, dir))
		}
		for what, ls := range map[string][]*layer.Layer{"written": made, "foreign": came} {
			fsys, err := (&layer.Ref{Layers: ls}).Tree(t.Context())
			if err != nil {
				t.Fatalf("seed %d: %s: %v", seed, what, err)
			}
			same("view of "+what+" layers", treetest.List(t, fsys, ""))
			dir, err := unpacked(t, ls...)
			onDisk(what+" layers unpacked", dir, err)
		}
		for _, l := range made {
			l.Forget()
		}
		dir, err := unpacked(t, made...)
		onDisk("forgotten layers unpacked", dir, err)
		dir, err = containerd(t, tars...)
		onDisk("unpacked by containerd", dir, err)
	}
}

// plainOf returns a layer's tar.
func plainOf(t *testing.T, l *layer.Layer) []byte {
	t.Helper()
	rc, err := l.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	blob, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return inflated(t, blob)
}

// An implied directory in a setgid one takes the group, not the bit.
func TestImpliedDirInSetgid(t *testing.T) {
	t.Parallel()
	needRoot(t)
	st := open(t)
	b := tarOf(t, member{dirHeader("d", 0o2775, 7), ""}, member{fileHeader("d/e/f"), "x"})
	dir, err := unpacked(t, foreign(st, b, b))
	if err != nil {
		t.Fatal(err)
	}
	if got := withoutDirTimes(disk(t, dir)); !strings.Contains(got, "/d/e dir 0755 0:7\n") {
		t.Errorf("got:\n%s", got)
	}
}
