// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"errors"
	"fmt"
	"io"

	"hako/internal/store"
	"hako/internal/tree"
)

// A spool is one temporary file for the contents of many.
type spool struct {
	store *store.Store
	w     *store.Writer
	size  int64
}

// add appends all of r and returns an opener of it and its size.
func (s *spool) add(r io.Reader) (tree.Opener, int64, error) {
	if s.w == nil {
		if s.store == nil {
			return nil, 0, errors.New("spool contents: no store")
		}
		w, err := s.store.Create()
		if err != nil {
			return nil, 0, err
		}
		s.w = w
	}
	off := s.size
	n, err := io.Copy(s.w.File, r)
	s.size += n
	if err != nil {
		return nil, 0, fmt.Errorf("spool contents: %w", err)
	}
	f := s.w.File
	return func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, off, n)), nil
	}, n, nil
}

// close drops the file.
func (s *spool) close() {
	if s.w != nil {
		s.w.Discard()
		s.w = nil
	}
}
