// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"encoding/hex"
	"sync"

	"github.com/opencontainers/go-digest"

	"hako/internal/tree"
)

// A summedFS is a tree whose entries have the digest of what was once read of
// them. What the key of a step was computed of is what its layer has to hold: a
// file that changes in between does not get into an image, as the writer of
// layers compares (layer.ErrChanged).
type summedFS struct {
	tree.FS

	mu   sync.Mutex
	sums map[string][32]byte // by path
}

var _ tree.FS = (*summedFS)(nil)

func newSummed(fsys tree.FS) *summedFS { return &summedFS{FS: fsys, sums: map[string][32]byte{}} }

func (f *summedFS) fill(e *tree.Entry) {
	if !e.Mode.IsRegular() || e.Digest != "" {
		return
	}
	f.mu.Lock()
	sum, ok := f.sums[e.Path]
	f.mu.Unlock()
	if ok {
		e.Digest = digest.NewDigestFromBytes(digest.SHA256, sum[:])
	}
}

// Lstat implements [tree.FS].
func (f *summedFS) Lstat(p string) (tree.Entry, error) {
	e, err := f.FS.Lstat(p)
	if err == nil {
		f.fill(&e)
	}
	return e, err
}

// ReadDir implements [tree.FS].
func (f *summedFS) ReadDir(p string) ([]tree.Entry, error) {
	es, err := f.FS.ReadDir(p)
	for i := range es {
		f.fill(&es[i])
	}
	return es, err
}

// note remembers what the regular file at p was found to hold.
func (f *summedFS) note(p string, sum digest.Digest) {
	b, err := hex.DecodeString(sum.Encoded())
	if err != nil || len(b) != 32 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sums[p] = [32]byte(b)
}
