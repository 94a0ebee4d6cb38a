// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/store"
)

// growingFrom is how large a blob must be before anybody is told that it grows: a
// smaller one is sent in no time once it is finished.
const growingFrom = 16 << 20

var errGivenUp = errors.New("the layer was not finished")

// A Growing is the blob of a layer that is being written. Whoever follows it does
// not hold up its writer. It is safe for concurrent use.
type Growing struct {
	path string // of the file, while it is being written

	mu   sync.Mutex
	size int64 // bytes in the file
	desc ocispecs.Descriptor
	err  error         // why nothing more comes; io.EOF: all is there
	more chan struct{} // closed when any of these changes; nil: nobody waits
}

// Follow opens the blob for a reader of its own. It works while the function runs
// that was told of the blob.
func (g *Growing) Follow() (*Follower, error) {
	f, err := os.Open(g.path)
	if err != nil {
		return nil, err
	}
	return &Follower{g: g, f: f}, nil
}

// change notes what is new and wakes those who wait for it.
func (g *Growing) change(set func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	set()
	if g.more != nil {
		close(g.more)
		g.more = nil
	}
}

// at returns how many bytes there are from off on. If there are none it returns
// why, or what is closed when there is something to be said.
func (g *Growing) at(off int64) (n int64, more <-chan struct{}, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.size - off; n > 0 && (g.err == nil || errors.Is(g.err, io.EOF)) {
		return n, nil, nil
	}
	if g.err != nil {
		return 0, nil, g.err
	}
	if g.more == nil {
		g.more = make(chan struct{})
	}
	return 0, g.more, nil
}

// A Follower reads a blob that is being written. Close ends it. Its file is open,
// and stays readable when it gets the name of the finished blob, or goes.
type Follower struct {
	g *Growing
	f *os.File
}

// Open returns the blob from its start. Reading waits for what is to come, until
// ctx is done, and gives io.EOF only when the blob is finished.
func (f *Follower) Open(ctx context.Context) io.ReadCloser {
	return io.NopCloser(&follow{ctx: ctx, f: f})
}

// Descriptor tells what the blob is, once it is finished.
func (f *Follower) Descriptor() (desc ocispecs.Descriptor, isFinished bool) {
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	return f.g.desc, errors.Is(f.g.err, io.EOF)
}

// Close gives the file back.
func (f *Follower) Close() error { return f.f.Close() }

type follow struct {
	ctx context.Context //nolint:containedctx // io.Reader takes none
	f   *Follower
	off int64
}

func (r *follow) Read(p []byte) (int, error) {
	for {
		n, more, err := r.f.g.at(r.off)
		if err != nil {
			return 0, err
		}
		if n > 0 {
			k, err := r.f.f.ReadAt(p[:min(int64(len(p)), n)], r.off)
			r.off += int64(k)
			if errors.Is(err, io.EOF) { // somebody cut the file off
				err = io.ErrUnexpectedEOF
			}
			return k, err
		}
		select {
		case <-more:
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}

// A growth is a file in the store on whose growth others are kept up to date.
type growth struct {
	file   *store.Writer
	tell   func(*Growing) // nil: nobody wants to know
	g      Growing
	isTold bool
}

// Write implements io.Writer.
func (w *growth) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	if w.tell == nil {
		return n, err
	}
	w.g.change(func() { w.g.size += int64(n) })
	if !w.isTold && w.g.size >= growingFrom {
		w.isTold, w.g.path = true, w.file.Name()
		w.tell(&w.g)
	}
	return n, err
}

// end says that nothing more comes: io.EOF for a blob that is finished. What was
// said first counts.
func (w *growth) end(desc ocispecs.Descriptor, err error) {
	w.g.change(func() {
		if w.g.err == nil {
			w.g.desc, w.g.err = desc, err
		}
	})
}
