// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package store

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestClaim: one at a time has the claim on a blob, whoever opened the directory.
func TestClaim(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	dg := digest.FromString("blob")
	var inside, most, turns atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		d := openDepot(t, dir, DepotOptions{})
		wg.Go(func() {
			for range 5 {
				release := d.Claim(t.Context(), dg, time.Minute)
				if n := inside.Add(1); n > most.Load() {
					most.Store(n)
				}
				turns.Add(1)
				time.Sleep(time.Millisecond)
				inside.Add(-1)
				release()
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 || turns.Load() != 40 {
		t.Errorf("%d had it at the same time, %d turns", most.Load(), turns.Load())
	}
	if left, err := os.ReadDir(filepath.Join(dir, DepotDir, "tmp")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestClaimWaits: a claim waits as long as it is told to, and for its own blob only.
func TestClaimWaits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one, two := openDepot(t, dir, DepotOptions{}), openDepot(t, dir, DepotOptions{})
	dg := digest.FromString("blob")
	release := one.Claim(t.Context(), dg, time.Minute)
	defer release()
	began := time.Now()
	two.Claim(t.Context(), digest.FromString("other"), time.Minute)()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("another blob was waited for, %s", took)
	}
	began = time.Now()
	two.Claim(t.Context(), dg, 200*time.Millisecond)()
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("it did not wait: %s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	two.Claim(ctx, dg, time.Hour)()
	// What it was not given it does not take away.
	began = time.Now()
	two.Claim(t.Context(), dg, 100*time.Millisecond)()
	if took := time.Since(began); took < 100*time.Millisecond {
		t.Error("the claim was lost")
	}
	// A directory that is only read is claimed by nobody.
	openDepot(t, dir, DepotOptions{ReadOnly: true}).Claim(t.Context(), dg, time.Hour)()
}
