// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// DefaultEvery is the distance of checkpoints if [ReaderOptions] says nothing.
const DefaultEvery = 4 << 20

// ReaderOptions say what a [Reader] reports.
type ReaderOptions struct {
	// Checkpoint, if set, is called with places at which [Resume] can start,
	// in order. There is none for the very start. Some may be called for only
	// when what follows them is known, but all are before the end of the data.
	// An error from it ends reading. The Window is the callee's to keep.
	Checkpoint func(Checkpoint) error
	// Every is how many bytes of output are between two checkpoints at least.
	// They can be farther apart, for they need a block border; zlib makes one
	// after some 100 KiB at most. Default is [DefaultEvery].
	Every int64
}

// A Reader decompresses gzip (RFC 1952): one or more members, of which it
// verifies the header, the checksum and the length. Zeros behind the last are
// allowed, as tape blocks and gzip(1) have them; other data are corrupt. It may
// read from its source beyond the end of the last member.
//
// A Reader is not safe for concurrent use.
type Reader struct {
	f       *inflater
	opt     ReaderOptions
	err     error // what follows the output before f.op
	rp      int   // output in f.buf before it is delivered
	outBase int64 // offset of f.buf[0] in the uncompressed stream

	inMember bool
	partial  bool // Resume began inside of this member: no CRC, no size
	crc      uint32
	crcTo    int // output in f.buf before it is in crc
	size     uint32

	due     int64 // offset from which on a checkpoint is wanted
	pending *Checkpoint
}

// NewReader returns a Reader after reading the first header from r.
func NewReader(r io.Reader, opt ReaderOptions) (*Reader, error) {
	if opt.Every <= 0 {
		opt.Every = DefaultEvery
	}
	z := &Reader{f: newInflater(r), opt: opt, due: opt.Every}
	if _, err := z.member(true); err != nil {
		return nil, err
	}
	return z, nil
}

// Resume returns a Reader of the uncompressed bytes from cp.Out on. The source
// r must be positioned at cp.In. The Reader cannot verify the CRC and the
// length of the member in which it starts; it does so for members that follow.
func Resume(r io.Reader, cp Checkpoint) (*Reader, error) {
	if cp.Bits > 7 || cp.In < 0 || cp.Out < int64(len(cp.Window)) || len(cp.Window) > windowSize {
		return nil, fmt.Errorf("resume gzip: bad checkpoint at byte %d", cp.In)
	}
	f := newInflater(r)
	f.inBase = cp.In
	f.op = copy(f.buf[:], cp.Window)
	if cp.Bits > 0 {
		if !f.need(uint(cp.Bits)) {
			return nil, f.short()
		}
		f.take(uint(cp.Bits))
	}
	return &Reader{
		f: f, rp: f.op, crcTo: f.op, outBase: cp.Out - int64(f.op),
		inMember: true, partial: true,
	}, nil
}

// Read implements [io.Reader].
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for z.rp == z.f.op {
		if z.err != nil {
			return 0, z.err
		}
		z.err = z.more()
	}
	n := copy(p, z.f.buf[z.rp:z.f.op])
	z.rp += n
	return n, nil
}

// WriteTo implements [io.WriterTo]. It writes straight from the memory that is
// inflated into, some 200 KiB at a time.
func (z *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		if z.rp < z.f.op {
			n, err := w.Write(z.f.buf[z.rp:z.f.op])
			z.rp += n
			total += int64(n)
			if err != nil {
				return total, err
			}
			if z.rp < z.f.op {
				return total, io.ErrShortWrite
			}
		}
		if z.err != nil {
			if errors.Is(z.err, io.EOF) {
				return total, nil
			}
			return total, z.err
		}
		z.err = z.more()
	}
}

// more inflates until the buffer is full or the data end. All output before
// must have been delivered.
func (z *Reader) more() error {
	by := z.f.slide()
	z.outBase += int64(by)
	z.rp -= by
	z.crcTo -= by
	for z.f.op < outLimit {
		if !z.inMember {
			ended, err := z.member(false)
			if err != nil {
				return err
			}
			if ended {
				return io.EOF
			}
		}
		if err := z.advance(); err != nil {
			return err
		}
	}
	z.sum()
	return nil
}

// advance inflates up to the next block border, or as much as the buffer holds.
func (z *Reader) advance() error {
	if z.f.state == stateBlock && z.out() >= z.due {
		if err := z.mark(); err != nil {
			return err
		}
	}
	if err := z.f.step(); err != nil {
		return err
	}
	if err := z.settle(z.f.state == stateEnd); err != nil {
		return err
	}
	if z.f.state == stateEnd {
		return z.trailer()
	}
	return nil
}

// out returns the offset of what is inflated next.
func (z *Reader) out() int64 { return z.outBase + int64(z.f.op) }

// sum brings CRC and size up to date. It is done for as much as the buffer
// holds at once, while that is in the processor's cache.
func (z *Reader) sum() {
	fresh := z.f.buf[z.crcTo:z.f.op]
	z.crcTo = z.f.op
	if !z.partial {
		z.crc = crc32.Update(z.crc, crc32.IEEETable, fresh)
		z.size += uint32(len(fresh))
	}
}

// mark makes a checkpoint of the current block border. Whether it needs its
// window is known only when the next 32 KiB are inflated.
func (z *Reader) mark() error {
	if z.opt.Checkpoint == nil {
		return nil
	}
	if err := z.settle(true); err != nil {
		return err
	}
	pos := z.f.bitPos()
	cp := &Checkpoint{In: pos >> 3, Bits: uint8(pos & 7), Out: z.out()}
	z.due = cp.Out + z.opt.Every
	if z.f.op == z.f.start {
		return z.opt.Checkpoint(*cp)
	}
	cp.Window = slices.Clone(z.f.buf[max(z.f.start, z.f.op-windowSize):z.f.op])
	z.pending = cp
	z.f.watch()
	return nil
}

// settle reports the pending checkpoint if all is known about it, or now at
// the latest.
func (z *Reader) settle(now bool) error {
	cp := z.pending
	if cp == nil {
		return nil
	}
	passed := z.out() - cp.Out
	atEnd := z.f.state == stateEnd
	switch {
	case z.f.reached:
	case passed >= windowSize || atEnd:
		cp.Window = nil
	case !now:
		return nil
	}
	z.pending = nil
	z.f.unwatch()
	return z.opt.Checkpoint(*cp)
}

// trailer reads the end of a member and verifies its sums.
func (z *Reader) trailer() error {
	z.sum()
	z.f.align()
	var t [8]byte
	if err := z.readFull(t[:]); err != nil {
		return err
	}
	z.inMember = false
	if z.partial {
		return nil
	}
	if binary.LittleEndian.Uint32(t[:]) != z.crc {
		return z.f.corrupt("wrong CRC")
	}
	if binary.LittleEndian.Uint32(t[4:]) != z.size {
		return z.f.corrupt("wrong length")
	}
	return nil
}

func (z *Reader) readFull(p []byte) error {
	for i := range p {
		b, err := z.f.readByte()
		if err != nil {
			return err
		}
		p[i] = b
	}
	return nil
}

// member reads the header of a member, or reports that the data end.
func (z *Reader) member(first bool) (ended bool, err error) {
	f := z.f
	if !first {
		ended, err = z.padding()
		if ended || err != nil {
			return ended, err
		}
	}
	if err := z.header(); err != nil {
		return false, err
	}
	f.reset()
	z.inMember, z.partial = true, false
	z.crc, z.size = 0, 0
	z.crcTo = f.op
	return false, nil
}

// padding looks at what follows a member. Zeros must go on until the end.
func (z *Reader) padding() (ended bool, err error) {
	f := z.f
	for zeros := false; ; zeros = true {
		if f.ip == f.end {
			f.fill()
		}
		if f.ip == f.end {
			if !errors.Is(f.srcErr, io.EOF) {
				return false, f.short()
			}
			return true, nil
		}
		if f.in[f.ip] != 0 {
			if zeros {
				return false, f.corrupt("data after zeros")
			}
			return false, nil
		}
		f.ip++
	}
}

// The flags of a header.
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagReserved  = 0xe0
)

// header reads a member's header. Nothing in it is of use here; but it must be
// one, and its checksum right if it has one.
func (z *Reader) header() error {
	var crc uint32
	get := func(p []byte) error {
		err := z.readFull(p)
		crc = crc32.Update(crc, crc32.IEEETable, p)
		return err
	}
	var h [10]byte
	if err := get(h[:]); err != nil {
		return err
	}
	if h[0] != 0x1f || h[1] != 0x8b {
		return z.f.corrupt("no gzip header")
	}
	if h[2] != 8 || h[3]&flagReserved != 0 {
		return z.f.corrupt("unknown compression method or flags")
	}
	flags := h[3]
	if flags&flagExtra != 0 {
		if err := get(h[:2]); err != nil {
			return err
		}
		for n := binary.LittleEndian.Uint16(h[:]); n > 0; n-- {
			if err := get(h[:1]); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		if flags&flag == 0 {
			continue
		}
		for h[0] = 1; h[0] != 0; {
			if err := get(h[:1]); err != nil {
				return err
			}
		}
	}
	if flags&flagHeaderCRC == 0 {
		return nil
	}
	want := uint16(crc)
	if err := get(h[:2]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint16(h[:]) != want {
		return z.f.corrupt("wrong CRC of header")
	}
	return nil
}
