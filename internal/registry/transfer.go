// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// A Transfer is a blob that is on its way to a repository, or from it.
type Transfer struct {
	Repo   name.Repository
	IsPush bool
	Blob   digest.Digest
	Size   int64
}

// Moving is told how far a transfer is. Both may be called by several goroutines,
// End any number of times.
type Moving interface {
	// At says that so many bytes of the blob are there.
	At(n int64)
	// End says that nothing more comes, whether or not all is there.
	End()
}

// stillness is told and forgets.
type stillness struct{}

func (stillness) At(int64) {}
func (stillness) End()     {}

// begin tells of a transfer.
func (a *access) begin(size int64, d digest.Digest, isPush bool) Moving {
	if a.c.opt.Transfer == nil {
		return stillness{}
	}
	return a.c.opt.Transfer(Transfer{Repo: a.repo, IsPush: isPush, Blob: d, Size: size})
}
