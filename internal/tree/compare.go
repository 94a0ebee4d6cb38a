// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// capability is the one extended attribute that layers keep.
const capability = "security.capability"

// SameMeta reports whether a layer would record a and b alike, contents of
// regular files aside: type, mode, owner, device, link, capabilities, and for
// all but directories size and time.
func SameMeta(a, b *Entry) bool {
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Xattrs[capability] != b.Xattrs[capability] {
		return false
	}
	switch {
	case a.Mode.IsDir():
		return true
	case a.Mode.IsDevice():
		if a.Major != b.Major || a.Minor != b.Minor {
			return false
		}
	case a.Mode.IsSymlink():
		if a.Link != b.Link {
			return false
		}
	case a.Mode.IsRegular():
		if a.Size != b.Size {
			return false
		}
	}
	return sameTime(a, b)
}

func sec(e *Entry) int64 {
	if e.ModTime.IsZero() {
		return 0
	}
	return e.ModTime.Unix()
}

func sameTime(a, b *Entry) bool {
	// Not Equal: a zero time.Time and 1970 are the same to a file system here.
	return sec(a) == sec(b) && a.ModTime.Nanosecond() == b.ModTime.Nanosecond()
}

// sameContent compares the contents of two files of one size, by their digests
// as far as those are known.
func sameContent(da digest.Digest, a Opener, db digest.Digest, b Opener) (bool, error) {
	if da == "" {
		var err error
		if da, err = contentDigest(a); err != nil {
			return false, err
		}
	}
	if db == "" {
		var err error
		if db, err = contentDigest(b); err != nil {
			return false, err
		}
	}
	return da == db, nil
}

func contentDigest(open Opener) (digest.Digest, error) {
	r, err := open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

// OpenerOf returns an opener of the regular file at p in fsys. Of an [Overlay]
// it keeps giving what the file holds now.
func OpenerOf(fsys FS, p string) (Opener, error) {
	if o, ok := fsys.(*Overlay); ok {
		return o.Opener(p)
	}
	return func() (io.ReadCloser, error) { return fsys.Open(p) }, nil
}

// A SizeError says that a file has not the size that it had when its tree was
// read: somebody writes to it during the build.
type SizeError struct {
	Path string
	Want int64
	Got  int64 // Want+1 means "more than Want"
}

// Error implements error.
func (e *SizeError) Error() string {
	if e.Got > e.Want {
		return fmt.Sprintf("read %q: file changed during the build: it has more than %d bytes now", e.Path, e.Want)
	}
	return fmt.Sprintf("read %q: file changed during the build: %d bytes now, %d before", e.Path, e.Got, e.Want)
}

// CheckSize returns an opener whose readers fail with a [*SizeError] if what
// open gives for p is shorter or longer than size. A nil open is an empty file.
func CheckSize(open Opener, p string, size int64) Opener {
	return func() (io.ReadCloser, error) {
		if open == nil {
			if size != 0 {
				return nil, &SizeError{Path: p, Want: size}
			}
			return io.NopCloser(eofReader{}), nil
		}
		r, err := open()
		if err != nil {
			return nil, err
		}
		return &sizeReader{ReadCloser: r, path: p, size: size}, nil
	}
}

type eofReader struct{}

func (eofReader) Read([]byte) (int, error) { return 0, io.EOF }

type sizeReader struct {
	io.ReadCloser
	path      string
	size, got int64
}

func (r *sizeReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	r.got += int64(n)
	if r.got > r.size {
		return 0, &SizeError{Path: r.path, Want: r.size, Got: r.size + 1}
	}
	if err == io.EOF && r.got < r.size {
		return n, &SizeError{Path: r.path, Want: r.size, Got: r.got}
	}
	return n, err
}
