// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package layer is about image layers: lists of changes as tar archives, and
// stacks of them as file trees. Whiteouts are known here and nowhere else.
package layer

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/store"
	"hako/internal/tree"
)

// A Source opens a layer's compressed blob where it lies: in a registry, an
// OCI layout, a tar. Its bytes are not trusted: the layer verifies them.
type Source interface {
	// Open returns the blob's bytes from offset on.
	Open(ctx context.Context, offset int64) (io.ReadCloser, error)
}

// A Layer is one set of changes, known by its DiffID. Its blob may be on disk
// or still where it came from; it is fetched at most once, and only if needed.
// A Layer is safe for concurrent use.
type Layer struct {
	// Created is the time for the layer's history entry.
	Created time.Time
	// Origin is "registry/repository" where the blob can be mounted from, or "".
	Origin string

	diffID image.DiffID
	desc   ocispecs.Descriptor
	st     *store.Store
	src    Source
}

// New returns a layer whose blob, described by desc, src can open.
func New(st *store.Store, diffID image.DiffID, desc ocispecs.Descriptor, src Source) *Layer {
	return &Layer{diffID: diffID, desc: desc, st: st, src: src}
}

// DiffID returns the layer's identity.
func (l *Layer) DiffID() image.DiffID { return l.diffID }

// Descriptor returns media type, digest and size of the compressed blob.
func (l *Layer) Descriptor() ocispecs.Descriptor { return l.desc }

// Open returns the compressed blob, verified while it is read: the last read
// fails if the bytes are not the descriptor's.
func (l *Layer) Open(ctx context.Context) (io.ReadCloser, error) {
	return nil, errors.New("not written yet")
}

// A Ref is the result of an op: a chain of layers, or, for build contexts and
// other local sources, a tree that is no layer yet.
type Ref struct {
	Layers []*Layer // bottom first
	FS     tree.FS  // set instead of Layers for local sources
}

// Tree returns the flattened view of the ref. For layers it builds or loads
// their indexes, streaming a layer once if its index is not known.
func (r *Ref) Tree(ctx context.Context) (tree.FS, error) {
	return nil, errors.New("not written yet")
}

// WriteOptions say how a layer is written.
type WriteOptions struct {
	Created time.Time
	Zstd    bool
	Level   int
	Clamp   time.Time
}

// Write makes a layer of changes in one pass: tar, digest, compression, index
// and spool into st.
func Write(ctx context.Context, st *store.Store, changes iter.Seq2[tree.Change, error], opt WriteOptions) (*Layer, error) {
	return nil, errors.New("not written yet")
}
