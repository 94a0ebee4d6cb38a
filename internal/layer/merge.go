// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"

	"hako/internal/store"
	"hako/internal/tree"
)

// Merge makes one layer that does what all layers of ref but the first n do
// together. Paths that skip names, if it is not nil, are left as the first n
// layers have them, with all that is below.
//
// The layer says no more than what differs: what one layer adds and another
// removes again is not in it, and it has whiteouts only for what the first n
// layers have. Their indexes are needed for that.
func (r *Ref) Merge(ctx context.Context, st *store.Store, n int, skip func(path string) bool, opt WriteOptions) (*Layer, error) {
	if n < 0 || n > len(r.Layers) {
		return nil, fmt.Errorf("merge layers: %d of %d cannot stay", n, len(r.Layers))
	}
	m := &merger{skip: skip}
	var err error
	if m.all, err = r.Tree(ctx); err != nil {
		return nil, err
	}
	if m.base, err = (&Ref{Layers: r.Layers[:n]}).Tree(ctx); err != nil {
		return nil, err
	}
	for _, l := range r.Layers[n:] {
		if err := m.collect(ctx, l); err != nil {
			return nil, err
		}
	}
	if err := m.reset(); err != nil {
		return nil, err
	}
	l, err := Write(ctx, st, m.changes(), opt)
	if err != nil {
		return nil, err
	}
	l.Forget() // what it was made of needs the merged layers
	return l, nil
}

// HasPath tells whether the layer says anything of a path that match names or
// of what is below one.
func (l *Layer) HasPath(ctx context.Context, match func(path string) bool) (bool, error) {
	items, err := l.Items(ctx)
	if err != nil {
		return false, err
	}
	for it, err := range items {
		if err != nil || match(it.Path) {
			return err == nil, err
		}
	}
	return false, nil
}

// A merger collects what the merged layer is about.
type merger struct {
	base, all tree.FS
	skip      func(string) bool
	paths     []string // that some layer speaks of
	replaced  []string // of these, those where a layer hides what is below it
}

func (m *merger) skips(p string) bool { return m.skip != nil && m.skip(p) }

func (m *merger) collect(ctx context.Context, l *Layer) error {
	items, err := l.Items(ctx)
	if err != nil {
		return err
	}
	for it, err := range items {
		if err != nil {
			return err
		}
		if m.skips(it.Path) {
			continue
		}
		m.paths = append(m.paths, it.Path)
		if it.Deleted || it.Opaque || it.LinkTo != "" || it.Present && !it.Mode.IsDir() {
			m.replaced = append(m.replaced, it.Path)
		}
	}
	return nil
}

// reset adds what is hidden below directories that were there, were replaced,
// and are directories again: the base would show through the merged layer.
func (m *merger) reset() error {
	slices.SortFunc(m.replaced, tree.ComparePaths)
	for _, p := range slices.Compact(m.replaced) {
		if err := m.hide(p); err != nil {
			return err
		}
	}
	slices.SortFunc(m.paths, tree.ComparePaths)
	m.paths = slices.Compact(m.paths)
	return nil
}

func (m *merger) hide(p string) error {
	old, now, err := m.both(p)
	if err != nil || old == nil || now == nil || !old.Mode.IsDir() || !now.Mode.IsDir() {
		return err
	}
	names, err := m.base.ReadDir(p)
	if err != nil {
		return err
	}
	for _, e := range names {
		if m.skips(e.Path) {
			continue
		}
		m.paths = append(m.paths, e.Path)
		if err := m.hide(e.Path); err != nil {
			return err
		}
	}
	return nil
}

// both returns what the base and the whole have at p, nil for nothing.
func (m *merger) both(p string) (old, now *tree.Entry, err error) {
	if old, err = lookup(m.base, p); err == nil {
		now, err = lookup(m.all, p)
	}
	return old, now, err
}

func lookup(fsys tree.FS, p string) (*tree.Entry, error) {
	e, err := fsys.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &e, nil
}

// changes yields what the merged layer says.
func (m *merger) changes() iter.Seq2[tree.Change, error] {
	return func(yield func(tree.Change, error) bool) {
		first := make(map[tree.NodeID]string)
		var parents []tree.Change // unchanged, told only if something below them is
		emit := func(c tree.Change) bool {
			for _, p := range parents {
				if tree.Within(c.Path, p.Path) && !yield(p, nil) {
					return false
				}
			}
			parents = parents[:0]
			return yield(c, nil)
		}
		for _, p := range m.paths {
			c, parent, err := m.change(p, first)
			switch {
			case err != nil:
				yield(tree.Change{}, err)
				return
			case c == nil:
			case parent:
				parents = append(slices.DeleteFunc(parents, func(up tree.Change) bool { return !tree.Within(p, up.Path) }), *c)
			case !emit(*c):
				return
			}
		}
	}
}

// change returns what the merged layer says of p, nil for nothing. parent tells
// that it is a directory like the base's.
func (m *merger) change(p string, first map[tree.NodeID]string) (c *tree.Change, parent bool, err error) {
	old, now, err := m.both(p)
	switch {
	case err != nil || p == "":
		return nil, false, err
	case now == nil && old == nil:
		return nil, false, nil
	case now == nil:
		up, err := lookup(m.all, tree.Parent(p))
		if err != nil || up == nil || !up.Mode.IsDir() {
			return nil, false, err // it went with its directory
		}
		return &tree.Change{Entry: tree.Entry{Path: p}, Deleted: true}, false, nil
	case now.Mode.IsDir():
		return &tree.Change{Entry: *now}, old != nil && tree.SameMeta(old, now), nil
	}
	c = &tree.Change{Entry: *now, Touched: true}
	if now.Node != (tree.NodeID{}) {
		if to := first[now.Node]; to != "" {
			c.LinkTo = to
			return c, false, nil
		}
		first[now.Node] = p
	}
	if now.Mode.IsRegular() && now.Size > 0 {
		c.Open, err = tree.OpenerOf(m.all, p)
	}
	return c, false, err
}
