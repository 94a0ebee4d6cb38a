// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sort"

	"github.com/opencontainers/go-digest"

	"hako/internal/gz"
)

const (
	// maxIdle is how many open readers a layer keeps for the next file: copying
	// a directory reads its files in the order in which the tar has them.
	maxIdle = 2
	// maxSkip is how much a reader inflates to get to the next file before
	// starting at a restart point is the better way.
	maxSkip = checkpointEvery
)

// A cursor reads the uncompressed tar of a layer from some place on.
type cursor struct {
	r    io.Reader
	blob io.Closer
	pos  int64
}

func (c *cursor) close() error { return c.blob.Close() }

func (c *cursor) seek(off int64) error {
	n, err := io.CopyN(io.Discard, c.r, off-c.pos)
	c.pos += n
	return err
}

// openContent returns size bytes at off of the uncompressed tar, verified
// against want at their end.
func (l *Layer) openContent(ctx context.Context, off, size int64, want digest.Digest) (io.ReadCloser, error) {
	if size == 0 {
		return io.NopCloser(eofReader{}), nil
	}
	c, err := l.takeCursor(ctx, off)
	if err != nil {
		return nil, l.lost(ctx, fmt.Errorf("%s: %w", l.name(), err))
	}
	if err := c.seek(off); err != nil {
		_ = c.close()
		return nil, l.lost(ctx, fmt.Errorf("%s: seek to %d: %w", l.name(), off, err))
	}
	rc := &content{l: l, c: c, left: size, want: want, sum: sha256.New()}
	if l.isKnown {
		return &lostReader{ReadCloser: rc, ctx: ctx, l: l}, nil
	}
	return rc, nil
}

type eofReader struct{}

func (eofReader) Read([]byte) (int, error) { return 0, io.EOF }

// takeCursor returns a reader at or before off: an idle one that is near, or a
// new one at the closest restart point.
func (l *Layer) takeCursor(ctx context.Context, off int64) (*cursor, error) {
	l.mu.Lock()
	best := -1
	for i, c := range l.idle {
		if l.desc.Digest != "" && c.pos <= off && off-c.pos <= maxSkip && (best < 0 || c.pos > l.idle[best].pos) {
			best = i
		}
	}
	if best >= 0 {
		c := l.idle[best]
		l.idle = append(l.idle[:best], l.idle[best+1:]...)
		l.mu.Unlock()
		return c, nil
	}
	x := l.idx
	l.mu.Unlock()
	if x == nil {
		return nil, errors.New("no index")
	}
	return l.newCursor(ctx, x, off)
}

func (l *Layer) newCursor(ctx context.Context, x *index, off int64) (*cursor, error) {
	if l.desc.Digest == "" { // an archive, which is not compressed
		blob, err := l.src.Open(ctx, off)
		return &cursor{r: blob, blob: blob, pos: off}, err
	}
	i := sort.Search(len(x.points), func(i int) bool { return x.points[i].Out > off }) - 1
	if i < 0 || x.points[i].Out == 0 {
		blob, err := l.openAt(ctx, 0)
		if err != nil {
			return nil, err
		}
		r, err := decompress(blob, l.desc.MediaType, nil)
		if err != nil {
			blob.Close()
			return nil, err
		}
		return &cursor{r: r, blob: blob}, nil
	}
	p := x.points[i]
	blob, err := l.openAt(ctx, p.In)
	if err != nil {
		return nil, err
	}
	r, err := gz.Resume(blob, p)
	if err != nil {
		blob.Close()
		return nil, err
	}
	return &cursor{r: r, blob: blob, pos: p.Out}, nil
}

func (l *Layer) returnCursor(c *cursor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.idle) >= maxIdle {
		_ = l.idle[0].close()
		l.idle = append(l.idle[:0], l.idle[1:]...)
	}
	l.idle = append(l.idle, c)
}

// A content is one file's bytes in a layer.
type content struct {
	l    *Layer
	c    *cursor
	left int64
	sum  hash.Hash
	want digest.Digest
	err  error
}

func (r *content) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if r.left == 0 {
		return 0, r.finish()
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.c.r.Read(p)
	r.left -= int64(n)
	r.c.pos += int64(n)
	r.sum.Write(p[:n])
	if r.left == 0 {
		return n, r.finish()
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	r.err = err
	return n, err
}

func (r *content) finish() error {
	r.err = io.EOF
	if got := digest.NewDigest(digest.SHA256, r.sum); r.want != "" && got != r.want {
		r.err = fmt.Errorf("%s: a file's bytes are not those of its index: %w", r.l.name(), ErrDigestMismatch)
	}
	return r.err
}

// Close gives the reader back for the next file if it stands at a known place.
func (r *content) Close() error {
	if r.c == nil {
		return nil
	}
	c := r.c
	r.c = nil
	if r.err != nil && !errors.Is(r.err, io.EOF) {
		return c.close()
	}
	r.l.returnCursor(c)
	return nil
}
