// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import "github.com/opencontainers/go-digest"

// A Selection is what an op reads of a tree.
type Selection struct {
	// Digest covers how it was found and, without times, all that a layer can
	// hold of it.
	Digest digest.Digest
	// Files are the names that were read, sorted, with a digest of what the
	// selection has of each.
	Files []SelectedFile
}

// A SelectedFile is one name of a [Selection].
type SelectedFile struct {
	Path   string
	Digest digest.Digest
}
