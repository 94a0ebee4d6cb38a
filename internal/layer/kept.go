// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"errors"
	"io"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/store"
)

// A Keeper is a Source that keeps on this machine what is read of it: there is
// no use in keeping it a second time.
type Keeper interface {
	Source
	// Holds tells whether the blob is here.
	Holds() bool
	// WillHold tells whether it is, or will be once it was read from its start to
	// its end.
	WillHold() bool
}

// A KeptSource is a Source whose blob lies in a depot, or gets there as soon as
// somebody reads all of it. What the depot has lost or spoiled comes from the
// inner source, from the place on where it was missed.
type KeptSource struct {
	Source

	Depot *store.Depot
	Desc  ocispecs.Descriptor
}

var _ Keeper = (*KeptSource)(nil)

// Holds implements Keeper.
func (s *KeptSource) Holds() bool { return s.Depot.Has(s.Desc.Digest, s.Desc.Size) }

// WillHold implements Keeper.
func (s *KeptSource) WillHold() bool { return s.Holds() || s.Depot.HasRoom(s.Desc.Size) }

// Open implements Source.
func (s *KeptSource) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if r, err := s.Depot.Open(s.Desc.Digest, s.Desc.Size, offset); err == nil {
		return &keptReader{ctx: ctx, s: s, rc: r, pos: offset, isKept: true}, nil
	}
	rc, err := s.Source.Open(ctx, offset)
	if err != nil || offset != 0 {
		return rc, err
	}
	w := s.Depot.Create(s.Desc.Digest, s.Desc.Size)
	if w == nil {
		return rc, nil
	}
	return &keeping{ReadCloser: rc, w: w, left: s.Desc.Size}, nil
}

// A keptReader reads from the depot and, once that fails, from where the blob
// came from.
type keptReader struct {
	ctx    context.Context //nolint:containedctx // the caller's of Open
	s      *KeptSource
	rc     io.ReadCloser
	pos    int64
	isKept bool
}

func (r *keptReader) Read(p []byte) (int, error) {
	n, err := r.rc.Read(p)
	r.pos += int64(n)
	if !r.isKept || err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	rc, err := r.s.Source.Open(r.ctx, r.pos)
	if err != nil {
		return n, err
	}
	_ = r.rc.Close() // it was only read from
	r.rc, r.isKept = rc, false
	return n, nil
}

func (r *keptReader) Close() error { return r.rc.Close() }

// A keeping writes what is read into the depot. If that fails, reading goes on.
type keeping struct {
	io.ReadCloser

	w    *store.DepotWriter // nil: it is over
	left int64
}

func (k *keeping) Read(p []byte) (int, error) {
	n, err := k.ReadCloser.Read(p)
	if k.w == nil {
		return n, err
	}
	if _, werr := k.w.Write(p[:n]); werr != nil {
		k.w = nil
		return n, err
	}
	if k.left -= int64(n); k.left <= 0 {
		_ = k.w.Commit() // wrong bytes are for the reader to refuse
		k.w = nil
	}
	return n, err
}

func (k *keeping) Close() error {
	if k.w != nil {
		k.w.Discard()
	}
	return k.ReadCloser.Close()
}

// IndexFormat names the form of layers' indexes: one of another form is of no use.
const IndexFormat = indexMagic

// NewKept returns a layer of an image in a registry whose blob and index are
// kept in a depot.
func NewKept(l *Layer, depot *store.Depot) *Layer {
	l.src = &KeptSource{Source: l.src, Depot: depot, Desc: l.desc}
	if depot.HasIndex(IndexFormat, l.diffID.Digest()) {
		l.remote = func(context.Context) (io.ReadCloser, error) { return depot.OpenIndex(IndexFormat, l.diffID.Digest()) }
	}
	return l
}

// KeepIndex stores the layer's index in the depot if it is known and not there.
func (l *Layer) KeepIndex(ctx context.Context, depot *store.Depot) error {
	id := l.diffID.Digest()
	if _, ok := l.src.(*KeptSource); !ok || !depot.Writable() || depot.HasIndex(IndexFormat, id) || l.loadedIndex() == nil {
		return nil
	}
	return depot.PutIndex(IndexFormat, id, func(w io.Writer) error { return l.PackIndex(ctx, w) })
}

// Index builds the layer's index if it cannot be had otherwise.
func (l *Layer) Index(ctx context.Context) error {
	_, err := l.index(ctx)
	return err
}
