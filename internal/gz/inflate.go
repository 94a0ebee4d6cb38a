// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	windowSize = 32 << 10 // the farthest a match refers back
	inSize     = 64 << 10
	bufSize    = 256 << 10

	// One round of the fast loop loads 8 bytes at up to two places less than
	// 8 bytes apart each, and writes up to three pairs of literals or a match,
	// whose last stores may run 31 bytes over its end.
	inSlack  = 32
	outSlack = 3*2 + 258 + 32
	outLimit = bufSize - outSlack
)

// The memory of an inflater. That these are arrays spares checks of bounds where
// most time goes: the compiler sees that a masked place is within them.
type (
	inputMemory  [inSize + inSlack]byte
	outputMemory [bufSize + 16]byte
)

func (m *inputMemory) load64(at uint) uint64 {
	at &= inSize - 1
	return binary.LittleEndian.Uint64(m[at : at+8])
}

func (m *outputMemory) put16(at uint, v uint16) {
	at &= bufSize - 1
	binary.LittleEndian.PutUint16(m[at:at+2], v)
}

func (m *outputMemory) copy16(to, from uint) {
	to &= bufSize - 1
	from &= bufSize - 1
	*(*[16]byte)(m[to : to+16]) = *(*[16]byte)(m[from : from+16])
}

// An inflater state is what comes next in the input.
type inflateState uint8

const (
	stateBlock  inflateState = iota // a block header
	stateStored                     // the rest of a stored block
	stateCodes                      // the rest of a compressed block
	stateEnd                        // nothing: the final block is over
)

// An inflater turns raw deflate data (RFC 1951) into bytes in buf. The owner
// takes them from there and calls slide to make room.
type inflater struct {
	src    io.Reader
	srcErr error // ends the input, io.EOF included
	in     *inputMemory
	ip     int   // next byte of in to load
	end    int   // end of the input in in; zeros follow once srcErr is set
	inBase int64 // offset of in[0] in the compressed stream

	// The next bits of input, lowest first. Those above the low nb bits are
	// either 0 or what is found again at in[ip].
	bb uint64
	nb uint

	buf *outputMemory
	op  int // end of the output in buf
	// Matches may not refer to what is before low. That is the start of the
	// history, start, or while the reach of matches is being watched, the
	// place from which on they are (see reach).
	low, start int
	reached    bool // some match went below low since it was raised

	state  inflateState
	final  bool // the current block is the last one
	stored int  // bytes left of a stored block

	lit  *litTable
	dist *distTable
	own  fixedCodes // memory for the codes of a dynamic block
}

func newInflater(src io.Reader) *inflater {
	return &inflater{src: src, in: new(inputMemory), buf: new(outputMemory)}
}

// corrupt returns an error for the current place in the input.
func (f *inflater) corrupt(what string) error {
	return fmt.Errorf("read gzip: byte %d: %s: %w", f.bitPos()>>3, what, ErrCorrupt)
}

// short returns the error for missing input.
func (f *inflater) short() error {
	err := f.srcErr
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read gzip: byte %d: %w", f.inBase+int64(f.end), err)
}

// bitPos returns the offset of the next unused bit in the compressed stream.
func (f *inflater) bitPos() int64 {
	return (f.inBase+int64(f.ip))*8 - int64(f.nb)
}

// fill reads more input, enough for the fast loop unless the input ends.
func (f *inflater) fill() {
	if f.srcErr != nil {
		return
	}
	copy(f.in[:], f.in[f.ip:f.end])
	f.inBase += int64(f.ip)
	f.end -= f.ip
	f.ip = 0
	for idle := 0; f.end < 8*inSlack && f.srcErr == nil; {
		n, err := f.src.Read(f.in[f.end:inSize])
		f.end += n
		f.srcErr = err
		if n > 0 {
			idle = 0
			continue
		}
		if idle++; idle == 100 && err == nil {
			f.srcErr = io.ErrNoProgress
		}
	}
	if f.srcErr != nil {
		clear(f.in[f.end : f.end+inSlack])
	}
}

// need loads bits until there are n of them, n <= 32.
func (f *inflater) need(n uint) bool {
	if f.nb >= n {
		return true
	}
	if f.end-f.ip < 8 {
		f.fill()
	}
	if f.end-f.ip >= 8 {
		f.bb |= binary.LittleEndian.Uint64(f.in[f.ip:]) << f.nb
		f.ip += int((63 - f.nb) >> 3)
		f.nb |= 56
		return true
	}
	for ; f.nb < n; f.nb += 8 {
		if f.ip == f.end {
			return false
		}
		f.bb |= uint64(f.in[f.ip]) << f.nb
		f.ip++
	}
	return true
}

// take removes n bits which need has loaded.
func (f *inflater) take(n uint) uint {
	v := uint(f.bb) & (1<<n - 1)
	f.bb >>= n
	f.nb -= n
	return v
}

// unload gives whole bytes of bb back to the input.
func (f *inflater) unload() {
	f.ip -= int(f.nb >> 3)
	f.nb &= 7
	f.bb &= 1<<f.nb - 1
}

// align drops the bits up to the next byte border.
func (f *inflater) align() {
	f.unload()
	f.bb, f.nb = 0, 0
}

// readByte returns the next byte of aligned input.
func (f *inflater) readByte() (byte, error) {
	if f.ip == f.end {
		f.fill()
		if f.ip == f.end {
			return 0, f.short()
		}
	}
	b := f.in[f.ip]
	f.ip++
	return b, nil
}

// slide makes room in buf, keeping what matches may refer to, and returns by
// how much the contents moved.
func (f *inflater) slide() int {
	by := f.op - windowSize
	if by <= 0 {
		return 0
	}
	copy(f.buf[:], f.buf[by:f.op])
	f.op -= by
	f.low = max(f.low-by, 0)
	f.start = max(f.start-by, 0)
	return by
}

// reset begins a new deflate stream: what was put out so far is no history.
func (f *inflater) reset() {
	f.low, f.start = f.op, f.op
	f.state = stateBlock
	f.final = false
}

// watch begins to note whether matches refer to what is before the current
// place.
func (f *inflater) watch() {
	f.low = f.op
	f.reached = false
}

// unwatch ends watch and reports whether some match did so.
func (f *inflater) unwatch() bool {
	f.low = f.start
	return f.reached
}

// reach is called for a match that goes below low. If it is one that watch
// waits for, reach notes that and reports true.
func (f *inflater) reach(from int) bool {
	if from < f.start {
		return false
	}
	f.low = f.start
	f.reached = true
	return true
}

// step inflates until buf is full or a block begins or the data end.
func (f *inflater) step() error {
	if f.state == stateBlock {
		if err := f.header(); err != nil {
			return err
		}
	}
	for f.op < outLimit {
		var done bool
		var err error
		switch f.state {
		case stateStored:
			done, err = f.copyStored()
		case stateCodes:
			done, err = f.codes()
		default:
			return nil
		}
		if err != nil {
			return err
		}
		if done {
			f.state = stateBlock
			if f.final {
				f.state = stateEnd
			}
			return nil
		}
	}
	return nil
}

// header reads a block header.
func (f *inflater) header() error {
	if !f.need(3) {
		return f.short()
	}
	f.final = f.take(1) == 1
	switch f.take(2) {
	case 0:
		return f.storedHeader()
	case 1:
		fixed := fixedTables()
		f.lit, f.dist = &fixed.lit, &fixed.dist
		f.state = stateCodes
		return nil
	case 2:
		return f.dynamicHeader()
	}
	return f.corrupt("unknown block type")
}

func (f *inflater) storedHeader() error {
	f.align()
	if !f.need(32) {
		return f.short()
	}
	n, inverse := f.take(16), f.take(16)
	if n^inverse != 0xffff {
		return f.corrupt("length of stored block fails its check")
	}
	f.align()
	f.stored = int(n)
	f.state = stateStored
	return nil
}

func (f *inflater) copyStored() (done bool, err error) {
	if f.stored == 0 {
		return true, nil
	}
	if f.ip == f.end {
		f.fill()
		if f.ip == f.end {
			return false, f.short()
		}
	}
	n := min(f.stored, f.end-f.ip, outLimit-f.op)
	copy(f.buf[f.op:], f.in[f.ip:f.ip+n])
	f.op += n
	f.ip += n
	f.stored -= n
	return f.stored == 0, nil
}

// dynamicHeader reads the codes of a block (RFC 1951, 3.2.7).
func (f *inflater) dynamicHeader() error {
	if !f.need(14) {
		return f.short()
	}
	nlit, ndist, npre := int(f.take(5))+257, int(f.take(5))+1, int(f.take(4))+4
	if nlit > 286 || ndist > 30 {
		return f.corrupt("too many codes")
	}
	var lens [maxLit + maxDist]uint8
	order := [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
	for i := range npre {
		if !f.need(3) {
			return f.short()
		}
		lens[order[i]] = uint8(f.take(3))
	}
	var pre preTable
	if !buildTable(pre[:], preBits, lens[:19], preSymbol) {
		return f.corrupt("bad code for code lengths")
	}
	clear(lens[:19])
	if err := f.codeLengths(lens[:nlit+ndist], &pre); err != nil {
		return err
	}
	if !buildTable(f.own.lit[:], litBits, lens[:nlit], litSymbol) {
		return f.corrupt("bad literal code")
	}
	if !buildTable(f.own.dist[:], distBits, lens[nlit:nlit+ndist], distSymbol) {
		return f.corrupt("bad distance code")
	}
	pairLiterals(&f.own.lit)
	f.lit, f.dist = &f.own.lit, &f.own.dist
	f.state = stateCodes
	return nil
}

// codeLengths reads run-length coded code lengths.
func (f *inflater) codeLengths(lens []uint8, pre *preTable) error {
	for i := 0; i < len(lens); {
		// Near the end of the input fewer bits than a symbol may take can be
		// enough. The zeros found instead do no harm: need fails for them.
		f.need(preBits + 7)
		e := pre[f.bb&preMask]
		if !f.need(uint(e & 0xff)) {
			return f.short()
		}
		if e&entryInvalid != 0 {
			return f.corrupt("unused code for code lengths")
		}
		f.take(uint(e & 0xff))
		sym := e >> 16
		if sym < 16 {
			lens[i] = uint8(sym)
			i++
			continue
		}
		extra, least, value := uint(2), 3, uint8(0)
		switch sym {
		case 16:
			if i == 0 {
				return f.corrupt("repeated code length without a first")
			}
			value = lens[i-1]
		case 17:
			extra = 3
		case 18:
			extra, least = 7, 11
		}
		if !f.need(extra) {
			return f.short()
		}
		n := least + int(f.take(extra))
		if n > len(lens)-i {
			return f.corrupt("too many code lengths")
		}
		for range n {
			lens[i] = value
			i++
		}
	}
	return nil
}

// codes decodes symbols until the block ends or buf is full.
func (f *inflater) codes() (done bool, err error) {
	if f.ip > f.end-inSlack {
		f.unload()
		f.fill()
	}
	if f.ip <= f.end-inSlack {
		done, err = f.fast()
		f.unload()
		return done, err
	}
	for f.op < outLimit {
		done, err = f.slow()
		if done || err != nil {
			break
		}
	}
	f.unload()
	return done, err
}
