// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"errors"
	"os"
	"runtime"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// removeExcept empties the directory p, which is name in the open directory up,
// of all that keep does not claim.
func removeExcept(up int, name, p string, keep func(string) bool) error {
	names, fd, err := openNames(up, name)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, n := range names {
		child := tree.Join(p, n)
		if keep != nil && keep(child) {
			err = removeExcept(fd, n, child, keep)
		} else {
			err = removeAll(fd, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// openNames opens a directory for reading, and reads its names.
func openNames(up int, name string) ([]string, int, error) {
	fd, err := unix.Openat(up, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, err
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return nil, -1, err
	}
	f := os.NewFile(uintptr(dup), name)
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		unix.Close(fd)
		return nil, -1, err
	}
	return names, fd, nil
}

// removeAll deletes name in the open directory up, whatever it is, without
// following links.
func removeAll(up int, name string) error { return remover{}.all(up, name) }

// maxRemovers is up to how many goroutines delete a tree on fewer CPUs.
const maxRemovers = 16

// A remover deletes trees. If stop is set, it gives up with the error of that; if
// slots is, as many directories as that has room for are emptied by others.
type remover struct {
	stop  func() error
	slots chan struct{}
}

func (r remover) all(up int, name string) error {
	err := unix.Unlinkat(up, name, 0)
	switch err {
	case nil, unix.ENOENT:
		return nil
	case unix.EISDIR, unix.EPERM:
		return r.dir(up, name)
	default:
		return err
	}
}

func (r remover) dir(up int, name string) error {
	names, fd, err := openNames(up, name)
	if err != nil {
		return err
	}
	err = r.each(fd, names)
	unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Unlinkat(up, name, unix.AT_REMOVEDIR)
}

// each deletes names in the open directory up. It returns when nobody uses that
// any more.
func (r remover) each(up int, names []string) error {
	var g errgroup.Group
	for _, n := range names {
		if r.stop != nil && r.stop() != nil {
			return errors.Join(r.stop(), g.Wait())
		}
		if err := r.one(&g, up, n); err != nil {
			_ = g.Wait()
			return err
		}
	}
	return g.Wait()
}

func (r remover) one(g *errgroup.Group, up int, name string) error {
	if r.slots == nil {
		return r.all(up, name)
	}
	err := unix.Unlinkat(up, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	select {
	case r.slots <- struct{}{}:
		g.Go(func() error {
			defer func() { <-r.slots }()
			return r.dir(up, name)
		})
		return nil
	default:
		return r.dir(up, name)
	}
}

// RemoveAt deletes name in the open directory up, with all below it.
func RemoveAt(up int, name string) error { return removeAll(up, name) }

// RemoveAll deletes the tree at path without following links, on all CPUs, and with
// some more goroutines: now and then each waits for the file system's journal.
func RemoveAll(path string) error {
	n := runtime.GOMAXPROCS(0)
	if n > 1 {
		n = min(4*n, max(n, maxRemovers))
	}
	return removeTree(path, remover{slots: make(chan struct{}, n-1)})
}

// RemoveAllUntil does the same, and stops when ctx ends: for what may as well be
// left. It takes one CPU, since it is done beside what somebody waits for.
func RemoveAllUntil(ctx context.Context, path string) error {
	return removeTree(path, remover{stop: ctx.Err})
}

func removeTree(path string, r remover) error {
	up, err := unix.Open(tree.Parent(path)+"/.", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(up)
	return r.all(up, tree.Base(path))
}
