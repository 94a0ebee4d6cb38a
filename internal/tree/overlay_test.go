// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hako/internal/tree"
	"hako/internal/tree/treetest"
)

// changes describes an overlay's changes, a line each, and checks what any
// sequence must keep to.
func changes(t *testing.T, o *tree.Overlay) ([]tree.Change, string) {
	t.Helper()
	var out []tree.Change
	var b strings.Builder
	seen := map[string]tree.Change{}
	last := ""
	for c, err := range o.Changes() {
		if err != nil {
			t.Fatalf("changes: %v", err)
		}
		if c.Path == "" || (last != "" && tree.ComparePaths(last, c.Path) >= 0) {
			t.Fatalf("change %q after %q", c.Path, last)
		}
		last = c.Path
		if p, ok := seen[tree.Parent(c.Path)]; tree.Parent(c.Path) != "" && (!ok || p.Deleted || !p.Mode.IsDir()) {
			t.Fatalf("change %q without its parent", c.Path)
		}
		if c.LinkTo != "" {
			if f, ok := seen[c.LinkTo]; !ok || f.Deleted || f.Node != c.Node {
				t.Fatalf("change %q links to %q, which is not there", c.Path, c.LinkTo)
			}
		}
		seen[c.Path] = c
		out = append(out, c)
		switch {
		case c.Deleted:
			fmt.Fprintf(&b, "- %s\n", c.Path)
		case c.LinkTo != "":
			fmt.Fprintf(&b, "= %s %s\n", c.Path, c.LinkTo)
		case c.Touched:
			fmt.Fprintf(&b, "+ %s\n", c.Path)
		default:
			fmt.Fprintf(&b, "  %s\n", c.Path)
		}
	}
	return out, b.String()
}

// apply makes changes in a copy of what they are against.
func apply(t *testing.T, o *tree.Overlay, cs []tree.Change) {
	t.Helper()
	for _, c := range cs {
		var err error
		e := c.Entry
		e.Node = tree.NodeID{}
		old, lerr := o.Lstat(c.Path)
		switch {
		case c.Deleted:
			if lerr != nil {
				t.Fatalf("%s: deleted but not in the base", c.Path)
			}
			err = o.Remove(c.Path)
		case c.LinkTo != "":
			err = o.Link(c.Path, c.LinkTo)
		case c.Mode.IsDir():
			err = o.Mkdir(e)
		case c.Mode.IsRegular():
			err = o.Put(e, c.Open)
		default:
			err = o.Special(e)
		}
		if !c.Touched && !c.Deleted && c.LinkTo == "" && (lerr != nil || !old.Mode.IsDir()) {
			t.Fatalf("%s: not touched but not there", c.Path)
		}
		if err != nil {
			t.Fatalf("apply %q: %v", c.Path, err)
		}
	}
}

const base = `
/d dir 0755
/d/a file c=a t=3
/d/b file c=b t=3
/d/sub dir 0700
/d/sub/x file c=x
/e dir 1777
/e/y file c=y
/f file c=f
/l link d
`

func TestOverlayChanges(t *testing.T) {
	t.Parallel()
	file := func(p, c string) func(o *tree.Overlay) error {
		return func(o *tree.Overlay) error {
			return o.Put(tree.Entry{Path: p, Mode: tree.ModeRegular | 0o644, Size: int64(len(c)), ModTime: time.Unix(3, 0)}, treetest.Content([]byte(c)))
		}
	}
	dir := func(p string, m tree.Mode) func(o *tree.Overlay) error {
		return func(o *tree.Overlay) error { return o.Mkdir(tree.Entry{Path: p, Mode: tree.ModeDir | m}) }
	}
	rm := func(p string) func(o *tree.Overlay) error {
		return func(o *tree.Overlay) error { return o.Remove(p) }
	}
	link := func(n, p string) func(o *tree.Overlay) error {
		return func(o *tree.Overlay) error { return o.Link(n, p) }
	}
	for _, tt := range []struct {
		name string
		ops  []func(o *tree.Overlay) error
		want string
	}{
		{"nothing", nil, ""},
		{"same file", []func(*tree.Overlay) error{file("d/a", "a")}, ""},
		{"other content", []func(*tree.Overlay) error{file("d/a", "A")}, "  d\n+ d/a\n"},
		{"parents with the base's metadata", []func(*tree.Overlay) error{file("d/sub/n", "1")}, "  d\n  d/sub\n+ d/sub/n\n"},
		{"same dir", []func(*tree.Overlay) error{dir("e", 0o1777)}, ""},
		{"dir changed", []func(*tree.Overlay) error{dir("e", 0o755)}, "+ e\n"},
		{"dir time only", []func(*tree.Overlay) error{func(o *tree.Overlay) error {
			return o.SetAttr("e", func(e *tree.Entry) { e.ModTime = time.Unix(9, 0) })
		}}, ""},
		{"file for dir", []func(*tree.Overlay) error{file("d", "n")}, "+ d\n"},
		{"dir for file", []func(*tree.Overlay) error{dir("f", 0o755), file("f/n", "1")}, "+ f\n+ f/n\n"},
		{"dir again", []func(*tree.Overlay) error{rm("d"), dir("d", 0o755), file("d/b", "b")}, "  d\n- d/a\n- d/sub\n"},
		{"dir again, nested", []func(*tree.Overlay) error{rm("d"), dir("d", 0o750), dir("d/sub", 0o700)}, "+ d\n- d/a\n- d/b\n  d/sub\n- d/sub/x\n"},
		{"removed and made elsewhere", []func(*tree.Overlay) error{rm("d"), file("g", "1"), rm("g")}, "- d\n"},
		{"link to the base", []func(*tree.Overlay) error{link("e/z", "d/a")}, "  d\n+ d/a\n  e\n= e/z d/a\n"},
		{"link sorted before its file", []func(*tree.Overlay) error{link("a", "f")}, "+ a\n= f a\n"},
		{"link unlinked", []func(*tree.Overlay) error{link("a", "f"), rm("a")}, ""},
		{"order", []func(*tree.Overlay) error{file("a.b", "1"), dir("a", 0o755), file("a/x", "1")}, "+ a\n+ a/x\n+ a.b\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := tree.NewOverlay(treetest.New(t, base))
			for _, op := range tt.ops {
				if err := op(o); err != nil {
					t.Fatal(err)
				}
			}
			cs, got := changes(t, o)
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("changes (-want +got):\n%s", d)
			}
			on := treetest.New(t, base)
			apply(t, on, cs)
			if d := cmp.Diff(noDirTimes(treetest.List(t, o, "")), noDirTimes(treetest.List(t, on, ""))); d != "" {
				t.Errorf("applied (-overlay +applied):\n%s", d)
			}
		})
	}
}

// noDirTimes drops the times of directories: alone they are no change.
func noDirTimes(s string) string {
	var out []string
	for l := range strings.Lines(s) {
		if f := strings.Fields(l); f[1] == "dir" {
			f = slices.DeleteFunc(f, func(w string) bool { return strings.HasPrefix(w, "t=") })
			l = strings.Join(f, " ") + "\n"
		}
		out = append(out, l)
	}
	return strings.Join(out, "")
}

// A model is a tree as simple as can be: what hard links share is a pointer.
type model map[string]*tree.Entry

func (m model) dir(p string) bool { return p == "" || (m[p] != nil && m[p].Mode.IsDir()) }

func (m model) rm(p string) {
	for q := range m {
		if tree.Within(q, p) {
			delete(m, q)
		}
	}
}

// list describes m in the form of treetest.List; text of files is in Link.
func (m model) list() string {
	var b strings.Builder
	first := map[*tree.Entry]string{}
	for _, p := range slices.SortedFunc(maps.Keys(m), tree.ComparePaths[string, string]) {
		e := m[p]
		if f, ok := first[e]; ok {
			fmt.Fprintf(&b, "/%s hard /%s\n", p, f)
			continue
		}
		first[e] = p
		switch {
		case e.Mode.IsDir():
			fmt.Fprintf(&b, "/%s dir %04o", p, e.Mode.Perm())
		case e.Mode.IsSymlink():
			fmt.Fprintf(&b, "/%s link %s", p, e.Link)
		default:
			fmt.Fprintf(&b, "/%s file %04o c=%s", p, e.Mode.Perm(), e.Link)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestOverlayRandom(t *testing.T) {
	t.Parallel()
	for seed := range uint64(400) {
		randomRun(t, seed)
	}
}

func randomRun(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	o, m := tree.NewOverlay(nil), model{}
	mutate(t, rnd, o, m, 15)
	under, before := o, m.list()
	o = tree.NewOverlay(under)
	if seed%3 == 0 {
		o = o.Clone()
	}
	// Hard links of the base are cut when one name is written to; the model
	// begins with separate files, as layers do not link to lower ones.
	cut := model{}
	for p, e := range m {
		c := *e
		cut[p] = &c
	}
	for p := range cut {
		if e, _ := under.Lstat(p); e.Node != (tree.NodeID{}) {
			return // covered by the table above
		}
	}
	mutate(t, rnd, o, cut, 20)
	if d := cmp.Diff(cut.list(), treetest.List(t, o, "")); d != "" {
		t.Fatalf("seed %d: view (-model +overlay):\n%s", seed, d)
	}
	if d := cmp.Diff(before, treetest.List(t, under, "")); d != "" {
		t.Fatalf("seed %d: base changed:\n%s", seed, d)
	}
	cs, text := changes(t, o)
	on := under.Clone()
	apply(t, on, cs)
	if d := cmp.Diff(cut.list(), treetest.List(t, on, "")); d != "" {
		t.Fatalf("seed %d: applied (-model +applied):\n%s\nchanges:\n%s", seed, d, text)
	}
}

// mutate does n random things to o and m alike.
func mutate(t *testing.T, rnd *rand.Rand, o *tree.Overlay, m model, n int) {
	t.Helper()
	name := func() string {
		p := string('a' + rune(rnd.IntN(3)))
		for rnd.IntN(2) == 0 {
			p = tree.Join(p, string('a'+rune(rnd.IntN(3))))
		}
		return p
	}
	for i := range n {
		p, q := name(), name()
		ok := m.dir(tree.Parent(p))
		var err error
		e := &tree.Entry{Path: p, Mode: 0o600 + tree.Mode(rnd.IntN(3))}
		switch rnd.IntN(7) {
		case 0, 1:
			e.Mode |= tree.ModeDir
			err = o.Mkdir(*e)
			if ok {
				if !m.dir(p) {
					m.rm(p)
				}
				m[p] = e
			}
		case 2, 3:
			e.Mode |= tree.ModeRegular
			e.Link = fmt.Sprint("v", rnd.IntN(3))
			pe := *e
			pe.Link, pe.Size = "", int64(len(e.Link))
			err = o.Put(pe, treetest.Content([]byte(e.Link)))
			if ok {
				m.rm(p)
				m[p] = e
			}
		case 4:
			e.Mode, e.Link = tree.ModeSymlink|0o777, fmt.Sprint("t", i)
			err = o.Special(*e)
			if ok {
				m.rm(p)
				m[p] = e
			}
		case 5:
			err, ok = o.Remove(p), true
			m.rm(p)
		case 6:
			// Removing newpath must not remove oldpath with it.
			ok = ok && m[q] != nil && !m[q].Mode.IsDir() && p != q && !tree.Within(q, p)
			if ok || (m[q] == nil || p == q) {
				err = o.Link(p, q)
			} else {
				continue
			}
			if ok {
				f := m[q]
				m.rm(p)
				m[p] = f
			}
		}
		if (err == nil) != ok {
			t.Fatalf("op on %q (%q): err %v, model ok %v", p, q, err, ok)
		}
	}
}

func TestOpenerKeepsContent(t *testing.T) {
	t.Parallel()
	o := treetest.New(t, "/a file c=old")
	open, err := o.Opener("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Remove("a"); err != nil {
		t.Fatal(err)
	}
	r, err := open()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 9)
	if n, _ := r.Read(b); string(b[:n]) != "old" {
		t.Errorf("read %q", b[:n])
	}
}

func TestSizeChecked(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{2, 4} {
		o := tree.NewOverlay(nil)
		if err := o.Put(tree.Entry{Path: "a", Mode: tree.ModeRegular, Size: size}, treetest.Content([]byte("abc"))); err != nil {
			t.Fatal(err)
		}
		r, err := o.Open("a")
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = r.Read(make([]byte, 2))
		}
		if _, ok := errors.AsType[*tree.SizeError](err); !ok {
			t.Errorf("size %d: error %v, want a SizeError", size, err)
		}
	}
}

func TestOverlayErrors(t *testing.T) {
	t.Parallel()
	o := tree.NewOverlay(treetest.New(t, base))
	if err := o.Put(tree.Entry{Path: "f/x", Mode: tree.ModeRegular}, nil); err == nil {
		t.Error("put below a file: no error")
	}
	if err := o.Put(tree.Entry{Path: "l/x", Mode: tree.ModeRegular}, nil); err == nil {
		t.Error("put below a link: no error")
	}
	if _, err := o.ReadDir("no"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read missing directory: %v", err)
	}
	if err := o.Link("x", "d"); err == nil {
		t.Error("link to a directory: no error")
	}
	if _, text := changes(t, o); text != "" {
		t.Errorf("failed operations left changes:\n%s", text)
	}
}
