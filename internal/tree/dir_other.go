// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package tree

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

type dirHandle struct{ root *os.Root }

// newDirHandle takes the directory's name once more, since os.Root cannot be
// made of an open file.
func newDirHandle(f *os.File) (*dirHandle, error) {
	root, err := os.OpenRoot(f.Name())
	if err != nil {
		return nil, err
	}
	_ = f.Close()
	return &dirHandle{root: root}, nil
}

func (h *dirHandle) close() error { return h.root.Close() }

func isAbsence(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, errNotDir)
}

var errNotDir = errors.New("not a directory")

// check makes sure that every directory on the way to p is one: os.Root keeps
// to the directory but follows links within it.
func (d *Dir) check(p string) error {
	if !validPath(p) {
		return fs.ErrNotExist
	}
	for i, c := range p {
		if c != '/' {
			continue
		}
		fi, err := d.h.root.Lstat(filepath.FromSlash(p[:i]))
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			return errNotDir
		}
	}
	return nil
}

func osName(p string) string {
	if p == "" {
		return "."
	}
	return filepath.FromSlash(p)
}

// Lstat implements [FS].
func (d *Dir) Lstat(p string) (Entry, error) {
	if err := d.check(p); err != nil {
		return Entry{}, pathErr("lstat", p, err)
	}
	fi, err := d.h.root.Lstat(osName(p))
	if err != nil {
		return Entry{}, pathErr("lstat", p, err)
	}
	e, err := d.entry(p, fi)
	return e, pathErr("lstat", p, err)
}

func (d *Dir) entry(p string, fi fs.FileInfo) (Entry, error) {
	e := Entry{Path: p, Mode: fileMode(fi.Mode()), ModTime: fi.ModTime()}
	switch {
	case e.Mode.IsRegular():
		e.Size = fi.Size()
	case e.Mode.IsSymlink():
		link, err := d.h.root.Readlink(osName(p))
		if err != nil {
			return Entry{}, err
		}
		e.Link = filepath.ToSlash(link)
	}
	sysInfo(fi, &e)
	return e, nil
}

// ReadDir implements [FS].
func (d *Dir) ReadDir(p string) ([]Entry, error) {
	self, err := d.Lstat(p)
	if err != nil {
		return nil, err
	}
	if !self.Mode.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: "/" + p, Err: syscall.ENOTDIR}
	}
	f, err := d.h.root.Open(osName(p))
	if err != nil {
		return nil, pathErr("readdir", p, err)
	}
	defer f.Close()
	infos, err := f.Readdir(-1)
	if err != nil {
		return nil, pathErr("readdir", p, err)
	}
	slices.SortFunc(infos, func(a, b fs.FileInfo) int { return strings.Compare(a.Name(), b.Name()) })
	entries := make([]Entry, 0, len(infos))
	for _, fi := range infos {
		e, err := d.entry(Join(p, fi.Name()), fi)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, pathErr("readdir", Join(p, fi.Name()), err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// Open implements [FS].
func (d *Dir) Open(p string) (io.ReadCloser, error) {
	e, err := d.Lstat(p)
	if err != nil {
		return nil, err
	}
	if !e.Mode.IsRegular() {
		return nil, pathErr("open", p, ErrNotRegular)
	}
	f, err := d.h.root.OpenFile(osName(p), os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, pathErr("open", p, err)
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		_ = f.Close()
		return nil, pathErr("open", p, ErrNotRegular)
	}
	return f, nil
}
