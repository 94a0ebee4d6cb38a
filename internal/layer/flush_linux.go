// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"sync"

	"golang.org/x/sys/unix"
)

// A flusher keeps what is written but not on disk below a bound. Pages that wait
// to be written count against a container's memory limit, and a limit of a few
// hundred megabytes is full of them before the kernel begins to write: from then
// on every allocation waits for the disk, and in the end the kernel kills a
// process of the container although hardly any memory is in use.
type flusher struct {
	every int64 // bytes between syncs; 0: never
	fd    int   // on the file system
	mu    sync.Mutex
	n     int64
	wg    sync.WaitGroup
}

// wrote tells that k bytes were written. It waits if the sync before is still
// under way when the next is due, and lets all who write wait.
func (f *flusher) wrote(k int) {
	if f.every == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n += int64(k); f.n < f.every {
		return
	}
	f.n = 0
	f.wg.Wait()
	f.wg.Go(func() {
		// Only a head start: what cannot be synced is still written later.
		_ = unix.Syncfs(f.fd)
	})
}

// wait ends the flusher.
func (f *flusher) wait() { f.wg.Wait() }
