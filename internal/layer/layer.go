// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package layer is about image layers: lists of changes as tar archives, and
// stacks of them as file trees. Whiteouts are known here and nowhere else.
//
// A [Layer] is known by its DiffID. What it does is in its index, a sorted file
// beside the blob: with it a stack of layers can be looked at as a tree
// ([Ref.Tree]), and single files read from the middle of a blob, without
// unpacking anything. The index is built in the one pass that writes a layer
// ([Write]) or streams a foreign one ([Layer.Unpack], or on first need).
package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

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
	// Created is the time for the layer's history entry; zero for layers of
	// foreign images, whose history has it.
	Created time.Time
	// Description says in a few words what made the layer.
	Description string
	// Origin is "registry/repository" where the blob can be mounted from, or "".
	Origin string

	diffID  image.DiffID
	desc    ocispecs.Descriptor
	st      *store.Store
	src     Source // nil: the blob is in st
	changes iter.Seq2[tree.Change, error]
	isKnown bool
	place   string // of a known layer

	pass sync.Mutex // held by the one pass that streams the blob
	mu   sync.Mutex
	idx  *index
	idle []*cursor
	// remote opens the index where somebody keeps it; nil if nobody does.
	remote func(ctx context.Context) (io.ReadCloser, error)
	// content is the ContentID once it is known.
	content digest.Digest
}

// New returns a layer whose blob, described by desc, src can open.
func New(st *store.Store, diffID image.DiffID, desc ocispecs.Descriptor, src Source) *Layer {
	return &Layer{diffID: diffID, desc: desc, st: st, src: src}
}

// DiffID returns the layer's identity.
func (l *Layer) DiffID() image.DiffID { return l.diffID }

// Descriptor returns media type, digest and size of the compressed blob.
func (l *Layer) Descriptor() ocispecs.Descriptor { return l.desc }

// name returns what to call the layer in an error.
func (l *Layer) name() string {
	if l.desc.Digest == "" {
		return "archive"
	}
	return "layer " + l.desc.Digest.String()
}

// Local tells whether the blob is on this disk already.
func (l *Layer) Local() bool {
	if k, ok := l.src.(Keeper); ok && k.Holds() {
		return true
	}
	_, ok := l.st.Has(store.Blobs, l.desc.Digest)
	return ok
}

// keeps tells whether the blob is on this disk once it was read.
func (l *Layer) keeps() bool {
	if k, ok := l.src.(Keeper); ok && k.WillHold() {
		return true
	}
	return l.Local()
}

// IsForeign tells whether the layer came with an image instead of being made
// in this build.
func (l *Layer) IsForeign() bool { return l.src != nil }

// Open returns the compressed blob. It is verified while it is read: the read
// that would return io.EOF fails if the bytes were not the descriptor's.
func (l *Layer) Open(ctx context.Context) (io.ReadCloser, error) {
	rc, err := l.openAt(ctx, 0)
	if err != nil {
		return nil, err
	}
	return Verify(rc, l.desc), nil
}

// Verify returns a reader of the blob that desc describes, from its start: the
// read that would return io.EOF fails if the bytes were not desc's.
func Verify(rc io.ReadCloser, desc ocispecs.Descriptor) io.ReadCloser {
	return &verifier{rc: rc, hash: desc.Digest.Algorithm().Hash(), want: desc.Digest, size: desc.Size}
}

// OpenAt returns the compressed blob from offset on, unverified.
func (l *Layer) OpenAt(ctx context.Context, offset int64) (io.ReadCloser, error) {
	return l.openAt(ctx, offset)
}

func (l *Layer) openAt(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if l.desc.Digest == "" { // an archive
		return l.src.Open(ctx, offset)
	}
	f, err := l.st.Get(store.Blobs, l.desc.Digest)
	if errors.Is(err, fs.ErrNotExist) && l.src != nil {
		rc, err := l.src.Open(ctx, offset)
		return rc, l.lost(ctx, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", l.desc.Digest, err)
	}
	if offset != 0 {
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// Changes returns what the layer was made of while that can still be read, or
// nil: applying these costs no inflation.
func (l *Layer) Changes() iter.Seq2[tree.Change, error] {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changes
}

// Forget drops the changes that the layer was made of, before what they read
// goes away.
func (l *Layer) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changes = nil
}

// CloseIdle closes readers that are kept open for the next file.
func (l *Layer) CloseIdle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.idle {
		_ = c.close()
	}
	l.idle = nil
}

// A Ref is the result of an op: a chain of layers, or, for build contexts and
// other local sources, a tree that is no layer yet.
type Ref struct {
	Layers []*Layer // bottom first
	FS     tree.FS  // set instead of Layers for local sources

	once sync.Mutex
	view tree.FS
}

// Tree returns the flattened view of the ref. For layers it builds or loads
// their indexes, streaming a layer once if its index is not known. A nil Ref is
// an empty tree.
func (r *Ref) Tree(ctx context.Context) (tree.FS, error) {
	if r == nil {
		return newChain(ctx, nil)
	}
	if r.FS != nil {
		return r.FS, nil
	}
	r.once.Lock()
	defer r.once.Unlock()
	if r.view != nil {
		return r.view, nil
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2) // each pass has read-ahead and hashing of its own
	for _, l := range r.Layers {
		g.Go(func() error {
			_, err := l.index(gctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	c, err := newChain(ctx, r.Layers)
	if err != nil {
		return nil, err
	}
	r.view = c
	return c, nil
}

// ChainID returns the identity of the ref's layers.
func (r *Ref) ChainID() image.ChainID {
	if r == nil {
		return ""
	}
	ids := make([]image.DiffID, len(r.Layers))
	for i, l := range r.Layers {
		ids[i] = l.diffID
	}
	return image.ChainIDOf(ids)
}
