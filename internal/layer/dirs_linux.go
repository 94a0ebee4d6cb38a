// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"os"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// maxDirs bounds the open directories that a Root remembers.
const maxDirs = 48

// A directory was resolved, and is open with O_PATH. A Root is a user of those
// that it remembers; the last that leaves closes it.
type directory struct {
	fd    int
	users int
	// plain: there is no link on the way to it, so what is in it has no path but
	// the one below this one. It is not found out for a Root without a crew.
	plain bool
}

func (d *directory) leave() {
	if d.users--; d.users == 0 {
		unix.Close(d.fd)
	}
}

// flush forgets open directories, which any removal may have made wrong.
func (r *Root) flush() {
	for p, d := range r.dirs {
		d.leave()
		delete(r.dirs, p)
	}
}

// open resolves the directory p inside the root.
func (r *Root) open(p string) (int, error) {
	if p == "" {
		return unix.Openat(r.fd, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if r.openat2 {
		return r.openFlags(p, 0)
	}
	dup, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	root := os.NewFile(uintptr(dup), "/")
	defer root.Close()
	f, err := securejoin.OpenatInRoot(root, p)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return unix.Openat(int(f.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// openFlags does it with openat2, and with more flags for that.
func (r *Root) openFlags(p string, more uint64) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolveFlags | more}
	if r.CrossMounts {
		how.Resolve &^= unix.RESOLVE_NO_XDEV
	}
	if p == "" {
		p = "."
	}
	for {
		fd, err := unix.Openat2(r.fd, p, &how)
		// EAGAIN: a rename elsewhere on the machine raced with the walk.
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
}

// dir returns the open directory p, made with its parents if make is set. It may
// be closed by what forgets directories, unless the caller is one of its users.
func (r *Root) dir(p string, make bool) (*directory, error) {
	if r.crew.isAt(p, true) {
		if err := r.settle(); err != nil {
			return nil, err
		}
	}
	if d := r.dirs[p]; d != nil {
		if d.plain || r.crew.isIdle() {
			return d, nil
		}
		// Nobody knows what the links on the way are about to lead to.
		if err := r.settle(); err != nil {
			return nil, err
		}
		return r.dir(p, make)
	}
	d, err := r.lookup(p, make)
	if err != nil {
		return nil, err
	}
	if len(r.dirs) >= maxDirs {
		r.flush()
	}
	r.dirs[p] = d
	return d, nil
}

// lookup opens the directory p.
func (r *Root) lookup(p string, make bool) (*directory, error) {
	if r.crew != nil {
		if fd, err := r.openFlags(p, unix.RESOLVE_NO_SYMLINKS); err == nil {
			return &directory{fd: fd, users: 1, plain: true}, nil
		}
		if err := r.settle(); err != nil {
			return nil, err
		}
	}
	fd, err := r.open(p)
	if err == unix.ENOENT && make && p != "" {
		if err = r.makeDir(p, 0); err == nil {
			fd, err = r.open(p)
		}
	}
	if err != nil {
		return nil, err
	}
	return &directory{fd: fd, users: 1}, nil
}

// makeDir makes a directory that a tar has no entry for, 0755 0:0 as
// containerd does, also where a dangling link points.
func (r *Root) makeDir(p string, depth int) error {
	if depth > 40 {
		return unix.ELOOP
	}
	up, err := r.open(tree.Parent(p))
	if err == unix.ENOENT {
		if err = r.makeDir(tree.Parent(p), depth+1); err == nil {
			up, err = r.open(tree.Parent(p))
		}
	}
	if err != nil {
		return err
	}
	defer unix.Close(up)
	err = unix.Mkdirat(up, tree.Base(p), 0o755)
	if err == nil {
		// The umask takes bits away, and a setgid parent adds one.
		return unix.Fchmodat(up, tree.Base(p), 0o755, 0)
	}
	if err != unix.EEXIST {
		return err
	}
	n, lerr := unix.Readlinkat(up, tree.Base(p), r.buf[:4096])
	if lerr != nil {
		return nil // made meanwhile, or not a directory: opening it tells
	}
	to := string(r.buf[:n])
	if !strings.HasPrefix(to, "/") {
		to = tree.Parent(p) + "/" + to
	}
	return r.makeDir(tree.Clean(to), depth+1)
}
