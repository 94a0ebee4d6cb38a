// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A dirScratch is memory for looking at one directory, used again for the next:
// a walk over a large image would otherwise be mostly about memory.
type dirScratch struct {
	buf   []byte
	names []dirent
	nodes []node
}

// A dirent is a name in a directory and its type, DT_UNKNOWN where the file system
// does not tell.
type dirent struct {
	name []byte // in the scratch's buf
	kind byte
}

// read reads the names in the open directory fd into nodes, in byte order, with the
// type as their mode. Those that old has are not allocated again.
func (s *dirScratch) read(fd int, old *dirRecord) error {
	n, err := s.fill(fd)
	if err != nil {
		return err
	}
	s.names = appendNames(s.names[:0], s.buf[:n])
	slices.SortFunc(s.names, func(a, b dirent) int { return bytes.Compare(a.name, b.name) })
	s.nodes = slices.Grow(s.nodes[:0], len(s.names))
	j := 0
	for _, e := range s.names {
		for j < len(old.nodes) && old.nodes[j].name < string(e.name) {
			j++
		}
		// The type bits of a mode are those of a dirent, higher up (IFTODT(3)).
		n := node{mode: uint32(e.kind) << 12}
		if j < len(old.nodes) && old.nodes[j].name == string(e.name) {
			n.name = old.nodes[j].name
		} else {
			n.name = string(e.name)
		}
		s.nodes = append(s.nodes, n)
	}
	return nil
}

// fill reads all of a directory into buf and returns how much that is.
func (s *dirScratch) fill(fd int) (int, error) {
	for n := 0; ; {
		if len(s.buf)-n < 16<<10 { // far more than one name takes
			s.buf = append(s.buf, make([]byte, len(s.buf))...)
		}
		k, err := unix.Getdents(fd, s.buf[n:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case k == 0:
			return n, nil
		default:
			n += k
		}
	}
}

// The places in a struct linux_dirent64, the same on all architectures; see
// getdents64(2).
const (
	direntReclen = 16
	direntType   = 18
	direntName   = 19
)

// appendNames appends the names in what getdents64 has returned, which they lie in.
func appendNames(names []dirent, buf []byte) []dirent {
	for len(buf) > direntName {
		size := int(binary.NativeEndian.Uint16(buf[direntReclen:]))
		if size <= direntName || size > len(buf) {
			break // no kernel does that
		}
		name, _, _ := bytes.Cut(buf[direntName:size], []byte{0})
		if string(name) != "." && string(name) != ".." {
			names = append(names, dirent{name, buf[direntType]})
		}
		buf = buf[size:]
	}
	return names
}

// node returns what is known of the name, nil if nothing is.
func (d *dirRecord) node(name string) *node {
	i, ok := slices.BinarySearchFunc(d.nodes, name, func(n node, name string) int { return strings.Compare(n.name, name) })
	if !ok {
		return nil
	}
	return &d.nodes[i]
}

// kids returns what is known of the subdirectory of that name, empty if nothing is.
func (d *dirRecord) kids(name string) *dirRecord {
	if n := d.node(name); n != nil && n.kids != nil {
		return n.kids
	}
	return &dirRecord{}
}
