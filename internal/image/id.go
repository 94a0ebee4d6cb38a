// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package image holds what an image is made of as plain data: configs,
// manifests, indexes, history and the identities of layers. It reads and
// writes nothing.
package image

import "github.com/opencontainers/go-digest"

// A DiffID is the digest of a layer's uncompressed tar (OCI image-spec
// config.md, "Layer DiffID"). It names what a layer does, whatever the
// compression of the blob that carries it.
type DiffID digest.Digest

// String returns the DiffID as "algorithm:hex".
func (d DiffID) String() string { return string(d) }

// Digest returns the DiffID as a plain digest.
func (d DiffID) Digest() digest.Digest { return digest.Digest(d) }

// A ChainID identifies a stack of layers (OCI image-spec config.md, "Layer
// ChainID").
type ChainID digest.Digest

// ChainIDOf returns the identity of the stack of diffIDs, bottom first; it is
// empty for an empty stack.
func ChainIDOf(diffIDs []DiffID) ChainID {
	var c ChainID
	for i, d := range diffIDs {
		if i == 0 {
			c = ChainID(d)
			continue
		}
		c = ChainID(digest.FromString(string(c) + " " + string(d)))
	}
	return c
}
