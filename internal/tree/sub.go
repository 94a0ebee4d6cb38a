// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"io"
	"strings"
)

// Sub returns the tree below dir, a directory of fsys. Links that leave it lead
// to what they would with dir as the root.
func Sub(fsys FS, dir string) FS {
	if dir == "" {
		return fsys
	}
	return sub{fsys, dir}
}

type sub struct {
	fsys FS
	dir  string
}

func (s sub) rel(e Entry) Entry {
	e.Path = strings.TrimPrefix(strings.TrimPrefix(e.Path, s.dir), "/")
	return e
}

// Lstat implements [FS].
func (s sub) Lstat(p string) (Entry, error) {
	e, err := s.fsys.Lstat(Join(s.dir, p))
	return s.rel(e), err
}

// ReadDir implements [FS].
func (s sub) ReadDir(p string) ([]Entry, error) {
	es, err := s.fsys.ReadDir(Join(s.dir, p))
	for i := range es {
		es[i] = s.rel(es[i])
	}
	return es, err
}

// Open implements [FS].
func (s sub) Open(p string) (io.ReadCloser, error) { return s.fsys.Open(Join(s.dir, p)) }
