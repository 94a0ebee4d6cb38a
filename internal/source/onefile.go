// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"io"
	"io/fs"
	"syscall"
	"time"

	"hako/internal/tree"
)

// A oneFile is a tree of a root and one regular file in it.
type oneFile struct {
	entry tree.Entry
	open  tree.Opener
}

var _ tree.FS = (*oneFile)(nil)

// Lstat implements [tree.FS].
func (o *oneFile) Lstat(p string) (tree.Entry, error) {
	switch p {
	case "":
		return tree.Entry{Mode: tree.ModeDir | 0o755, ModTime: o.entry.ModTime}, nil
	case o.entry.Path:
		return o.entry, nil
	}
	return tree.Entry{}, tree.NotExist("lstat", p)
}

// ReadDir implements [tree.FS].
func (o *oneFile) ReadDir(p string) ([]tree.Entry, error) {
	switch p {
	case "":
		return []tree.Entry{o.entry}, nil
	case o.entry.Path:
		return nil, &fs.PathError{Op: "readdir", Path: "/" + p, Err: syscall.ENOTDIR}
	}
	return nil, tree.NotExist("readdir", p)
}

// Open implements [tree.FS].
func (o *oneFile) Open(p string) (io.ReadCloser, error) {
	switch p {
	case "":
		return nil, &fs.PathError{Op: "open", Path: "/", Err: tree.ErrNotRegular}
	case o.entry.Path:
		return o.open()
	}
	return nil, tree.NotExist("open", p)
}

// Bytes returns a tree of one regular file, which holds data.
func Bytes(name string, data []byte) tree.FS {
	return &oneFile{
		entry: tree.Entry{Path: name, Mode: tree.ModeRegular | 0o644, Size: int64(len(data)), ModTime: time.Unix(0, 0)},
		open:  func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	}
}
