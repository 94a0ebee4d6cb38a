// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"errors"
	"io/fs"
	"iter"
	"maps"
	"slices"
)

// Changes yields what turns the base into the overlay's tree. A name whose new
// entry says what the base says already is left out ([Same]), as is a directory
// that differs in its time only, unless something below it changed. The root
// itself is never in the sequence, as no layer records it.
//
// Of a file with several names made here the first in the sequence carries
// content and the others link to it. A name that was linked to is in the
// sequence even if the base has it unchanged: a layer cannot link to a file of
// a lower one.
func (o *Overlay) Changes() iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		w := &changeWalk{o: o, yield: yield, first: map[*inode]string{}}
		if _, err := w.kids("", o.root); err != nil {
			yield(Change{}, err)
		}
	}
}

// A changeWalk is one pass over an overlay's items.
type changeWalk struct {
	o       *Overlay
	yield   func(Change, error) bool
	parents []Change          // directories on the way that are not yielded yet
	first   map[*inode]string // first name of files with several
}

// emit yields c after the parents that are still to come. It reports whether
// to go on.
func (w *changeWalk) emit(c Change) bool {
	for _, p := range w.parents {
		if !w.yield(p, nil) {
			return false
		}
	}
	w.parents = w.parents[:0]
	return w.yield(c, nil)
}

// baseLstat returns the base's entry of p, nil if it has none.
func (w *changeWalk) baseLstat(p string) (*Entry, error) {
	if w.o.base == nil {
		return nil, nil
	}
	e, err := w.o.base.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &e, nil
}

// kids walks what is below the directory p.
func (w *changeWalk) kids(p string, dir *item) (bool, error) {
	names := slices.Collect(maps.Keys(dir.kids))
	if dir.opaque {
		gone, err := w.hidden(p, dir)
		if err != nil {
			return false, err
		}
		names = append(names, gone...)
	}
	slices.Sort(names)
	for _, name := range names {
		q := Join(p, name)
		k := dir.kids[name]
		if k == nil {
			if !w.emit(Change{Entry: Entry{Path: q}, Deleted: true}) {
				return false, nil
			}
			continue
		}
		if ok, err := w.item(q, k); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// hidden returns the names that the base has in the directory p and that the
// opaque directory there has not.
func (w *changeWalk) hidden(p string, dir *item) ([]string, error) {
	b, err := w.baseLstat(p)
	if err != nil || b == nil || !b.Mode.IsDir() {
		return nil, err
	}
	es, err := w.o.base.ReadDir(p)
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, e := range es {
		if dir.kids[e.Name()] == nil {
			gone = append(gone, e.Name())
		}
	}
	return gone, nil
}

// item walks one name.
func (w *changeWalk) item(p string, it *item) (bool, error) {
	old, err := w.baseLstat(p)
	if err != nil {
		return false, err
	}
	if it.deleted {
		return old == nil || w.emit(Change{Entry: Entry{Path: p}, Deleted: true}), nil
	}
	if it.isDir() {
		return w.dir(p, it, old)
	}
	f := it.file
	c := Change{Entry: w.o.entry(p, f), Touched: true}
	if f.links > 1 {
		if first, ok := w.first[f]; ok {
			c.LinkTo = first
			return w.emit(c), nil
		}
		w.first[f] = p
	} else if old != nil {
		same, err := w.same(p, old, f)
		if same || err != nil {
			return err == nil, err
		}
	}
	if f.open != nil && f.size > 0 {
		c.Open = CheckSize(f.open, p, f.size)
	}
	return w.emit(c), nil
}

// same reports whether the base's old is what f is.
func (w *changeWalk) same(p string, old *Entry, f *inode) (bool, error) {
	e := w.o.entry(p, f)
	if !SameMeta(old, &e) {
		return false, nil
	}
	if !e.Mode.IsRegular() || e.Size == 0 {
		return true, nil
	}
	open, err := OpenerOf(w.o.base, p)
	if err != nil {
		return false, err
	}
	return sameContent(old.Digest, open, e.Digest, CheckSize(f.open, p, f.size))
}

// dir walks the directory p and what is below it.
func (w *changeWalk) dir(p string, it *item, old *Entry) (bool, error) {
	var e Entry
	switch {
	case it.file != nil:
		e = w.o.entry(p, it.file)
	case old != nil:
		e = *old
	default:
		return false, NotExist("lstat", p)
	}
	touched := old == nil || !SameMeta(old, &e)
	if touched {
		if !w.emit(Change{Entry: e, Touched: true}) {
			return false, nil
		}
		return w.kids(p, it)
	}
	depth := len(w.parents)
	w.parents = append(w.parents, Change{Entry: e})
	ok, err := w.kids(p, it)
	// Either something below was yielded, and this with it, or it is still
	// the last one waiting and nobody needs it.
	if len(w.parents) > depth {
		w.parents = w.parents[:depth]
	}
	return ok, err
}
