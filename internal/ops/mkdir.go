// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"syscall"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"hako/internal/tree"
)

// mkdir makes a directory, which is no change if the name is taken already.
func mkdir(o *tree.Overlay, a *pb.FileActionMkDir, own *owner, when time.Time) error {
	p, err := tree.Resolve(o, a.Path, true)
	if err != nil {
		return fmt.Errorf("make directory %q: %w", a.Path, err)
	}
	perm := tree.Mode(a.Mode) & 0o777
	if a.MakeParents {
		err = mkdirAll(o, p, perm, own, when)
	} else if _, lerr := o.Lstat(p); errors.Is(lerr, fs.ErrNotExist) {
		err = mkdirOne(o, p, perm, own, when)
	} else {
		err = lerr
	}
	if err != nil {
		return fmt.Errorf("make directory %q: %w", a.Path, err)
	}
	return nil
}

// mkdirAll makes the directory p and its parents as far as they are missing. p
// is resolved.
func mkdirAll(o *tree.Overlay, p string, perm tree.Mode, own *owner, when time.Time) error {
	e, err := o.Lstat(p)
	if err == nil {
		if !e.Mode.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: "/" + p, Err: syscall.ENOTDIR}
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := mkdirAll(o, tree.Parent(p), perm, own, when); err != nil {
		return err
	}
	return mkdirOne(o, p, perm, own, when)
}

// mkdirOne makes one directory in an existing one.
func mkdirOne(o *tree.Overlay, p string, perm tree.Mode, own *owner, when time.Time) error {
	e := tree.Entry{Path: p, Mode: tree.ModeDir | perm, ModTime: when}
	if err := inherit(o, &e); err != nil {
		return err
	}
	if own != nil {
		e.UID, e.GID = own.uid, own.gid
	}
	return o.Mkdir(e)
}

// inherit gives a new file what mkdir(2) and open(2) give it in a directory
// with the setgid bit: the directory's group and, to a directory, the bit.
func inherit(o *tree.Overlay, e *tree.Entry) error {
	dir, err := o.Lstat(tree.Parent(e.Path))
	if err != nil {
		return err
	}
	if dir.Mode&tree.ModeSetgid != 0 {
		e.GID = dir.GID
		if e.Mode.IsDir() {
			e.Mode |= tree.ModeSetgid
		}
	}
	return nil
}

// cleanPath makes p absolute and clean but keeps that it ended in "/" or "/.".
func cleanPath(p string) string {
	c := path.Join("/", p)
	switch {
	case len(p) > 1 && p[len(p)-2:] == "/.":
		if c != "/" {
			c += "/"
		}
		return c + "."
	case len(p) > 0 && p[len(p)-1] == '/' && c != "/":
		return c + "/"
	}
	return c
}
