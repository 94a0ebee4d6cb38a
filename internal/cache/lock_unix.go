// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package cache

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lock keeps others from writing the layout's index, for as long as the lock is
// held. A file system that has no locks does without.
func (b *dirBackend) lock() (unlock func(), err error) {
	f, err := b.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || err != unix.EWOULDBLOCK {
			return func() { _ = f.Close() }, nil
		}
		if time.Since(began) > patience {
			_ = f.Close()
			return nil, fmt.Errorf("it was locked by another build for %s", patience)
		}
	}
}
