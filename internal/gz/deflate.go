// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz

import (
	"encoding/binary"
	"math/bits"
)

const (
	minMatch = 3
	maxMatch = 258
	// farThree is the distance from which on a match of three bytes costs more
	// than they do.
	farThree = 4096

	headBits  = 16
	threeBits = 15
	// tailSize is how many bytes at the end of the input are not looked at for
	// matches, so that 8 bytes can be loaded at any place that is.
	tailSize = 8

	searchDepth = 12
	niceLength  = 32

	maxSequences = 50000
	// A block is ended at softBlock bytes, and not before minBlock.
	softBlock = 300000
	minBlock  = 5000
)

// A deflater compresses to raw deflate data (RFC 1951), looking for matches with
// hash chains and putting each off if the next byte begins a better one, as zlib
// does. What it has more than zlib is blocks that end where the data change, and
// the whole input at hand. The methods are those of Eric Biggers's libdeflate.
//
// Positions are kept in 16 bits: an entry that is too old stands for a wrong
// place then, which its bytes give away. The tables are cleared for each input,
// so that the result depends on nothing else.
type deflater struct {
	depth, nice int // how many candidates to look at, and what is good enough

	head  [1 << headBits]uint16 // hash of 4 bytes → the last place
	prev  [windowSize]uint16    // place → the one before with the same hash
	three [1 << threeBits]uint16

	warm uint16 // only ever written: it makes the processor fetch memory early

	src  []byte
	pos  int
	seqs []sequence
	lits uint32 // literals since the last sequence
	from int    // where the block begins
	min  int    // shorter matches are not taken

	freq  symbolFreqs
	split splitter
	enc   blockEncoder
}

// A sequence is some literals and the match that follows them.
type sequence struct {
	lits   uint32
	length uint16
	dist   uint16
}

func newDeflater() *deflater {
	return &deflater{depth: searchDepth, nice: niceLength, seqs: make([]sequence, 0, maxSequences+2)}
}

// compress appends src to dst, as blocks that end at a byte border and of which
// none is the last.
func (d *deflater) compress(dst, src []byte) []byte {
	clear(d.head[:])
	clear(d.three[:])
	clear(d.prev[:])
	d.src, d.pos = src, 0
	for d.pos < len(src) {
		d.block()
		dst = d.enc.block(dst, src[d.from:d.pos], d.seqs, &d.freq)
	}
	d.src = nil
	return d.enc.sync(dst)
}

// block finds the sequences of the next block.
func (d *deflater) block() {
	d.from, d.lits, d.seqs = d.pos, 0, d.seqs[:0]
	d.freq = symbolFreqs{}
	d.split = splitter{}
	src := d.src
	d.min = minLength(src[d.pos:min(len(src), d.pos+4096)])
	again := d.pos + 10000 // when to find min again
	stop := min(len(src), d.from+softBlock)
	limit := min(stop, len(src)-tailSize)
	for d.pos < limit && len(d.seqs) < maxSequences {
		if d.split.due() && d.pos-d.from >= minBlock && len(src)-d.pos >= minBlock && d.split.ends(d.pos-d.from) {
			d.freq.lit[endOfBlock]++
			return
		}
		if d.pos >= again {
			d.min = minLengthOf(&d.freq.lit)
			again += d.pos - d.from
		}
		d.next()
	}
	if d.pos >= limit {
		if len(src)-d.pos <= tailSize {
			stop = len(src)
		}
		for d.pos < stop {
			d.literal()
		}
	}
	d.freq.lit[endOfBlock]++
}

// next takes a literal, or a match with the literals for which it was put off.
func (d *deflater) next() {
	length, dist := d.longest(d.min-1, d.depth)
	if length < d.min {
		d.literal()
		return
	}
	for length < d.nice && d.pos+1 < len(d.src)-tailSize {
		d.pos++
		l2, d2 := d.longest(length-1, d.depth/2)
		d.pos--
		if l2 < length || 4*(l2-length)+bits.Len(uint(dist))-bits.Len(uint(d2)) <= 2 {
			d.match(length, dist, 2)
			return
		}
		d.literal()
		length, dist = l2, d2
	}
	d.match(length, dist, 1)
}

func (d *deflater) literal() {
	c := d.src[d.pos]
	d.freq.lit[c]++
	d.split.literal(c)
	d.lits++
	d.pos++
}

// match takes a match at pos, of which the first known places are in the tables.
func (d *deflater) match(length, dist, known int) {
	d.freq.lit[257+lengthSlot(length)]++
	d.freq.dist[distSlot(dist)]++
	d.split.match(length)
	d.seqs = append(d.seqs, sequence{d.lits, uint16(length), uint16(dist)})
	d.lits = 0
	end := d.pos + length
	src, threes := d.src, d.min == minMatch
	for p, last := d.pos+known, min(end, len(src)-tailSize); p < last; p++ {
		v := binary.LittleEndian.Uint32(src[p:])
		h := hash4(v)
		d.prev[p&(windowSize-1)] = d.head[h]
		d.head[h] = uint16(p)
		if threes {
			d.three[hash3(v)] = uint16(p)
		}
	}
	d.pos = end
}

func hash4(v uint32) uint16 { return uint16(v * 0x1e35a7bd >> (32 - headBits)) }

func hash3(v uint32) uint32 { return (v << 8) * 0x1e35a7bd >> (32 - threeBits) & (1<<threeBits - 1) }

// longest puts pos into the tables and returns the longest match there that is
// longer than best, or best.
func (d *deflater) longest(best, depth int) (length, dist int) {
	src, pos := d.src, d.pos
	v := binary.LittleEndian.Uint32(src[pos:])
	h := hash4(v)
	at := d.head[h]
	d.head[h] = uint16(pos)
	d.prev[pos&(windowSize-1)] = at
	if d.min == minMatch {
		h3 := hash3(v)
		off := int(uint16(pos) - d.three[h3])
		d.three[h3] = uint16(pos)
		if best < minMatch && off != 0 && off <= min(pos, farThree) && (binary.LittleEndian.Uint32(src[pos-off:])^v)<<8 == 0 {
			best, dist = minMatch, off
		}
	}
	most := min(maxMatch, len(src)-pos)
	if most <= best {
		return best, dist
	}
	// The next place's entry is fetched while this one's candidates are compared.
	d.warm = d.head[hash4(binary.LittleEndian.Uint32(src[pos+1:]))]
	nice := min(d.nice, most)
	reach := min(pos, windowSize)
	// What a longer match must have: its last four bytes.
	tail := max(best-3, 0)
	want := binary.LittleEndian.Uint32(src[pos+tail:])
	for last := 0; depth > 0; depth-- {
		off := int(uint16(pos) - at)
		if off <= last || off > reach {
			break
		}
		last = off
		c := pos - off
		at = d.prev[c&(windowSize-1)]
		if binary.LittleEndian.Uint32(src[c+tail:]) != want {
			if hash4(binary.LittleEndian.Uint32(src[c:])) != h {
				break
			}
			continue
		}
		if cv := binary.LittleEndian.Uint32(src[c:]); cv != v {
			if hash4(cv) != h {
				break
			}
			continue
		}
		n := 4 + matchLength(src[pos+4:pos+most], src[c+4:])
		if n > best {
			best, dist = n, off
			if n >= nice {
				break
			}
			tail = best - 3
			want = binary.LittleEndian.Uint32(src[pos+tail:])
		}
	}
	return best, dist
}

// matchLength returns how many bytes a and b, which is no shorter, have in common.
func matchLength(a, b []byte) int {
	b = b[:len(a)]
	n := 0
	for ; n+8 <= len(a); n += 8 {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)>>3
		}
	}
	for n < len(a) && a[n] == b[n] {
		n++
	}
	return n
}

// minLength returns from which length on matches are worth it in data that begin
// with sample: the fewer different bytes there are, the cheaper are literals.
func minLength(sample []byte) int {
	var used [256]bool
	for _, c := range sample {
		used[c] = true
	}
	n := 0
	for _, u := range used {
		if u {
			n++
		}
	}
	return minLengthFor(n)
}

// minLengthOf is minLength for literals that were counted.
func minLengthOf(freq *[maxLit]uint32) int {
	var sum uint32
	for _, f := range freq[:256] {
		sum += f
	}
	n := 0
	for _, f := range freq[:256] {
		if f > sum>>10 {
			n++
		}
	}
	return minLengthFor(n)
}

func minLengthFor(literals int) int {
	switch {
	case literals < 6:
		return 9
	case literals < 8:
		return 8
	case literals < 10:
		return 7
	case literals < 16:
		return 6
	case literals < 45:
		return 5
	case literals < 80:
		return 4
	}
	return minMatch
}

// lengthSlot returns the symbol of a length, from 0 on (RFC 1951, 3.2.5).
func lengthSlot(length int) int {
	l := uint(length - minMatch)
	if l < 8 {
		return int(l)
	}
	if length == maxMatch {
		return 28
	}
	n := bits.Len(l) - 1
	return (n-1)<<2 + int(l>>(n-2)&3)
}

// distSlot returns the symbol of a distance.
func distSlot(dist int) int {
	d := uint(dist - 1)
	if d < 2 {
		return int(d)
	}
	n := bits.Len(d) - 1
	return n<<1 + int(d>>(n-1)&1)
}

// A splitter tells where the data change so much that new codes pay. It counts
// literals by their upper two bits and lowest one, and short and long matches,
// and compares the latest 512 with those before.
type splitter struct {
	old, fresh [10]uint32
	olds, news uint32
}

func (s *splitter) literal(c byte) {
	s.fresh[c>>5&6|c&1]++
	s.news++
}

func (s *splitter) match(length int) {
	if length >= 9 {
		s.fresh[9]++
	} else {
		s.fresh[8]++
	}
	s.news++
}

func (s *splitter) due() bool { return s.news >= 512 }

// ends decides whether a block of that many bytes ends here, and if not, counts
// the latest to those before.
func (s *splitter) ends(size int) bool {
	if s.olds > 0 {
		var delta uint64
		for i := range s.old {
			a, b := uint64(s.old[i])*uint64(s.news), uint64(s.fresh[i])*uint64(s.olds)
			delta += max(a, b) - min(a, b)
		}
		items := s.olds + s.news
		cutoff := uint64(s.news) * 200 / 512 * uint64(s.olds)
		if size < 10000 && items < 8192 {
			cutoff += cutoff * uint64(8192-items) / 8192
		}
		if delta+uint64(size/4096)*uint64(s.olds) >= cutoff {
			return true
		}
	}
	for i := range s.old {
		s.old[i] += s.fresh[i]
	}
	s.olds += s.news
	s.fresh, s.news = [10]uint32{}, 0
	return false
}
