// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// tryLock locks f for as long as it is open; the kernel ends the lock of a
// process that is killed.
func tryLock(f *os.File) lockState {
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
		return locked
	case unix.EWOULDBLOCK:
		return lockedByOther
	default:
		return noLocks
	}
}
