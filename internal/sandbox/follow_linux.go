// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	f := &follower{w: newWalker(ctx, masked), looked: make(map[string]bool), links: make(map[uint64]bool)}
	now := before.root
	for len(dirs) > 0 {
		f.plan(dirs)
		next, err := f.root(fd, now)
		if errors.Is(err, errUnknown) || errors.Is(err, unix.ENOENT) {
			return takeRecordAfter(ctx, fd, masked, before, w)
		}
		if err != nil {
			return nil, err
		}
		now = next
		dirs = f.otherNames(nil, "", now)
	}
	return &record{
		root: now, names: now.count(), looked: int(f.w.names.Load()), latest: max(before.latest, f.w.latest.Load()),
		backwards: before.backwards, followed: true,
	}, nil
}

// A follower makes a record from the one before. There are no directories but
// those that were there before: who makes or moves one makes the watch say that it
// does not know.
type follower struct {
	w      *walker
	dirty  map[string]bool // directories that have to be read again
	onWay  map[string]bool // those that lead there
	looked map[string]bool // those that were
	// links are the inodes of files with several names of which one is different:
	// the others have to be looked at, too.
	links map[uint64]bool
}

// plan sets out to read dirs again.
func (f *follower) plan(dirs []string) {
	f.dirty, f.onWay = make(map[string]bool), make(map[string]bool)
	for _, d := range dirs {
		f.dirty[d] = true
		for p := d; p != ""; {
			p = tree.Parent(p)
			f.onWay[p] = true
		}
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
	out := &dirRecord{}
	if f.dirty[path] && !f.looked[path] {
		f.looked[path] = true
		if err := f.w.look(fd, path, old, out); err != nil {
			return nil, err
		}
		if err := f.compare(path, old, out); err != nil {
			return nil, err
		}
	} else {
		out.nodes = slices.Clone(old.nodes)
	}
	for i := range out.nodes {
		n := &out.nodes[i]
		if p := tree.Join(path, n.name); n.kids != nil && (f.dirty[p] || f.onWay[p]) {
			if err := f.subdir(fd, p, n); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
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

// compare gives the directories in now what they had in old, and notes files with
// several names of which one changed, came or went.
func (f *follower) compare(path string, old, now *dirRecord) error {
	i, j := 0, 0
	for i < len(old.nodes) || j < len(now.nodes) {
		switch {
		case j == len(now.nodes) || i < len(old.nodes) && old.nodes[i].name < now.nodes[j].name:
			f.note(&old.nodes[i])
			i++
		case i == len(old.nodes) || old.nodes[i].name > now.nodes[j].name:
			if now.nodes[j].kids != nil {
				return fmt.Errorf("look at /%s: %w", tree.Join(path, now.nodes[j].name), errUnknown)
			}
			f.note(&now.nodes[j])
			j++
		default:
			o, n := &old.nodes[i], &now.nodes[j]
			if n.kids != nil && (o.kids == nil || o.ino != n.ino) {
				return fmt.Errorf("look at /%s: %w", tree.Join(path, n.name), errUnknown)
			}
			if !o.same(n) || o.nlink != n.nlink {
				f.note(o)
				f.note(n)
			}
			if n.kids != nil {
				n.kids = o.kids
			}
			i++
			j++
		}
	}
	return nil
}

// note notes n if it is a file with several names, and such files below it if it is
// a directory that is no longer there.
func (f *follower) note(n *node) {
	switch {
	case !n.isDir() && n.nlink > 1:
		f.links[n.ino] = true
	case n.kids != nil && len(n.kids.nodes) > 0:
		for i := range n.kids.nodes {
			f.note(&n.kids.nodes[i])
		}
	}
}

// otherNames appends the directories that have not been looked at and have a name
// of one of the noted files.
func (f *follower) otherNames(dirs []string, path string, d *dirRecord) []string {
	if len(f.links) == 0 {
		return nil
	}
	found := f.looked[path]
	for i := range d.nodes {
		n := &d.nodes[i]
		if n.kids != nil {
			dirs = f.otherNames(dirs, tree.Join(path, n.name), n.kids)
		} else if !found && f.links[n.ino] {
			found, dirs = true, append(dirs, path)
		}
	}
	return dirs
}

// count returns the number of names in and below d.
func (d *dirRecord) count() int {
	sum := len(d.nodes)
	for i := range d.nodes {
		if k := d.nodes[i].kids; k != nil {
			sum += k.count()
		}
	}
	return sum
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
