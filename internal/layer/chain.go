// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"hako/internal/tree"
)

// maxScopes bounds the directories a chain remembers; when it is full the
// memory is dropped, which costs a few searches.
const maxScopes = 4096

// A chain is the flattened view of a stack of layers, made of their indexes.
// It is a tree.FS.
type chain struct {
	levels []level // top first
	// shared holds the files that upper layers link to, by level from the
	// bottom and position, so that all their names show one identity.
	shared map[tree.NodeID]bool

	mu     sync.Mutex
	scopes map[string]scope
}

type level struct {
	layer *Layer
	idx   *index
}

// A scope is a directory as the stack has it: the levels that contribute to
// its content, top first. It is empty if the path is no directory.
type scope struct {
	levels []int
	isDir  bool
}

// newChain returns the view of layers, bottom first. Indexes are built, by
// streaming the layer once, where they are not known.
func newChain(ctx context.Context, layers []*Layer) (*chain, error) {
	c := &chain{levels: make([]level, len(layers)), scopes: make(map[string]scope)}
	for i, l := range layers {
		x, err := l.index(ctx)
		if err != nil {
			return nil, err
		}
		c.levels[len(layers)-1-i] = level{layer: l, idx: x}
	}
	// Entries below a directory that a tar only implies go where that name
	// leads in the layers below, which may be through a link; bottom first. So
	// do entries below a link of their own layer.
	for i := len(c.levels) - 1; i >= 0; i-- {
		if !c.levels[i].idx.implied {
			continue
		}
		x, err := c.followImplied(i)
		if err != nil {
			return nil, err
		}
		c.levels[i].idx = x
	}
	return c, c.findShared()
}

// findShared fills c.shared. Only layers with hard links into lower ones, which
// are rare, are looked through.
func (c *chain) findShared() error {
	shared := make(map[tree.NodeID]bool)
	for i, lv := range c.levels {
		if !lv.idx.lowlinks {
			continue
		}
		for k := range lv.idx.count {
			if kind(lv.idx.raw(k)[0])&lowlink == 0 {
				continue
			}
			r, err := lv.idx.record(k)
			if err != nil {
				return err
			}
			_, _, at, err := c.target(r, i)
			if errors.Is(err, fs.ErrNotExist) {
				continue // reported when the name is used
			}
			if err != nil {
				return err
			}
			shared[at] = true
		}
	}
	c.shared = shared
	return nil
}

// below returns the view of the levels under level i.
func (c *chain) below(i int) *chain {
	return &chain{levels: c.levels[i+1:], scopes: make(map[string]scope)}
}

// scope returns what the stack has at the directory p.
func (c *chain) scope(p string) (scope, error) {
	c.mu.Lock()
	s, ok := c.scopes[p]
	c.mu.Unlock()
	if ok {
		return s, nil
	}
	s, err := c.findScope(p)
	if err != nil {
		return s, err
	}
	c.mu.Lock()
	if len(c.scopes) >= maxScopes {
		clear(c.scopes)
	}
	c.scopes[p] = s
	c.mu.Unlock()
	return s, nil
}

func (c *chain) findScope(p string) (scope, error) {
	var candidates []int
	if p == "" {
		for i := range c.levels {
			candidates = append(candidates, i)
		}
	} else {
		up, err := c.scope(tree.Parent(p))
		if err != nil || !up.isDir {
			return scope{}, err
		}
		candidates = up.levels
	}
	s := scope{isDir: p == ""}
	for _, i := range candidates {
		r, ok, err := c.levels[i].idx.get(p)
		if err != nil {
			return s, err
		}
		if !ok {
			if p == "" { // every layer contributes to the root
				s.levels = append(s.levels, i)
			}
			continue
		}
		if r.kind&lowlink != 0 || r.kind&present != 0 && !r.Mode.IsDir() {
			break // a file: it hides what is below, or is hidden by a directory above
		}
		if r.kind&present != 0 {
			s.isDir = true
			s.levels = append(s.levels, i)
		}
		if r.kind&(whiteout|opaque) != 0 {
			break
		}
	}
	return s, nil
}

// find returns the record that the stack shows at p and its level.
func (c *chain) find(op, p string) (record, int, error) {
	up, err := c.scope(tree.Parent(p))
	if err != nil {
		return record{}, 0, err
	}
	if p == "" {
		return c.findRoot(up)
	}
	var v view
	for _, i := range up.levels {
		r, ok, err := c.levels[i].idx.get(p)
		if err != nil {
			return r, i, err
		}
		if ok && v.add(r, i) {
			break
		}
	}
	if !v.ok {
		return record{}, 0, tree.NotExist(op, p)
	}
	return v.record, v.level, nil
}

// A view is what the stack shows of one name, found from its records.
type view struct {
	record
	level int
	ok    bool // there is something
}

// add takes the name's record of the next lower level that has one, and tells
// that those of still lower ones do not matter.
func (v *view) add(r record, level int) (done bool) {
	shown := r.kind&(present|lowlink) != 0
	switch {
	case v.ok && (!shown || !r.Mode.IsDir()):
		return true // the directory that was only implied hides it
	case !shown:
		return true
	case r.kind&implied == 0:
		*v = view{r, level, true}
		return true
	case !v.ok:
		*v = view{r, level, true}
	}
	return r.kind&whiteout != 0
}

// findRoot returns the entry of the root directory: of the topmost layer that
// has one, else 0755 0:0, which is what every runtime starts from.
func (c *chain) findRoot(up scope) (record, int, error) {
	for _, i := range up.levels {
		if r, ok, err := c.levels[i].idx.get(""); err != nil || ok && r.kind&present != 0 && r.kind&implied == 0 {
			return r, i, err
		}
	}
	return record{Entry: tree.Entry{Mode: tree.ModeDir | 0o755, ModTime: time.Unix(0, 0)}, kind: present}, 0, nil
}

// entry turns a record into what the view shows: hard links get an identity,
// links to lower layers the file that they stand for.
func (c *chain) entry(r record, i int) (tree.Entry, error) {
	if r.kind&lowlink != 0 {
		low, _, at, err := c.target(r, i)
		if err != nil {
			return tree.Entry{}, err
		}
		e := low
		if e.Node == (tree.NodeID{}) {
			// The lower file has one name there; its own position serves.
			e.Node = at
		}
		e.Path = r.Path
		return e, nil
	}
	switch {
	case r.group != 0:
		r.Node = tree.NodeID{Dev: uint64(len(c.levels) - i), Ino: r.group}
	case len(c.shared) > 0 && !r.Mode.IsDir():
		if at := c.position(r.Path, i); c.shared[at] {
			r.Node = at
		}
	}
	return r.Entry, nil
}

// target finds the lower layer's file that the hard link r of level i names.
func (c *chain) target(r record, i int) (tree.Entry, level, tree.NodeID, error) {
	none := tree.NodeID{}
	b := c.below(i)
	dir, err := tree.Resolve(b, tree.Parent(r.linkTo), true)
	if err != nil {
		return tree.Entry{}, level{}, none, err
	}
	p := tree.Join(dir, tree.Base(r.linkTo))
	lr, li, err := b.find("link", p)
	if err != nil {
		return tree.Entry{}, level{}, none, fmt.Errorf("hard link /%s to /%s: %w", r.Path, r.linkTo, err)
	}
	if lr.kind&lowlink != 0 {
		return b.target(lr, li)
	}
	if lr.Mode.IsDir() {
		return tree.Entry{}, level{}, none, fmt.Errorf("hard link /%s to the directory /%s", r.Path, r.linkTo)
	}
	e, err := b.entry(lr, li)
	// Identities count levels from the bottom, so they are the same in b and c.
	return e, b.levels[li], b.position(p, li), err
}

// position identifies the record at p in level i.
func (c *chain) position(p string, i int) tree.NodeID {
	return tree.NodeID{Dev: 1<<32 | uint64(len(c.levels)-i), Ino: uint64(c.levels[i].idx.search(p)) + 1}
}

// Lstat implements tree.FS.
func (c *chain) Lstat(p string) (tree.Entry, error) {
	r, i, err := c.find("lstat", p)
	if err != nil {
		return tree.Entry{}, err
	}
	return c.entry(r, i)
}

// ReadDir implements tree.FS.
func (c *chain) ReadDir(p string) ([]tree.Entry, error) {
	s, err := c.scope(p)
	if err != nil {
		return nil, err
	}
	if !s.isDir {
		return nil, tree.NotExist("readdir", p)
	}
	var list []child
	for _, i := range s.levels {
		list = c.levels[i].idx.children(p, i, list)
	}
	if len(s.levels) > 1 {
		slices.SortStableFunc(list, func(a, b child) int { return bytes.Compare(a.name, b.name) })
	}
	entries := make([]tree.Entry, 0, len(list))
	for i := 0; i < len(list); {
		next := i + 1
		for next < len(list) && bytes.Equal(list[next].name, list[i].name) {
			next++
		}
		e, ok, err := c.child(list[i:next])
		if err != nil {
			return nil, err
		}
		if ok {
			entries = append(entries, e)
		}
		i = next
	}
	return entries, nil
}

// A child is a name in a directory and its record in one level.
type child struct {
	name  []byte // in the index
	level int
	at    int
}

// child returns what the stack shows of a name, given where it is recorded, top
// first. It is nothing if there is a whiteout, or hidden by one.
func (c *chain) child(at []child) (tree.Entry, bool, error) {
	var v view
	for _, k := range at {
		r, err := c.levels[k.level].idx.record(k.at)
		if err != nil {
			return tree.Entry{}, false, err
		}
		if v.add(r, k.level) {
			break
		}
	}
	if !v.ok {
		return tree.Entry{}, false, nil
	}
	e, err := c.entry(v.record, v.level)
	if errors.Is(err, fs.ErrNotExist) {
		return tree.Entry{}, false, nil // a link to a lower file that is not there
	}
	return e, err == nil, err
}

// children appends the names in the directory p, sorted.
func (x *index) children(p string, level int, list []child) []child {
	skip := 0
	if p != "" {
		skip = len(p) + 1
	}
	for i := x.search(p); i < x.count; {
		b := x.path(i)
		if !within(b, p) {
			break
		}
		if len(b) <= skip { // p itself; in a broken index again and again
			i++
			continue
		}
		end := len(b)
		if k := bytes.IndexByte(b[skip:], '/'); k >= 0 {
			end = skip + k // cannot be: parents have records
		} else {
			list = append(list, child{name: b[skip:], level: level, at: i})
		}
		// Most names are files: look at the next record before searching.
		if i++; i < x.count && within(x.path(i), b[:end]) {
			i = x.skip(i, string(b[:end]))
		}
	}
	return list
}

// Open implements tree.FS.
func (c *chain) Open(p string) (io.ReadCloser, error) {
	r, i, err := c.find("open", p)
	if err != nil {
		return nil, err
	}
	lv := c.levels[i]
	e := r.Entry
	if r.kind&lowlink != 0 {
		low, at, _, err := c.target(r, i)
		if err != nil {
			return nil, err
		}
		lr, ok, err := at.idx.get(low.Path)
		if err != nil || !ok {
			return nil, fmt.Errorf("open /%s: %w", p, errors.Join(err, fs.ErrNotExist))
		}
		r, lv, e = lr, at, low
	}
	if !e.Mode.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: "/" + p, Err: errors.New("not a regular file")}
	}
	return lv.layer.openContent(context.Background(), r.off, r.Size, r.Digest)
}

// followImplied rewrites level i's index so that entries below implied
// directories lie where these names lead in the levels below. It returns the
// index itself if nothing moves, which is nearly always so.
func (c *chain) followImplied(i int) (*index, error) {
	x := c.levels[i].idx
	b, err := c.ground(i)
	if err != nil {
		return nil, err
	}
	moved := map[string]string{} // implied directory → where it is
	for k := range x.count {
		if kind(x.raw(k)[0])&implied == 0 && !x.passes(k) {
			continue
		}
		p := string(x.path(k))
		to, err := tree.Resolve(b, p, true)
		if err != nil {
			return nil, err
		}
		if to != p {
			moved[p] = to
		}
	}
	if len(moved) == 0 {
		return x, nil
	}
	nb := &indexBuilder{}
	for k := range x.count {
		r, err := x.record(k)
		if err != nil {
			return nil, err
		}
		to, ok := moved[r.Path]
		switch up, below := moved[tree.Parent(r.Path)]; {
		case ok && r.kind&implied != 0:
			if r.kind&whiteout != 0 { // is about the name, not where it leads
				if err := nb.add(&record{Entry: tree.Entry{Path: r.Path}, kind: whiteout}); err != nil {
					return nil, err
				}
			}
			r.Path = to
			r.kind &^= whiteout
		case below:
			if r.kind&present != 0 && r.Mode.IsDir() {
				moved[r.Path] = tree.Join(up, tree.Base(r.Path))
			}
			r.Path = tree.Join(up, tree.Base(r.Path))
		}
		if r.kind&implied != 0 {
			// The builder implies it again, if it is still needed there.
			r = record{Entry: tree.Entry{Path: r.Path}, kind: r.kind & (whiteout | opaque)}
		}
		if r.kind == 0 {
			continue
		}
		if err := nb.add(&r); err != nil {
			return nil, err
		}
	}
	y, err := nb.index()
	if err != nil {
		return nil, err
	}
	y.points = x.points
	return y, nil
}

// ground returns what level i is unpacked onto, as far as names can lead
// through it: the levels under it without what it deletes, with the directories
// that it has entries for and the links that its own entries pass through.
func (c *chain) ground(i int) (*chain, error) {
	x, b := c.levels[i].idx, c.below(i)
	nb := &indexBuilder{}
	for k := 0; k < x.count; {
		r, err := x.record(k)
		if err != nil {
			return nil, err
		}
		next := k + 1
		switch {
		case r.kind&implied != 0:
			to, err := tree.Resolve(b, r.Path, true)
			if err != nil || to != r.Path && r.kind&whiteout == 0 {
				// What is below must not make it a directory here: where it
				// leads is the question.
				next = x.skip(k, r.Path)
			}
			r = record{Entry: tree.Entry{Path: r.Path}, kind: r.kind & whiteout}
		case x.passes(k):
			next = x.skip(k, r.Path)
		case r.kind&present == 0 || !r.Mode.IsDir():
			r = record{Entry: tree.Entry{Path: r.Path}, kind: r.kind & whiteout}
		}
		k = next
		if r.kind == 0 {
			continue
		}
		if err := nb.add(&r); err != nil {
			return nil, err
		}
	}
	y, err := nb.index()
	if err != nil {
		return nil, err
	}
	return &chain{levels: append([]level{{idx: y}}, b.levels...), scopes: make(map[string]scope)}, nil
}

// passes tells whether record k is a link that entries of its own layer lie below.
func (x *index) passes(k int) bool {
	if k+1 >= x.count || kind(x.raw(k)[0])&present == 0 || !within(x.path(k+1), string(x.path(k))) {
		return false
	}
	r, err := x.record(k)
	if err != nil || !r.Mode.IsSymlink() {
		return false
	}
	for k++; k < x.count && within(x.path(k), r.Path); k++ {
		// Deletions below a link are about a directory that it replaces.
		if d := kind(x.raw(k)[0]); d&lowlink != 0 || d&present != 0 && d&implied == 0 {
			return true
		}
	}
	return false
}

// index returns what was collected without storing it.
func (b *indexBuilder) index() (*index, error) {
	var w sliceWriter
	if err := b.finish(&w, nil); err != nil {
		return nil, err
	}
	return parseIndex(w)
}

type sliceWriter []byte

func (w *sliceWriter) Write(b []byte) (int, error) {
	*w = append(*w, b...)
	return len(b), nil
}
