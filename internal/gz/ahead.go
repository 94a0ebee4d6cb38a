// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz

import (
	"errors"
	"io"
	"sync"
)

// Ahead reads from r in a goroutine, up to buffers times size bytes ahead of
// its consumer, so that inflating runs beside what is done with the output.
//
// The result also is an [io.WriterTo]. Its Close ends the goroutine after the
// Read of r that may be going on; it does not close r. It must be called on
// every path. After Close r is the caller's again. The result is not safe for
// concurrent use.
func Ahead(r io.Reader, buffers, size int) io.ReadCloser {
	buffers, size = max(buffers, 1), max(size, 1)
	a := &ahead{
		full: make(chan chunk, buffers),
		free: make(chan []byte, buffers),
		stop: make(chan struct{}),
	}
	for range buffers {
		a.free <- make([]byte, size)
	}
	a.group.Go(func() { a.fill(r) })
	return a
}

type ahead struct {
	full  chan chunk // closed by fill
	free  chan []byte
	stop  chan struct{} // closed by Close
	group sync.WaitGroup

	cur    chunk  // being delivered
	rest   []byte // of cur
	closed bool
}

type chunk struct {
	buf []byte // to give back, whole
	n   int
	err error // what follows the n bytes
}

func (a *ahead) fill(r io.Reader) {
	defer close(a.full)
	for {
		var c chunk
		select {
		case c.buf = <-a.free:
		case <-a.stop:
			return
		}
		for idle := 0; c.n < len(c.buf) && c.err == nil && !a.stopped(); {
			n, err := r.Read(c.buf[c.n:])
			c.n += n
			c.err = err
			if n > 0 {
				idle = 0
			} else if idle++; idle == 100 && err == nil {
				c.err = io.ErrNoProgress
			}
		}
		a.full <- c // never waits: there are no more buffers than places
		if c.err != nil {
			return
		}
	}
}

func (a *ahead) stopped() bool {
	select {
	case <-a.stop:
		return true
	default:
		return false
	}
}

// next makes rest hold bytes, or returns what there is instead of them.
func (a *ahead) next() error {
	if a.closed {
		return errors.New("read ahead: already closed")
	}
	for len(a.rest) == 0 {
		if a.cur.err != nil {
			return a.cur.err
		}
		if a.cur.buf != nil {
			a.free <- a.cur.buf
		}
		a.cur = <-a.full
		a.rest = a.cur.buf[:a.cur.n]
	}
	return nil
}

// Read implements [io.Reader].
func (a *ahead) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := a.next(); err != nil {
		return 0, err
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// WriteTo implements [io.WriterTo].
func (a *ahead) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		if err := a.next(); errors.Is(err, io.EOF) {
			return total, nil
		} else if err != nil {
			return total, err
		}
		n, err := w.Write(a.rest)
		total += int64(n)
		a.rest = a.rest[n:]
		if err == nil && len(a.rest) > 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return total, err
		}
	}
}

// Close implements [io.Closer].
func (a *ahead) Close() error {
	if !a.closed {
		a.closed = true
		close(a.stop)
		a.group.Wait()
	}
	return nil
}
