// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"
	"strings"
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
	var dir *record // implied directory met above
	at := 0
	for _, i := range up.levels {
		r, ok, err := c.levels[i].idx.get(p)
		if err != nil {
			return r, i, err
		}
		if !ok {
			continue
		}
		shown := r.kind&(present|lowlink) != 0
		if dir != nil && (!shown || !r.Mode.IsDir()) {
			break
		}
		switch {
		case !shown:
			return record{}, 0, tree.NotExist(op, p)
		case r.kind&implied == 0:
			return r, i, nil
		case dir == nil:
			dir, at = &r, i
		}
		if r.kind&whiteout != 0 {
			break
		}
	}
	if dir != nil {
		return *dir, at, nil
	}
	return record{}, 0, tree.NotExist(op, p)
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
	names := make(map[string]struct{})
	for _, i := range s.levels {
		c.levels[i].idx.children(p, func(name string) { names[name] = struct{}{} })
	}
	list := make([]string, 0, len(names))
	for n := range names {
		list = append(list, n)
	}
	sort.Strings(list)
	entries := make([]tree.Entry, 0, len(list))
	for _, n := range list {
		e, err := c.Lstat(tree.Join(p, n))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a whiteout, or hidden by one
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// children calls fn with the names in the directory p.
func (x *index) children(p string, fn func(name string)) {
	for i := x.search(p); i < x.count; {
		b := x.path(i)
		if !within(b, p) {
			return
		}
		name := strings.TrimPrefix(string(b[len(p):]), "/")
		if name == "" { // p itself; in a broken index again and again
			i++
			continue
		}
		if k := strings.IndexByte(name, '/'); k >= 0 {
			name = name[:k] // cannot be: parents have records
		}
		fn(name)
		// Most names are files: look at the next record before searching.
		child := tree.Join(p, name)
		if i++; i < x.count && within(x.path(i), child) {
			i = x.skip(i, child)
		}
	}
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
