// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/store"
)

// maxKnownIndex limits what the index of a known layer may unpack to: ten
// million files of some hundred bytes each would be half of it.
const maxKnownIndex = 4 << 30

// A Known is what an earlier build remembered of a layer that it made.
type Known struct {
	DiffID      image.DiffID
	Desc        ocispecs.Descriptor // of the compressed blob
	Created     time.Time
	Description string
	Content     digest.Digest // see Layer.ContentID
	Origin      string        // "registry/repository" where the blob can be mounted from, or ""
	Place       string        // what to call the place that it is in
	Source      Source        // opens the blob
	// Index opens the layer's index as PackIndex wrote it, verified by its
	// digest; nil if it was not kept.
	Index func(ctx context.Context) (io.ReadCloser, error)
}

// NewKnown returns the layer that k describes. Neither its blob nor its index
// is fetched before somebody needs it.
func NewKnown(st *store.Store, k Known) *Layer {
	return &Layer{
		Created: k.Created, Description: k.Description, Origin: k.Origin,
		diffID: k.DiffID, desc: k.Desc, st: st, src: k.Source, content: k.Content, remote: k.Index, isKnown: true, place: k.Place,
	}
}

// OfferIndex tells where an index of the layer is, should none be here when one
// is needed; see Known.Index. It is worth less than the layer's own bytes: if it
// cannot be had, those are read.
func (l *Layer) OfferIndex(open func(ctx context.Context) (io.ReadCloser, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.remote == nil {
		l.remote = open
	}
}

// IsKnown tells whether an earlier build made the layer: it belongs to no image
// that was named, and what is said of it is what that build said.
func (l *Layer) IsKnown() bool { return l.isKnown }

// A LostError is returned for a known layer whose bytes cannot be had, or are
// the wrong ones: a build has to do without what the earlier build remembered.
type LostError struct {
	Place  string
	DiffID image.DiffID
	Err    error
}

func (e *LostError) Error() string {
	return fmt.Sprintf("cache %s: layer %s: %v", e.Place, e.DiffID, e.Err)
}

// Unwrap returns the cause.
func (e *LostError) Unwrap() error { return e.Err }

// lost marks an error of a known layer's bytes. This machine's own faults, and
// being told to stop, are no such errors.
func (l *Layer) lost(ctx context.Context, err error) error {
	if err == nil || !l.isKnown || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || ctx.Err() != nil {
		return err
	}
	if _, ok := errors.AsType[*LostError](err); ok {
		return err
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok && l.Origin != "" {
		return err // of the disk; it came from a registry
	}
	return &LostError{Place: l.place, DiffID: l.diffID, Err: err}
}

// A lostReader marks the errors of reading a known layer.
type lostReader struct {
	io.ReadCloser
	ctx context.Context //nolint:containedctx // the caller's, as for any reader
	l   *Layer
}

func (r *lostReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	return n, r.l.lost(r.ctx, err)
}

// fetchIndex gets the index that was kept with the layer. It is used by this
// build alone and not stored under the diffID: the store trusts no cache.
func (l *Layer) fetchIndex(ctx context.Context, open func(ctx context.Context) (io.ReadCloser, error)) (*index, error) {
	rc, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	z, err := zstd.NewReader(rc, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	w, err := l.st.Create()
	if err != nil {
		return nil, err
	}
	defer w.Discard() // the mapping outlives the name
	n, err := io.Copy(w, io.LimitReader(z, maxKnownIndex+1))
	if err != nil {
		return nil, err
	}
	if n > maxKnownIndex {
		return nil, errBadIndex
	}
	data, unmap, err := mapFile(w.File)
	if err != nil {
		return nil, err
	}
	x, err := parseIndex(data)
	if err != nil {
		return nil, errors.Join(err, unmap())
	}
	x.unmap = unmap
	return x, nil
}

// PackIndex writes the layer's index in the form that Known.Index gives back.
// The same index gives the same bytes.
func (l *Layer) PackIndex(ctx context.Context, w io.Writer) error {
	x, err := l.index(ctx)
	if err != nil {
		return err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	if _, err := z.Write(x.data); err != nil {
		return errors.Join(err, z.Close())
	}
	return z.Close()
}

// ContentID is equal for layers that do the same but for times: a RUN that made
// the same files again has one that it had before. The layer of an image that
// was made elsewhere is known by its diffID, so that nothing need be fetched.
func (l *Layer) ContentID(ctx context.Context) (digest.Digest, error) {
	l.mu.Lock()
	id := l.content
	l.mu.Unlock()
	if id != "" {
		return id, nil
	}
	if l.src != nil {
		return l.diffID.Digest(), nil
	}
	x, err := l.index(ctx)
	if err != nil {
		return "", err
	}
	if id, err = x.contentID(); err != nil {
		return "", fmt.Errorf("layer %s: %w", l.diffID, err)
	}
	l.mu.Lock()
	l.content = id
	l.mu.Unlock()
	return id, nil
}

// contentVersion begins what is hashed, so that a change of the form changes all.
const contentVersion = "hako.content.v1"

// contentID hashes all that the layer does, in path order, without times.
func (x *index) contentID() (digest.Digest, error) {
	h := digest.SHA256.Hash()
	h.Write([]byte(contentVersion))
	groups := map[uint64]uint64{0: 0}
	var b []byte
	for i := range x.count {
		r, err := x.record(i)
		if err != nil {
			return "", err
		}
		// Neither where the content lies nor when it was written is what the
		// layer does. Groups are counted, as their numbers come from positions.
		r.off, r.ModTime = 0, time.Unix(0, 0)
		if _, ok := groups[r.group]; !ok {
			groups[r.group] = uint64(len(groups))
		}
		r.group = groups[r.group]
		b = appendRecord(b[:0], &r)
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	return digest.NewDigest(digest.SHA256, h), nil
}
