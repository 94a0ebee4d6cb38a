// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// A record is the state of a live tree at one moment, as far as system calls
// tell without reading contents: about 100 bytes a name. Two of them show which
// names are worth a closer look.
type record struct {
	root *dirRecord
	// looked is how many names were looked at, others being as they were before.
	looked int
	// followed tells that this is by what a watch said.
	followed bool
	// latest is the newest ctime seen, in nanoseconds.
	latest int64
	// backwards tells that the walk began with what comes last.
	backwards bool
	// image is what bare nodes are of, nil if there are none. All that they stand for
	// was made until asOf, a time of the file system's clock in nanoseconds.
	image tree.FS
	asOf  int64
}

// A dirRecord is a directory's names in byte order.
type dirRecord struct{ nodes []node }

type node struct {
	name  string
	ino   uint64
	size  int64 // of a device, its number
	mtime int64
	ctime int64
	dev   uint32 // the low bits, which tell the file systems of one tree apart
	mode  uint32
	uid   uint32
	gid   uint32
	nlink uint32
	kids  *dirRecord
	// masked: something is mounted here, or it is ours: not part of the image.
	masked bool
	// bare: only the name and the type are known; see bare_linux.go.
	bare bool
}

func (n *node) isDir() bool { return n.mode&unix.S_IFMT == unix.S_IFDIR }

// same tells whether nothing that a system call shows differs. ctime moves with
// every change of content or metadata, whoever made it and whatever utimes(2)
// it did afterwards; the file system was tested for that (selftest_linux.go).
func (n *node) same(o *node) bool {
	return n.ino == o.ino && n.dev == o.dev && n.ctime == o.ctime && n.mode == o.mode && n.uid == o.uid &&
		n.gid == o.gid && n.size == o.size && n.mtime == o.mtime
}

// takeRecord walks the tree under the open directory fd. masked has the paths
// that are left alone. Every directory is put under wt, if that is not nil.
func takeRecord(ctx context.Context, fd int, masked map[string]bool, wt *dirWatch) (*record, error) {
	return takeRecordAfter(ctx, fd, masked, &record{root: &dirRecord{}, backwards: true}, wt)
}

// takeRecordAfter is takeRecord for a tree of which there is a record already:
// what has not changed since shares its memory. It also goes the other way
// round than the last walk. In a small container the kernel cannot keep all
// inodes of a large image; a walk that begins where the last one ended finds
// those that it kept, one that begins at the same end drives out each of them
// just before it gets there.
func takeRecordAfter(ctx context.Context, fd int, masked map[string]bool, before *record, wt *dirWatch) (*record, error) {
	w := newWalker(ctx, masked)
	w.watch, w.backwards, w.asOf = wt, !before.backwards, before.asOf
	return w.walk(fd, before.root)
}

// walk makes a record of the tree under the open directory fd, of which before is
// an earlier one.
func (w *walker) walk(fd int, before *dirRecord) (*record, error) {
	w.g, w.ctx = errgroup.WithContext(w.ctx)
	w.g.SetLimit(max(runtime.GOMAXPROCS(0), 1))
	root := &node{name: ".", kids: &dirRecord{}}
	err := w.dir(fd, root, "", before)
	if gerr := w.g.Wait(); gerr != nil {
		err = gerr
	}
	if err != nil {
		return nil, err
	}
	return &record{root: root.kids, looked: int(w.names.Load()), latest: w.latest.Load(), backwards: w.backwards}, nil
}

// A walker walks a tree with a few goroutines: a directory is given to another
// one if one is free and walked here if none is.
type walker struct {
	ctx       context.Context //nolint:containedctx // lives as long as one walk
	g         *errgroup.Group
	masked    map[string]bool
	holders   map[string]bool // the directories that masked names are in
	watch     *dirWatch       // of all directories, nil for none
	backwards bool
	bare      bool      // files are not looked at
	asOf      int64     // of the earlier record
	scratch   sync.Pool // of *dirScratch
	names     atomic.Int64
	latest    atomic.Int64
}

func newWalker(ctx context.Context, masked map[string]bool) *walker {
	w := &walker{ctx: ctx, masked: masked, holders: make(map[string]bool)}
	for p := range masked {
		w.holders[tree.Parent(p)] = true
	}
	return w
}

// order returns which of n the walker looks at as number k.
func (w *walker) order(k, n int) int {
	if w.backwards {
		return n - 1 - k
	}
	return k
}

// dir fills in what is in n, a directory in the open directory up. old is what it
// was before, empty if that is not known.
func (w *walker) dir(up int, n *node, path string, old *dirRecord) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	fd, err := openDirAt(up, n.name)
	if err != nil {
		return fmt.Errorf("look at /%s: %w", path, err)
	}
	if w.watch != nil {
		w.watch.add(fd, path) // what changes from here on is looked at again
	}
	if w.bare {
		err = w.opened(fd, n)
	}
	if err == nil {
		err = w.look(fd, path, old, n.kids)
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	return w.descend(fd, path, old, n.kids)
}

// look fills out with what is in the open directory fd, but for what is in its
// subdirectories.
func (w *walker) look(fd int, path string, old, out *dirRecord) error {
	sc, _ := w.scratch.Get().(*dirScratch)
	if sc == nil {
		sc = &dirScratch{buf: make([]byte, 32<<10)}
	}
	defer w.scratch.Put(sc)
	if err := sc.read(fd, old); err != nil {
		return fmt.Errorf("look at /%s: %w", path, err)
	}
	var latest int64
	for k := range sc.nodes {
		n := &sc.nodes[w.order(k, len(sc.nodes))]
		err := w.node(fd, path, n)
		if err == unix.ENOENT {
			*n = node{} // gone since: only something left running could do that
			continue
		}
		if err != nil {
			return fmt.Errorf("look at /%s: %w", tree.Join(path, n.name), err)
		}
		latest = max(latest, n.ctime)
	}
	nodes := slices.DeleteFunc(sc.nodes, func(n node) bool { return n.name == "" })
	w.learn(old, nodes)
	if slices.Equal(nodes, old.nodes) {
		out.nodes = old.nodes // no directory among them, whose kids differ
	} else {
		out.nodes = slices.Clone(nodes)
	}
	w.names.Add(int64(len(nodes)))
	w.saw(latest)
	return nil
}

// saw notes a ctime.
func (w *walker) saw(ctime int64) {
	for {
		seen := w.latest.Load()
		if seen >= ctime || w.latest.CompareAndSwap(seen, ctime) {
			return
		}
	}
}

// descend walks the subdirectories and closes fd when the last is done.
func (w *walker) descend(fd int, path string, old, out *dirRecord) error {
	var open atomic.Int32
	open.Store(1)
	release := func() {
		if open.Add(-1) == 0 {
			_ = unix.Close(fd)
		}
	}
	defer release()
	for k := range out.nodes {
		n := &out.nodes[w.order(k, len(out.nodes))]
		if n.kids == nil {
			continue
		}
		open.Add(1)
		walk := func() error {
			defer release()
			return w.dir(fd, n, tree.Join(path, n.name), old.kids(n.name))
		}
		if w.g.TryGo(walk) {
			continue
		}
		if err := walk(); err != nil {
			return err
		}
	}
	return nil
}

// node fills in what is known of n beside its name, and its type if the walk is bare.
func (w *walker) node(fd int, path string, n *node) error {
	if w.bare && w.leave(path, n) {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, n.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	*n = newNode(n.name, &st)
	n.masked = w.holders[path] && w.masked[tree.Join(path, n.name)]
	if n.isDir() && !n.masked {
		n.kids = &dirRecord{}
	}
	return nil
}

func newNode(name string, st *unix.Stat_t) node {
	n := node{
		name: name, ino: st.Ino, dev: uint32(st.Dev), size: st.Size, mode: st.Mode, uid: st.Uid, gid: st.Gid,
		nlink: uint32(min(st.Nlink, 1<<31)), mtime: unix.TimespecToNsec(st.Mtim), ctime: unix.TimespecToNsec(st.Ctim), //nolint:unconvert // differs by architecture
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		n.size = int64(st.Rdev)
	case unix.S_IFDIR:
		n.size = 0 // moves with every name, and says nothing
	}
	return n
}
