// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// errUnknown is returned where a record cannot be followed: a directory is not the
// one that was recorded.
var errUnknown = errors.New("not the recorded directory")

// followRecord returns the state of the tree of which before is an earlier one, by
// looking at what w, which watched it since, says has changed. Unchanged
// directories share the memory of before's. Where w does not know enough, all is
// looked at again.
func followRecord(ctx context.Context, fd int, masked map[string]bool, before *record, w *dirWatch) (*record, error) {
	dirs, ok := w.changed()
	if !ok {
		return takeRecordAfter(ctx, fd, masked, before, w)
	}
	f := &follower{
		w: newWalker(ctx, masked), looked: make(map[string]map[string]bool), links: make(map[uint64]bool), image: before.image,
	}
	now := before.root
	for len(dirs) > 0 {
		f.plan(dirs)
		next, err := f.root(fd, now)
		if f.unknown || errors.Is(err, errUnknown) || errors.Is(err, unix.ENOENT) {
			return takeRecordAfter(ctx, fd, masked, before, w)
		}
		if err != nil {
			return nil, err
		}
		now = next
		dirs = f.otherNames(now)
	}
	return &record{
		root: now, looked: int(f.w.names.Load()), latest: max(before.latest, f.w.latest.Load()),
		backwards: before.backwards, followed: true, image: before.image, asOf: before.asOf,
	}, nil
}

// A follower makes a record from the one before. There are no directories but
// those that were there before: who makes or moves one makes the watch say that it
// does not know.
type follower struct {
	w      *walker
	dirty  map[string]map[string]bool // directory → names that have to be looked at
	onWay  map[string]bool            // directories that lead there
	looked map[string]map[string]bool // what was looked at before
	// links are the inodes of files with several names of which one is different:
	// the others have to be looked at, too.
	links map[uint64]bool
	// image is the record's: of bare nodes the inode is not known. unknown is set
	// where that makes it unknown which files have to be looked at.
	image   tree.FS
	unknown bool
}

// plan sets out to look at the names in dirs.
func (f *follower) plan(dirs map[string]map[string]bool) {
	f.dirty, f.onWay = dirs, make(map[string]bool)
	for d, names := range dirs {
		for p := d; p != ""; {
			p = tree.Parent(p)
			f.onWay[p] = true
		}
		if f.looked[d] == nil {
			f.looked[d] = make(map[string]bool)
		}
		maps.Copy(f.looked[d], names)
	}
}

// root is dir for the top directory fd, of which only the place is used: how far it
// was read is not known.
func (f *follower) root(fd int, old *dirRecord) (*dirRecord, error) {
	top, err := openDirAt(fd, ".")
	if err != nil {
		return nil, fmt.Errorf("look at /: %w", err)
	}
	defer unix.Close(top)
	return f.dir(top, "", old)
}

// dir returns what the open directory fd has now. old is what it had.
func (f *follower) dir(fd int, path string, old *dirRecord) (*dirRecord, error) {
	if f.w.ctx.Err() != nil {
		return nil, context.Cause(f.w.ctx)
	}
	nodes, err := f.names(fd, path, old, f.dirty[path])
	if err != nil {
		return nil, err
	}
	for i := range nodes {
		n := &nodes[i]
		if n.kids == nil {
			continue
		}
		if p := tree.Join(path, n.name); f.dirty[p] != nil || f.onWay[p] {
			if err := f.subdir(fd, p, n); err != nil {
				return nil, err
			}
		}
	}
	return &dirRecord{nodes: nodes}, nil
}

// names returns old's nodes as they are now, of which those of names may have
// changed, come or gone.
func (f *follower) names(fd int, path string, old *dirRecord, names map[string]bool) ([]node, error) {
	if len(names) == 0 || len(names) == 1 && names[""] {
		return slices.Clone(old.nodes), nil
	}
	nodes := make([]node, 0, len(old.nodes)+len(names))
	for i := range old.nodes {
		if !names[old.nodes[i].name] {
			nodes = append(nodes, old.nodes[i])
		}
	}
	for name := range names {
		if name == "" {
			continue
		}
		n, err := f.name(fd, path, name, old.node(name))
		if err != nil {
			return nil, err
		}
		if n != nil {
			nodes = append(nodes, *n)
		}
	}
	slices.SortFunc(nodes, func(a, b node) int { return strings.Compare(a.name, b.name) })
	return nodes, nil
}

// name looks at a name in the open directory fd, which was old, and returns what it
// is now, each nil for nothing.
func (f *follower) name(fd int, path, name string, old *node) (*node, error) {
	n := &node{name: name}
	f.w.names.Add(1)
	switch err := f.w.node(fd, path, n); {
	case err == unix.ENOENT:
		f.note(tree.Join(path, name), old)
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look at /%s: %w", tree.Join(path, name), err)
	}
	if n.kids != nil {
		if old == nil || old.kids == nil || old.ino != n.ino {
			return nil, fmt.Errorf("look at /%s: %w", tree.Join(path, name), errUnknown)
		}
		n.kids = old.kids
	} else if old == nil || !old.same(n) || old.nlink != n.nlink {
		f.note(tree.Join(path, name), old) // it may be another file
		f.note(tree.Join(path, name), n)
	}
	f.w.latest.Store(max(f.w.latest.Load(), n.ctime)) // nobody else does just now
	return n, nil
}

// subdir looks at n, a directory in the open directory up, itself, whose times move
// with every name in it, and at what changed in it.
func (f *follower) subdir(up int, path string, n *node) error {
	fd, err := openDirAt(up, n.name)
	if err != nil {
		return fmt.Errorf("look at /%s: %w", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at /%s: %w", path, err)
	}
	if st.Ino != n.ino {
		return fmt.Errorf("look at /%s: %w", path, errUnknown)
	}
	was := n.kids
	*n = newNode(n.name, &st)
	f.w.latest.Store(max(f.w.latest.Load(), n.ctime))
	n.kids, err = f.dir(fd, path, was)
	return err
}

// note notes n, at path, if it is a file with several names, and such files below it
// if it is a directory that is no longer there.
func (f *follower) note(path string, n *node) {
	switch {
	case n == nil:
	case n.bare:
		// It has the names that it has in the image: a new one would have been told.
		e, err := f.image.Lstat(path)
		f.unknown = f.unknown || err != nil || e.Node != (tree.NodeID{})
	case !n.isDir() && n.nlink > 1:
		f.links[n.ino] = true
		f.unknown = f.unknown || f.image != nil // any bare node may be it
	case n.kids != nil:
		for i := range n.kids.nodes {
			f.note(tree.Join(path, n.kids.nodes[i].name), &n.kids.nodes[i])
		}
	}
}

// otherNames returns the names of noted files that have not been looked at, by
// directory.
func (f *follower) otherNames(root *dirRecord) map[string]map[string]bool {
	if len(f.links) == 0 {
		return nil
	}
	out := make(map[string]map[string]bool)
	f.addNames(out, "", root)
	return out
}

func (f *follower) addNames(out map[string]map[string]bool, path string, d *dirRecord) {
	for i := range d.nodes {
		n := &d.nodes[i]
		switch {
		case n.kids != nil:
			f.addNames(out, tree.Join(path, n.name), n.kids)
		case f.links[n.ino] && !f.looked[path][n.name]:
			if out[path] == nil {
				out[path] = make(map[string]bool)
			}
			out[path][n.name] = true
		}
	}
}

// openDirAt opens the directory name in up, without moving its time.
func openDirAt(up int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(up, name, flags|unix.O_NOATIME, 0)
	if err == unix.EPERM { // O_NOATIME is for owners
		fd, err = unix.Openat(up, name, flags, 0)
	}
	return fd, err
}
