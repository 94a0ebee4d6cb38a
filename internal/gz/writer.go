// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
)

// Sizes relative to level 6 of compress/gzip, which is what BuildKit writes, for
// 24 MB each of logs and of tars of /usr/bin, of /usr/lib from 200 MB on, of Go's
// sources and of /usr/share; and times relative to level 7 of klauspost/compress,
// which was the default once:
//
//	                              logs   bin    lib    sources  share
//	level 6 (deflater), 1 MiB     -1.2%  -1.8%  +1.1%  -0.8%    -1.3%
//	klauspost level 7, 1 MiB      -0.2%  +0.7%  +1.4%  +0.9%    +1.4%
//	time of level 6                0.70   0.89   0.87   0.75     0.82
//
// A dictionary across blocks would gain some 0.3 % more, and each checkpoint
// would need its window.
const (
	// DefaultLevel is the compression level of a [Writer] unless told otherwise.
	// Most layers are a little smaller than BuildKit's at it, in less than half
	// the time. It has a compressor of its own, so that the bytes of layers do not
	// depend on the version or the assembly of a library; the other levels are
	// those of klauspost/compress.
	DefaultLevel = 6
	// BlockSize is how many bytes of input are compressed as one. Changing it
	// changes the digests of all layers.
	BlockSize = 1 << 20
)

// WriterOptions say how a [Writer] compresses. Only Level changes the result.
type WriterOptions struct {
	Level   int // 1 (fast) to 9 (small); 0 is DefaultLevel
	Workers int // how many blocks are compressed at a time; at least 1
}

// A Writer compresses to gzip, several blocks at a time.
//
// The input is cut into blocks of [BlockSize] which know nothing of each other,
// so that the bytes are the same for any number of workers and any sizes of
// Write calls, and each block is a place where [Resume] can start. The result
// is one member without a name or time, the same for the same input.
//
// A Writer runs goroutines from the first full block on, which end with Close.
// Close must be called on every path. A Writer is not safe for concurrent use.
type Writer struct {
	w       io.Writer
	level   int
	workers int

	err    error // returned from now on
	closed bool
	cur    *block // being filled; nil if there is none
	crc    uint32
	size   int64

	todo    chan *block // to the workers; closed by Close
	inOrder chan *block // to emit; closed by Close
	free    chan *block // back from emit
	made    int         // blocks in existence
	group   sync.WaitGroup

	// Of emit while it runs, of the Writer's owner after Close.
	out         int64 // compressed bytes written
	checkpoints []Checkpoint

	mu      sync.Mutex
	emitErr error // the first error of w or of a worker
}

// A block is a piece of input on its way through the Writer.
type block struct {
	in   *input
	size int // how much of in is filled
	out  bytes.Buffer
	err  error
	done chan struct{} // receives when out and err are set
}

// NewWriter returns a Writer to w. It writes nothing before Close or a full
// block.
func NewWriter(w io.Writer, opt WriterOptions) *Writer {
	z := &Writer{w: w, level: opt.Level, workers: max(opt.Workers, 1)}
	if z.level == 0 {
		z.level = DefaultLevel
	}
	if z.level < 1 || z.level > 9 {
		z.err = fmt.Errorf("write gzip: level %d is not in 1 to 9", opt.Level)
	}
	return z
}

// Write implements [io.Writer]. An error of the underlying writer may be
// returned by a later Write or by Close.
func (z *Writer) Write(p []byte) (int, error) {
	if z.closed {
		return 0, errors.New("write gzip: already closed")
	}
	total := 0
	for len(p) > 0 {
		if z.err == nil {
			z.err = z.failure()
		}
		if z.err != nil {
			return total, z.err
		}
		if z.cur == nil {
			z.cur = z.newBlock()
		}
		n := copy(z.cur.in[z.cur.size:BlockSize], p)
		z.cur.size += n
		p = p[n:]
		total += n
		if z.cur.size == BlockSize {
			z.send()
		}
	}
	return total, nil
}

// Close compresses what is left, writes the end and waits for all goroutines.
// It does not close the underlying writer. Another Close returns the same.
func (z *Writer) Close() error {
	if z.closed {
		return z.err
	}
	z.closed = true
	if z.err == nil && z.cur != nil {
		z.send()
	}
	z.cur = nil
	if z.todo != nil {
		close(z.todo)
		close(z.inOrder)
		z.group.Wait()
	}
	if z.err == nil {
		z.err = z.failure()
	}
	if z.err == nil {
		z.err = z.finish()
	}
	return z.err
}

// Checkpoints returns one checkpoint per block once Close has returned nil.
// None has a window.
func (z *Writer) Checkpoints() []Checkpoint {
	if !z.closed || z.err != nil {
		return nil
	}
	return z.checkpoints
}

// newBlock returns a free block, waiting for one if there are enough.
func (z *Writer) newBlock() *block {
	if z.todo == nil {
		z.start()
	}
	select {
	case b := <-z.free:
		return b
	default:
	}
	if z.made < z.workers+2 {
		z.made++
		return &block{in: new(input), done: make(chan struct{}, 1)}
	}
	return <-z.free
}

// start starts the goroutines. The channels hold all blocks there can be, so
// that a send never waits.
func (z *Writer) start() {
	n := z.workers + 2
	z.todo = make(chan *block, n)
	z.inOrder = make(chan *block, n)
	z.free = make(chan *block, n)
	for range z.workers {
		z.group.Go(z.compress)
	}
	z.group.Go(z.emit)
}

// send hands the current block to the workers.
func (z *Writer) send() {
	z.crc = crc32.Update(z.crc, crc32.IEEETable, z.cur.in[:z.cur.size])
	z.size += int64(z.cur.size)
	z.todo <- z.cur
	z.inOrder <- z.cur
	z.cur = nil
}

// compress is a worker.
func (z *Writer) compress() {
	var own *deflater
	if z.level == DefaultLevel {
		own = newDeflater()
	}
	var fw *flate.Writer
	for b := range z.todo {
		b.out.Reset()
		b.out.Grow(b.size + b.size/256 + 64) // all that noise can grow to; a layer is often small
		switch {
		case z.failure() != nil:
		case own != nil:
			b.out.Write(own.compress(b.out.AvailableBuffer(), b.in, b.size))
		default:
			fw, b.err = deflate(fw, b, z.level)
		}
		b.done <- struct{}{}
	}
}

// deflate compresses a block up to a byte border, without ending the stream,
// at a level other than the default one.
func deflate(fw *flate.Writer, b *block, level int) (*flate.Writer, error) {
	if fw == nil {
		var err error
		if fw, err = flate.NewWriter(&b.out, level); err != nil {
			return nil, err
		}
	} else {
		fw.Reset(&b.out)
	}
	if _, err := fw.Write(b.in[:b.size]); err != nil {
		return nil, err
	}
	return fw, fw.Flush()
}

// emit writes the compressed blocks in order. After an error it goes on
// returning blocks, so that nobody waits for one in vain.
func (z *Writer) emit() {
	var at int64
	for b := range z.inOrder {
		<-b.done
		if z.failure() == nil {
			err := b.err
			if err == nil && at == 0 {
				err = z.header()
			}
			if err == nil {
				z.checkpoints = append(z.checkpoints, Checkpoint{In: z.out, Out: at})
				err = z.put(b.out.Bytes())
			}
			z.fail(err)
		}
		at += int64(b.size)
		b.size = 0
		z.free <- b
	}
}

func (z *Writer) failure() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.emitErr
}

func (z *Writer) fail(err error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.emitErr == nil {
		z.emitErr = err
	}
}

func (z *Writer) put(p []byte) error {
	n, err := z.w.Write(p)
	z.out += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// header writes the header: no flags, no time, unknown system.
func (z *Writer) header() error {
	return z.put([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255})
}

// finish writes an empty final block and the sums.
func (z *Writer) finish() error {
	if z.out == 0 {
		if err := z.header(); err != nil {
			return err
		}
	}
	end := []byte{3, 0}
	end = binary.LittleEndian.AppendUint32(end, z.crc)
	end = binary.LittleEndian.AppendUint32(end, uint32(z.size))
	return z.put(end)
}
