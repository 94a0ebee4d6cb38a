// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix && !linux

package tree

import (
	"io/fs"
	"syscall"
)

// openFlags keep the opening of a file that has become a FIFO, or a link, from
// blocking or succeeding.
const openFlags = syscall.O_NONBLOCK | syscall.O_NOFOLLOW

func fileMode(m fs.FileMode) Mode { return FromFileMode(m) }

func sysInfo(fi fs.FileInfo, e *Entry) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return
	}
	e.UID, e.GID = st.Uid, st.Gid
	if st.Nlink > 1 && !e.Mode.IsDir() {
		e.Node = NodeID{Dev: uint64(st.Dev), Ino: uint64(st.Ino)} //nolint:unconvert // types differ between systems
	}
}
