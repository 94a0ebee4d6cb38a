// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package tree is about file trees that need not be on a disk.
//
// An [FS] is a read-only tree: a directory ([Dir]), the flattened view of an
// image's layers (package layer), or an [Overlay], which holds pending changes
// on top of another tree. All Dockerfile file operations are computed on these;
// only RUN needs a real root file system.
//
// Paths in a tree are slash-separated, relative and clean; "" is the root.
// An FS never follows symbolic links by itself: [Resolve] does that, inside the
// tree, with an absolute target meaning the tree's root. That makes a path
// that was resolved once safe to hand to the kernel, link by link.
package tree

import (
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Mode is a Unix st_mode: the file type in the S_IFMT bits, then setuid,
// setgid, sticky and nine permission bits. It has this form on every OS.
type Mode uint32

// File types and bits of a Mode, as in inode(7).
const (
	ModeType    Mode = 0o170000
	ModeSocket  Mode = 0o140000
	ModeSymlink Mode = 0o120000
	ModeRegular Mode = 0o100000
	ModeBlock   Mode = 0o060000
	ModeDir     Mode = 0o040000
	ModeChar    Mode = 0o020000
	ModeFIFO    Mode = 0o010000
	ModeSetuid  Mode = 0o004000
	ModeSetgid  Mode = 0o002000
	ModeSticky  Mode = 0o001000
	ModePerm    Mode = 0o007777 // permissions with setuid, setgid and sticky
)

// Type returns the file type bits alone.
func (m Mode) Type() Mode { return m & ModeType }

// Perm returns the permissions with setuid, setgid and sticky.
func (m Mode) Perm() Mode { return m & ModePerm }

// IsDir reports whether m is a directory.
func (m Mode) IsDir() bool { return m.Type() == ModeDir }

// IsRegular reports whether m is a regular file.
func (m Mode) IsRegular() bool { return m.Type() == ModeRegular }

// IsSymlink reports whether m is a symbolic link.
func (m Mode) IsSymlink() bool { return m.Type() == ModeSymlink }

// IsDevice reports whether m is a block or character device.
func (m Mode) IsDevice() bool { return m.Type() == ModeBlock || m.Type() == ModeChar }

// FileMode returns m as Go's portable fs.FileMode.
func (m Mode) FileMode() fs.FileMode {
	f := fs.FileMode(m & 0o777)
	switch m.Type() {
	case ModeDir:
		f |= fs.ModeDir
	case ModeSymlink:
		f |= fs.ModeSymlink
	case ModeBlock:
		f |= fs.ModeDevice
	case ModeChar:
		f |= fs.ModeDevice | fs.ModeCharDevice
	case ModeFIFO:
		f |= fs.ModeNamedPipe
	case ModeSocket:
		f |= fs.ModeSocket
	}
	if m&ModeSetuid != 0 {
		f |= fs.ModeSetuid
	}
	if m&ModeSetgid != 0 {
		f |= fs.ModeSetgid
	}
	if m&ModeSticky != 0 {
		f |= fs.ModeSticky
	}
	return f
}

// FromFileMode is the inverse of [Mode.FileMode].
func FromFileMode(f fs.FileMode) Mode {
	m := Mode(f.Perm())
	switch {
	case f&fs.ModeDir != 0:
		m |= ModeDir
	case f&fs.ModeSymlink != 0:
		m |= ModeSymlink
	case f&fs.ModeCharDevice != 0:
		m |= ModeChar
	case f&fs.ModeDevice != 0:
		m |= ModeBlock
	case f&fs.ModeNamedPipe != 0:
		m |= ModeFIFO
	case f&fs.ModeSocket != 0:
		m |= ModeSocket
	default:
		m |= ModeRegular
	}
	if f&fs.ModeSetuid != 0 {
		m |= ModeSetuid
	}
	if f&fs.ModeSetgid != 0 {
		m |= ModeSetgid
	}
	if f&fs.ModeSticky != 0 {
		m |= ModeSticky
	}
	return m
}

// A NodeID identifies a file behind its names, as (device, inode) does. The
// zero NodeID means "a file with no other name".
type NodeID struct{ Dev, Ino uint64 }

// An Entry is one name of a tree and everything a layer can record of it.
type Entry struct {
	Path    string // clean, relative, "" is the root
	Mode    Mode
	UID     uint32
	GID     uint32
	Size    int64 // bytes; regular files only
	ModTime time.Time
	Link    string            // target of a symbolic link, verbatim
	Major   uint32            // device number; devices only
	Minor   uint32            // device number; devices only
	Xattrs  map[string]string // nil when there are none
	Node    NodeID            // names with the same non-zero Node are hard links of one file
	Digest  digest.Digest     // SHA-256 of a regular file's content if it is known without reading, else ""
}

// Name returns the last component of the entry's path.
func (e *Entry) Name() string { return Base(e.Path) }

// An FS is a read-only file tree. Implementations are safe for concurrent use.
// Errors for names that do not exist satisfy errors.Is(err, fs.ErrNotExist);
// a path with a component that is not a directory (a symbolic link included)
// does not exist.
type FS interface {
	// Lstat returns the entry at path without following a link there.
	Lstat(path string) (Entry, error)
	// ReadDir returns the entries of the directory at path, sorted by name
	// in byte order, with their full paths.
	ReadDir(path string) ([]Entry, error)
	// Open opens the regular file at path for reading from its start.
	Open(path string) (io.ReadCloser, error)
}

// An Opener opens a regular file's content from its start. It may be called
// more than once and from several goroutines.
type Opener func() (io.ReadCloser, error)

// A Change is one difference between two trees: a name that is to exist as
// Entry says, or (Deleted) no longer.
//
// A sequence of changes is what a layer is made of. It is sorted by path with
// [ComparePaths], so parents precede children; every parent directory of a
// changed name appears in it, and no name appears twice.
type Change struct {
	Entry
	// Deleted: the name is gone; of Entry only Path matters.
	Deleted bool
	// Touched is false for a directory that is in the sequence only because
	// something below it changed.
	Touched bool
	// LinkTo is set on a hard link: the path of an earlier change of the
	// same sequence that is the same file. Open is then nil.
	LinkTo string
	// Open reads the content of a regular file; nil when Size is 0 or on a
	// hard link.
	Open Opener
}
