// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"io"
	"sync"
)

// A Switch is an FS whose place can change: a build context that has to make
// room on its own volume. Files that are open stay open.
type Switch struct {
	mu sync.RWMutex
	fs FS
}

// NewSwitch returns a Switch that shows fsys.
func NewSwitch(fsys FS) *Switch { return &Switch{fs: fsys} }

// Move runs move while nothing reads the tree; what it returns is shown from
// then on, unless it fails.
func (s *Switch) Move(move func() (FS, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	fsys, err := move()
	if err == nil {
		s.fs = fsys
	}
	return err
}

// Lstat implements FS.
func (s *Switch) Lstat(p string) (Entry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.fs.Lstat(p)
}

// ReadDir implements FS.
func (s *Switch) ReadDir(p string) ([]Entry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.fs.ReadDir(p)
}

// Open implements FS.
func (s *Switch) Open(p string) (io.ReadCloser, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.fs.Open(p)
}
