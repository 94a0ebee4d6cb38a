// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package store keeps content-addressed blobs and layer indexes on disk. Files
// appear atomically and are shared between processes.
package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Store is a directory with
//
//	blobs/<algorithm>/<hex>   blobs by digest
//	index/<algorithm>/<hex>   layer indexes by diffID
//	diff/<algorithm>/<hex>    for a diffID, the descriptor of a blob that holds it
//	tmp/                      files being written
//
// It is safe for concurrent use, also by several processes.
type Store struct {
	dir     string
	session string // where blobs and files being written are: dir, or a part of it
}

// Open opens the store at dir and makes it if there is none.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir, session: dir}
	return s, s.make()
}

func (s *Store) make() error {
	for _, d := range []string{
		filepath.Join(s.session, "blobs/sha256"), filepath.Join(s.session, "tmp"),
		filepath.Join(s.dir, "index/sha256"), filepath.Join(s.dir, "diff/sha256"),
	} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("open store: %w", err)
		}
	}
	return nil
}

// Session returns a view of the store whose blobs last until close is called;
// indexes stay. Sessions do not see each other's blobs, so that no build loses
// one to another's end. What a killed session has left is removed by age.
func (s *Store) Session() (session *Store, end func() error, err error) {
	runs := filepath.Join(s.dir, "run")
	if err := os.MkdirAll(runs, 0o700); err != nil {
		return nil, nil, fmt.Errorf("open store: %w", err)
	}
	s.sweep(runs)
	dir, err := os.MkdirTemp(runs, "")
	if err != nil {
		return nil, nil, fmt.Errorf("open store: %w", err)
	}
	session = &Store{dir: s.dir, session: dir}
	if err := session.make(); err != nil {
		return nil, nil, err
	}
	return session, func() error { return os.RemoveAll(dir) }, nil
}

// staleAfter is how long a session's directory may be left alone before it counts as
// a killed build's. Builds touch theirs with every blob.
const staleAfter = 24 * time.Hour

func (s *Store) sweep(runs string) {
	list, err := os.ReadDir(runs)
	if err != nil {
		return
	}
	for _, e := range list {
		tmp := filepath.Join(runs, e.Name(), "tmp")
		if fi, err := os.Stat(tmp); err == nil && time.Since(fi.ModTime()) > staleAfter {
			_ = os.RemoveAll(filepath.Join(runs, e.Name()))
		}
	}
}

// Dir returns the store's directory.
func (s *Store) Dir() string { return s.dir }

// A Kind is one of the store's name spaces.
type Kind string

// The name spaces of a store.
const (
	Blobs   Kind = "blobs"
	Indexes Kind = "index"
	Diffs   Kind = "diff"
)

func (s *Store) path(k Kind, d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("%s %q: %w", k, d, err)
	}
	dir := s.dir
	if k == Blobs {
		dir = s.session
	}
	return filepath.Join(dir, string(k), d.Algorithm().String(), d.Encoded()), nil
}

// Get opens what is stored under d. Its error satisfies fs.ErrNotExist if there is nothing.
// What is read is not verified here.
func (s *Store) Get(k Kind, d digest.Digest) (*os.File, error) {
	p, err := s.path(k, d)
	if err != nil {
		return nil, err
	}
	return os.Open(p)
}

// Has returns the size in bytes of what is stored under d and whether there is anything.
func (s *Store) Has(k Kind, d digest.Digest) (int64, bool) {
	p, err := s.path(k, d)
	if err != nil {
		return 0, false
	}
	fi, err := os.Stat(p)
	if err != nil {
		return 0, false
	}
	return fi.Size(), true
}

// Delete removes what is stored under d, if anything.
func (s *Store) Delete(k Kind, d digest.Digest) error {
	p, err := s.path(k, d)
	if err != nil {
		return err
	}
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// A Writer is a file on its way into the store. Commit or Discard ends it.
type Writer struct {
	*os.File
	s *Store
}

// Create starts a file.
func (s *Store) Create() (*Writer, error) {
	f, err := os.CreateTemp(filepath.Join(s.session, "tmp"), "w")
	if err != nil {
		return nil, fmt.Errorf("create in store: %w", err)
	}
	return &Writer{File: f, s: s}, nil
}

// Commit closes the file and stores it under d, which the caller has computed.
func (w *Writer) Commit(k Kind, d digest.Digest) error {
	p, err := w.s.path(k, d)
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = os.Rename(w.Name(), p)
	}
	if err != nil {
		w.Discard()
		return fmt.Errorf("store %s %s: %w", k, d, err)
	}
	return nil
}

// Discard drops the file; it may follow a Commit, to no effect.
func (w *Writer) Discard() {
	_ = w.Close()
	_ = os.Remove(w.Name())
}

// Put stores b under d.
func (s *Store) Put(k Kind, d digest.Digest, b []byte) error {
	w, err := s.Create()
	if err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		w.Discard()
		return fmt.Errorf("store %s %s: %w", k, d, err)
	}
	return w.Commit(k, d)
}

// ReadAll returns what is stored under d.
func (s *Store) ReadAll(k Kind, d digest.Digest) ([]byte, error) {
	f, err := s.Get(k, d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}
