// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sort"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// A record is the state of a live tree at one moment, as far as system calls
// tell without reading contents: about 100 bytes a name. Two of them show which
// names are worth a closer look.
type record struct {
	root  *dirRecord
	names int
	// latest is the newest ctime seen, in nanoseconds.
	latest int64
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
// that are left alone.
func takeRecord(ctx context.Context, fd int, masked map[string]bool) (*record, error) {
	w := &walker{masked: masked}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(runtime.GOMAXPROCS(0), 1))
	w.g, w.ctx = g, gctx
	root := &dirRecord{}
	err := w.dir(fd, ".", "", root)
	if gerr := g.Wait(); gerr != nil {
		err = gerr
	}
	if err != nil {
		return nil, err
	}
	r := &record{root: root, names: int(w.names.Load()), latest: w.latest.Load()}
	return r, nil
}

// A walker walks a tree with a few goroutines: a directory is given to another
// one if one is free and walked here if none is.
type walker struct {
	ctx    context.Context //nolint:containedctx // lives as long as one walk
	g      *errgroup.Group
	masked map[string]bool
	names  atomic.Int64
	latest atomic.Int64
}

// dir fills out with the directory name in the open directory up.
func (w *walker) dir(up int, name, path string, out *dirRecord) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	fd, err := unix.Openat(up, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err == unix.EPERM { // O_NOATIME is for owners
		fd, err = unix.Openat(up, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return fmt.Errorf("look at /%s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	names, err := f.Readdirnames(-1)
	if err != nil {
		f.Close()
		return fmt.Errorf("look at /%s: %w", path, err)
	}
	sort.Strings(names)
	out.nodes = make([]node, 0, len(names))
	var latest int64
	for _, n := range names {
		nd, err := w.node(fd, n, tree.Join(path, n))
		if err == unix.ENOENT {
			continue // gone since: only something left running could do that
		}
		if err != nil {
			f.Close()
			return fmt.Errorf("look at /%s: %w", tree.Join(path, n), err)
		}
		latest = max(latest, nd.ctime)
		out.nodes = append(out.nodes, nd)
	}
	w.names.Add(int64(len(out.nodes)))
	for {
		old := w.latest.Load()
		if old >= latest || w.latest.CompareAndSwap(old, latest) {
			break
		}
	}
	return w.descend(f, path, out)
}

// descend walks the subdirectories and closes f when the last is done.
func (w *walker) descend(f *os.File, path string, out *dirRecord) error {
	var open atomic.Int32
	open.Store(1)
	release := func() {
		if open.Add(-1) == 0 {
			f.Close()
		}
	}
	defer release()
	for i := range out.nodes {
		n := &out.nodes[i]
		if n.kids == nil {
			continue
		}
		open.Add(1)
		walk := func() error {
			defer release()
			return w.dir(int(f.Fd()), n.name, tree.Join(path, n.name), n.kids)
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

func (w *walker) node(fd int, name, path string) (node, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return node{}, err
	}
	n := newNode(name, &st)
	n.masked = w.masked[path]
	if n.isDir() {
		if !n.masked {
			n.kids = &dirRecord{}
		}
	}
	return n, nil
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
