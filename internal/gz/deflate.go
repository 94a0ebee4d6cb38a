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

	// searchDepth is how many candidates are compared for a match, and niceLength
	// which length is good enough.
	searchDepth = 12
	niceLength  = 32

	maxSequences = 50000
	// A block is ended at softBlock bytes, and not before minBlock. Whether it
	// ends is asked after a match, and after maxRun literals.
	softBlock = 300000
	minBlock  = 5000
	maxRun    = 512
)

// An input is what is compressed at a time. That it is an array spares checks of
// bounds: the compiler sees that a masked place is within it.
type input [BlockSize + tailSize]byte

// load64 and load32 return the bytes from a place on. No place is before the first
// one, since a table that was not filled yet names that.
func (in *input) load64(at int) uint64 {
	i := uint(at) & (BlockSize - 1)
	return binary.LittleEndian.Uint64(in[i : i+8])
}

func (in *input) load32(at int) uint32 {
	i := uint(at) & (BlockSize - 1)
	return binary.LittleEndian.Uint32(in[i : i+4])
}

// A deflater compresses to raw deflate data (RFC 1951), looking for matches with
// hash chains and putting each off if the next byte begins a better one, as zlib
// does. What it has more than zlib is blocks that end where the data change, and
// the whole input at hand. The methods are those of Eric Biggers's libdeflate.
//
// Positions are kept in 16 bits: an entry that is too old stands for a wrong
// place then, which its bytes give away. The tables are cleared for each input,
// so that the result depends on nothing else.
type deflater struct {
	head  [1 << headBits]uint16 // hash of the next bytes → the last place
	prev  [windowSize]uint16    // place → the one before with the same hash
	three [1 << threeBits]uint16

	in    *input
	size  int
	shift uint // what cuts a word to the bytes that are hashed
	pos   int
	seqs  []sequence
	lits  uint32 // literals since the last sequence
	from  int    // where the block begins
	min   int    // shorter matches are not taken

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
	return &deflater{seqs: make([]sequence, 0, maxSequences+2)}
}

// compress appends the first size bytes of in to dst, as blocks that end at a byte
// border and of which none is the last.
func (d *deflater) compress(dst []byte, in *input, size int) []byte {
	clear(d.head[:])
	clear(d.three[:])
	clear(d.prev[:])
	d.in, d.size, d.pos = in, size, 0
	// Where matches of four bytes do not pay, five are hashed: most literals have no
	// candidate at all then.
	d.shift = 64 - 4*8
	if minLengthAll(in[:size]) > 4 {
		d.shift = 64 - 5*8
	}
	for d.pos < size {
		d.block()
		dst = d.enc.block(dst, in[d.from:d.pos], d.seqs, &d.freq)
	}
	d.in = nil
	return d.enc.sync(dst)
}

// block finds the sequences of the next block.
func (d *deflater) block() {
	d.from, d.lits, d.seqs = d.pos, 0, d.seqs[:0]
	d.freq = symbolFreqs{}
	d.split = splitter{}
	d.min = minLength(d.in[d.pos:min(d.size, d.pos+4096)])
	again := d.pos + 10000 // when to find min again
	stop := min(d.size, d.from+softBlock)
	limit := min(stop, d.size-tailSize)
	for d.pos < limit && len(d.seqs) < maxSequences {
		if d.split.due() && d.pos-d.from >= minBlock && d.size-d.pos >= minBlock && d.split.ends(d.pos-d.from) {
			d.freq.lit[endOfBlock]++
			return
		}
		if d.pos >= again {
			d.min = minLengthOf(&d.freq.lit)
			again += d.pos - d.from
		}
		d.next(min(limit, d.pos+maxRun))
	}
	if d.pos >= limit {
		if d.size-d.pos <= tailSize {
			stop = d.size
		}
		if d.pos < stop {
			d.literals(stop)
		}
	}
	d.freq.lit[endOfBlock]++
}

// next takes literals, up to stop or to a match that begins before, and that, which
// is put off as long as the next byte begins a better one.
func (d *deflater) next(stop int) {
	pos, length, dist := d.scan(stop)
	d.literals(pos)
	if length == 0 {
		return
	}
	for length < niceLength && d.pos+1 < d.size-tailSize {
		pos := d.pos + 1
		l2, d2 := d.longest(pos, d.insert(pos), length-1, searchDepth/2)
		if l2 < length || 4*(l2-length)+bits.Len(uint(dist))-bits.Len(uint(d2)) <= 2 {
			d.match(length, dist, 2)
			return
		}
		d.literals(pos)
		length, dist = l2, d2
	}
	d.match(length, dist, 1)
}

// literals takes those up to pos. They are counted in one go, since a search between
// them would make each wait for the one before.
func (d *deflater) literals(pos int) {
	run := d.in[d.pos:pos]
	d.lits += uint32(len(run))
	d.pos = pos
	for len(run) > 0 {
		n := min(len(run), maxClass)
		classes := uint64(0)
		for _, c := range run[:n] {
			d.freq.lit[c]++
			classes += 1 << classShift(c)
		}
		d.split.literals(classes, n)
		run = run[n:]
	}
}

// match takes a match at pos, of which the first known places are in the tables.
func (d *deflater) match(length, dist, known int) {
	d.freq.lit[257+lengthSlot(length)]++
	d.freq.dist[distSlot(dist)]++
	d.split.match(length)
	d.seqs = append(d.seqs, sequence{d.lits, uint16(length), uint16(dist)})
	d.lits = 0
	end := d.pos + length
	in, shift, threes := d.in, d.shift, d.min == minMatch
	for p, last := d.pos+known, min(end, d.size-tailSize); p < last; p++ {
		v := in.load64(p)
		h := hash(v, shift)
		d.prev[p&(windowSize-1)] = d.head[h]
		d.head[h] = uint16(p)
		if threes {
			d.three[hash3(v)] = uint16(p)
		}
	}
	d.pos = end
}

func hash(v uint64, shift uint) uint16 {
	return uint16(v << (shift & 63) * 0x9e3779b185ebca87 >> (64 - headBits))
}

func hash3(v uint64) uint32 {
	return uint32(v) << 8 * 0x1e35a7bd >> (32 - threeBits) & (1<<threeBits - 1)
}

// insert puts a place into the tables and returns the one before it in its chain.
func (d *deflater) insert(pos int) uint16 {
	v := d.in.load64(pos)
	h := hash(v, d.shift)
	at := d.head[h]
	d.head[h] = uint16(pos)
	d.prev[pos&(windowSize-1)] = at
	if d.min == minMatch {
		d.three[hash3(v)] = uint16(pos)
	}
	return at
}

// scan looks for the next match, up to stop, and puts all places up to there into
// the tables. The length is 0 if there is none.
//
// It looks at the first two candidates of each place without asking whether they
// are any: a processor foresees that nothing is found, as for most places, but not
// what a table holds. Where one of them is equal, all are compared.
func (d *deflater) scan(stop int) (pos, length, dist int) {
	in, shift, shortest := d.in, d.shift, d.min
	for pos = d.pos; pos < stop; pos++ {
		v := in.load64(pos)
		h := hash(v, shift)
		at := d.head[h]
		d.head[h] = uint16(pos)
		d.prev[pos&(windowSize-1)] = at
		length = shortest - 1
		if shortest == minMatch {
			h3 := hash3(v)
			off := int(uint16(pos) - d.three[h3])
			d.three[h3] = uint16(pos)
			if off != 0 && off <= min(pos, farThree) && (in.load32(pos-off)^uint32(v))<<8 == 0 {
				length, dist = minMatch, off
			}
		}
		before := d.prev[at&(windowSize-1)]
		x := (in.load64(pos-int(uint16(pos)-at)) ^ v) << (shift & 63)
		y := (in.load64(pos-int(uint16(pos)-before)) ^ v) << (shift & 63)
		if min(x, y) == 0 {
			if l, off := d.longest(pos, at, length, searchDepth); off > 0 {
				length, dist = l, off
			}
		}
		if length >= shortest {
			return pos, length, dist
		}
	}
	return pos, 0, 0
}

// longest returns the longest match for pos in the chain that begins with the place
// at, if that is longer than best; otherwise best and no distance.
func (d *deflater) longest(pos int, at uint16, best, depth int) (length, dist int) {
	in := d.in
	most := min(maxMatch, d.size-pos)
	if most <= best {
		return best, 0
	}
	v := in.load64(pos)
	h := hash(v, d.shift)
	nice := min(niceLength, most)
	reach := min(pos, windowSize)
	// What a longer match must have: its last four bytes.
	tail := max(best-3, 0)
	want := in.load32(pos + tail)
	for last := 0; depth > 0; depth-- {
		off := int(uint16(pos) - at)
		if off <= last || off > reach {
			break
		}
		last = off
		c := pos - off
		at = d.prev[c&(windowSize-1)]
		cv := in.load64(c)
		if in.load32(c+tail) != want || uint32(cv) != uint32(v) {
			if hash(cv, d.shift) != h {
				break
			}
			continue
		}
		n := bits.TrailingZeros64(cv^v) >> 3
		if n == 8 {
			n += matchLength(in[pos+8:pos+most], in[c+8:])
		}
		if n > best {
			best, dist = n, off
			if n >= nice {
				break
			}
			tail = best - 3
			want = in.load32(pos + tail)
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

// minLengthAll is minLengthOf for all of the data, of which it looks at samples.
func minLengthAll(data []byte) int {
	var used [maxLit]uint32
	for i := 0; i < len(data); i += 32 << 10 {
		for _, c := range data[i:min(len(data), i+512)] {
			used[c]++
		}
	}
	return minLengthOf(&used)
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

// maxClass is up to which number literals are counted in a word, 8 bits for each of
// their classes, from bit classShift on.
const maxClass = 255

func classShift(c byte) uint64 { return uint64(c>>2&0x30 | c<<3&8) }

// literals counts n literals, of which classes has the number of each class.
func (s *splitter) literals(classes uint64, n int) {
	for i := range 8 {
		s.fresh[i] += uint32(classes >> (8 * i) & maxClass)
	}
	s.news += uint32(n)
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
