// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"os"
	"path"
	"time"

	"github.com/opencontainers/go-digest"
)

// claimTick is how often a claim that somebody else has is asked for.
const claimTick = 50 * time.Millisecond

// Claim says that the caller is about to fetch the blob dg, and waits while others,
// here or in other processes, have said so: what they fetched is there then. It
// waits no longer than limit, and not at all where files cannot be locked. The claim
// ends with release, or with the process.
func (d *Depot) Claim(ctx context.Context, dg digest.Digest, limit time.Duration) (release func()) {
	none := func() {}
	if !d.Writable() || dg.Validate() != nil {
		return none
	}
	name := path.Join("tmp", "claim-"+dg.Encoded())
	for end := time.Now().Add(limit); ; {
		f, state := d.tryClaim(name)
		switch state {
		case locked:
			return func() {
				_ = d.root.Remove(name) // while it is locked: nobody else has it
				_ = f.Close()
			}
		case noLocks:
			return none
		case lockedByOther:
		}
		if time.Now().After(end) {
			return none
		}
		select {
		case <-time.After(claimTick):
		case <-ctx.Done():
			return none
		}
	}
}

// tryClaim locks the file name, unless it has gone by then: another one may be in
// its place.
func (d *Depot) tryClaim(name string) (*os.File, lockState) {
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, noLocks // what is wrong shows when the blob is written
	}
	state := tryLock(f)
	if state != locked {
		return nil, closed(f, state)
	}
	mine, err := f.Stat()
	there, serr := d.root.Stat(name)
	if errors.Join(err, serr) != nil || !os.SameFile(mine, there) {
		return nil, closed(f, lockedByOther)
	}
	return f, locked
}

func closed(f *os.File, state lockState) lockState {
	_ = f.Close()
	return state
}
