// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// ErrNotRegular is in the error of opening what is not a regular file.
var ErrNotRegular = errors.New("not a regular file")

// A Dir is a directory of the operating system as an [FS].
//
// It is held by a handle: after OpenDir or NewDir nothing is opened by
// an absolute path, so a Dir stays what it is when the directory is renamed or
// something is put over its path. Whatever the directory holds, and whoever
// changes it meanwhile, no access leaves it: symbolic links are never followed,
// not in the middle of a path either. FIFOs and devices are never opened.
//
// Mounts below the directory are part of the tree.
type Dir struct {
	h      *dirHandle
	xattrs bool
}

var _ FS = (*Dir)(nil)

// OpenDir opens the directory at path, whose last component may be a link.
func OpenDir(path string) (*Dir, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	d, err := NewDir(f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return d, nil
}

// NewDir returns the Dir of an open directory. It owns f from then on, unless
// it fails.
func NewDir(f *os.File) (*Dir, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, &fs.PathError{Op: "open directory", Path: f.Name(), Err: syscall.ENOTDIR}
	}
	h, err := newDirHandle(f)
	if err != nil {
		return nil, err
	}
	return &Dir{h: h}, nil
}

// WithXattrs returns a view of the same directory whose entries have extended
// attributes, at the price of a few system calls each. It shares the handle.
//
// Only regular files and directories have them, and only those that may be
// opened for reading: without a /proc that can be trusted, the kernel gives
// attributes of an open file and of nothing else. So a symbolic link's are
// missing, as are those of a file whose contents could not be read either.
func (d *Dir) WithXattrs() *Dir { return &Dir{h: d.h, xattrs: true} }

// Close closes the handle. Files that were opened stay open.
func (d *Dir) Close() error { return d.h.close() }

// validPath reports whether p can be the path of something in a tree. What is
// not clean is not looked up at all, since it would mean something to the kernel.
func validPath(p string) bool {
	if p == "" {
		return true
	}
	if strings.IndexByte(p, 0) >= 0 {
		return false
	}
	for c := range strings.SplitSeq(p, "/") {
		if c == "" || c == "." || c == ".." {
			return false
		}
	}
	return true
}

// pathErr gives err the form that the FS interface asks for: what the kernel
// says of a path that leads nowhere without following links is "not exist".
func pathErr(op, p string, err error) error {
	if err == nil {
		return nil
	}
	if isAbsence(err) {
		return NotExist(op, p)
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return &fs.PathError{Op: op, Path: "/" + p, Err: err}
}

// Walk calls fn for the entry at root and for everything below it, a directory
// before what it holds, in the order of [ComparePaths]. If fn returns fs.SkipDir
// for a directory, what it holds is left out; for another entry, or with
// fs.SkipAll, see [fs.WalkDir]. Any other error ends the walk and is returned.
//
// Memory is that of the entries of the directories on one path.
func Walk(ctx context.Context, fsys FS, root string, fn func(Entry) error) error {
	e, err := fsys.Lstat(root)
	if err == nil {
		err = walk(ctx, fsys, e, fn)
	}
	if errors.Is(err, fs.SkipAll) || errors.Is(err, fs.SkipDir) {
		return nil
	}
	return err
}

func walk(ctx context.Context, fsys FS, e Entry, fn func(Entry) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := fn(e); err != nil {
		if e.Mode.IsDir() && errors.Is(err, fs.SkipDir) {
			return nil
		}
		return err
	}
	if !e.Mode.IsDir() {
		return nil
	}
	entries, err := fsys.ReadDir(e.Path)
	if err != nil {
		return err
	}
	for i := range entries {
		err := walk(ctx, fsys, entries[i], fn)
		if errors.Is(err, fs.SkipDir) {
			return nil // from an entry that is no directory: the rest of this one
		}
		if err != nil {
			return err
		}
	}
	return nil
}
