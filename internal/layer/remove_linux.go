// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"os"

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

// A remover deletes trees; stop, if set, makes it give up with its error.
type remover struct{ stop func() error }

func (r remover) all(up int, name string) error {
	err := unix.Unlinkat(up, name, 0)
	switch err {
	case nil, unix.ENOENT:
		return nil
	case unix.EISDIR, unix.EPERM:
	default:
		return err
	}
	names, fd, err := openNames(up, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, n := range names {
		if r.stop != nil && r.stop() != nil {
			return r.stop()
		}
		if err := r.all(fd, n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(up, name, unix.AT_REMOVEDIR)
}

// RemoveAt deletes name in the open directory up, with all below it.
func RemoveAt(up int, name string) error { return removeAll(up, name) }

// RemoveAll deletes the tree at path without following links.
func RemoveAll(path string) error { return removeTree(path, remover{}) }

// RemoveAllUntil does the same, and stops when ctx ends: for what may as well be
// left.
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
