// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"hako/internal/tree"
)

// mkfile writes a file as open(2) with O_CREAT and O_TRUNC does: links are
// followed inside the tree, an existing file keeps its mode and owner.
func mkfile(o *tree.Overlay, a *pb.FileActionMkFile, own *owner, when time.Time) error {
	if err := writeFile(o, a, own, when); err != nil {
		return fmt.Errorf("make file %q: %w", a.Path, err)
	}
	return nil
}

func writeFile(o *tree.Overlay, a *pb.FileActionMkFile, own *owner, when time.Time) error {
	p, err := tree.Resolve(o, tree.Clean(a.Path), true)
	if err != nil {
		return err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(a.Data)), nil }
	size := int64(len(a.Data))
	e, err := o.Lstat(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e = tree.Entry{Path: p, Mode: tree.ModeRegular | tree.Mode(a.Mode)&0o777, Size: size, ModTime: when}
		if err := inherit(o, &e); err != nil {
			return err
		}
		if own != nil {
			e.UID, e.GID = own.uid, own.gid
		}
		return o.Put(e, open)
	case err != nil:
		return err
	case e.Mode.IsDir():
		return &fs.PathError{Op: "open", Path: "/" + p, Err: syscall.EISDIR}
	case !e.Mode.IsRegular():
		return &fs.PathError{Op: "open", Path: "/" + p, Err: errors.New("not a regular file")}
	}
	if err := o.SetContent(p, size, open); err != nil {
		return err
	}
	return o.SetAttr(p, func(e *tree.Entry) {
		e.ModTime = when
		delete(e.Xattrs, capability) // the kernel drops it on write
		if own != nil {
			e.UID, e.GID = own.uid, own.gid
			e.Mode &^= tree.ModeSetuid | tree.ModeSetgid // and these on chown
		}
	})
}
