// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

const (
	endOfBlock = 256
	usedLit    = 286
	usedDist   = 30
)

// symbolFreqs count the symbols of a block.
type symbolFreqs struct {
	lit  [maxLit]uint32
	dist [maxDist]uint32
}

// A code is a prefix code: of each symbol the bits, in the order in which they
// are written, and their number.
type code struct {
	bits [maxLit]uint16
	lens [maxLit]uint8
}

// A blockEncoder writes blocks of deflate data.
type blockEncoder struct {
	out []byte
	at  int
	acc uint64
	n   uint // bits in acc

	lit, dist, pre code
	lengths        [maxMatch + 1]uint32 // bits of each length with its extra ones
	lengthBits     [maxMatch + 1]uint8

	runs    []uint16 // the code lengths, run-length coded: symbol | extra << 5
	preFreq [19]uint32
	nlit    int
	ndist   int
	npre    int
}

// block appends a block, in the form that takes the least room. raw is what
// the sequences make; what they leave of it is literals.
func (e *blockEncoder) block(dst, raw []byte, seqs []sequence, freq *symbolFreqs) []byte {
	e.lit.build(freq.lit[:usedLit], 14)
	e.dist.build(freq.dist[:usedDist], maxCode)
	e.header()
	dynamic := e.headerSize() + e.dataSize(freq)
	static := 3 + staticSize(freq)
	stored := len(raw)*8 + (len(raw)/65535+1)*(3+7+32)
	if stored <= min(dynamic, static) {
		return e.stored(dst, raw)
	}
	e.begin(dst, min(dynamic, static)/8+16)
	if static < dynamic {
		e.lit.setStatic()
		e.dist.setFlat(5)
		e.put(1<<1, 3)
	} else {
		e.put(2<<1, 3)
		e.putHeader()
	}
	e.lengthTable()
	e.data(raw, seqs)
	return e.end()
}

// sync appends an empty stored block, which ends at a byte border.
func (e *blockEncoder) sync(dst []byte) []byte {
	e.begin(dst, 16)
	e.put(0, 3)
	e.align()
	e.put(0xffff0000, 32)
	dst = e.end()
	e.acc, e.n = 0, 0
	return dst
}

func (e *blockEncoder) stored(dst, raw []byte) []byte {
	for len(raw) > 0 {
		n := min(len(raw), 65535)
		e.begin(dst, 16+n)
		e.put(0, 3)
		e.align()
		e.put(uint64(n)|uint64(^uint16(n))<<16, 32)
		dst = append(e.end(), raw[:n]...)
		raw = raw[n:]
	}
	return dst
}

// begin makes room for size bytes behind dst. Bits that were left over from the
// block before stay.
func (e *blockEncoder) begin(dst []byte, size int) {
	e.at = len(dst)
	e.out = slices.Grow(dst, size+8)[:len(dst)+size+8]
}

// end returns what was written; up to 7 bits stay for the next block.
func (e *blockEncoder) end() []byte {
	e.flush()
	out := e.out[:e.at]
	e.out = nil
	return out
}

// put adds n bits, at most 32, and writes whole bytes.
func (e *blockEncoder) put(v uint64, n uint) {
	e.acc |= v << e.n
	e.n += n
	e.flush()
}

func (e *blockEncoder) flush() {
	binary.LittleEndian.PutUint64(e.out[e.at:], e.acc)
	e.at += int(e.n >> 3)
	e.acc >>= e.n &^ 7
	e.n &= 7
}

// align adds bits up to the next byte border.
func (e *blockEncoder) align() { e.put(0, -e.n&7) }

// lengthTable joins the codes of the lengths with their extra bits.
func (e *blockEncoder) lengthTable() {
	for l := minMatch; l <= maxMatch; l++ {
		s := lengthSlot(l)
		extra, n := uint32(0), extraLengthBits(s)
		if n > 0 {
			extra = uint32(l-minMatch) & (1<<n - 1)
		}
		e.lengths[l] = uint32(e.lit.bits[257+s]) | extra<<e.lit.lens[257+s]
		e.lengthBits[l] = e.lit.lens[257+s] + uint8(n)
	}
}

func extraLengthBits(slot int) int {
	if slot < 8 || slot == 28 {
		return 0
	}
	return slot>>2 - 1
}

func extraDistBits(slot int) int { return max(slot>>1-1, 0) }

// data writes the sequences and the end of the block.
func (e *blockEncoder) data(raw []byte, seqs []sequence) {
	out, at, acc, n := e.out, e.at, e.acc, e.n
	lit, dist := &e.lit, &e.dist
	var literals [256]uint32 // of each code the bits, and above them their number
	for c := range literals {
		literals[c] = uint32(lit.bits[c]) | uint32(lit.lens[c])<<16
	}
	for _, s := range seqs {
		lits := raw[:s.lits]
		raw = raw[int(s.lits)+int(s.length):]
		// At most 7 bits are left over from before: four literals fit, or all
		// of a match.
		for ; len(lits) >= 4; lits = lits[4:] {
			for _, c := range lits[:4] {
				acc |= uint64(literals[c]&0xffff) << (n & 63)
				n += uint(literals[c] >> 16)
			}
			binary.LittleEndian.PutUint64(out[at:], acc)
			at += int(n >> 3)
			acc >>= n & 56
			n &= 7
		}
		for _, c := range lits {
			acc |= uint64(literals[c]&0xffff) << (n & 63)
			n += uint(literals[c] >> 16)
		}
		binary.LittleEndian.PutUint64(out[at:], acc)
		at += int(n >> 3)
		acc >>= n & 56
		n &= 7

		acc |= uint64(e.lengths[s.length]) << (n & 63)
		n += uint(e.lengthBits[s.length])
		slot := distSlot(int(s.dist))
		extra := uint(extraDistBits(slot))
		acc |= uint64(dist.bits[slot]) << (n & 63)
		n += uint(dist.lens[slot])
		acc |= uint64(uint(s.dist-1)&(1<<extra-1)) << (n & 63)
		n += extra
		binary.LittleEndian.PutUint64(out[at:], acc)
		at += int(n >> 3)
		acc >>= n & 56
		n &= 7
	}
	e.at, e.acc, e.n = at, acc, n
	for _, c := range raw {
		e.put(uint64(lit.bits[c]), uint(lit.lens[c]))
	}
	e.put(uint64(lit.bits[endOfBlock]), uint(lit.lens[endOfBlock]))
}

// dataSize returns how many bits data will write.
func (e *blockEncoder) dataSize(freq *symbolFreqs) int {
	size := extraSize(freq)
	for s, f := range freq.lit[:usedLit] {
		size += int(f) * int(e.lit.lens[s])
	}
	for s, f := range freq.dist[:usedDist] {
		size += int(f) * int(e.dist.lens[s])
	}
	return size
}

func extraSize(freq *symbolFreqs) int {
	size := 0
	for s := range 29 {
		size += int(freq.lit[257+s]) * extraLengthBits(s)
	}
	for s := range usedDist {
		size += int(freq.dist[s]) * extraDistBits(s)
	}
	return size
}

// staticSize is dataSize with the codes that need no header.
func staticSize(freq *symbolFreqs) int {
	size := extraSize(freq)
	for s, f := range freq.lit[:usedLit] {
		size += int(f) * staticLength(s)
	}
	for _, f := range freq.dist[:usedDist] {
		size += int(f) * 5
	}
	return size
}

// staticLength returns the length of a symbol in block type 1 (RFC 1951, 3.2.6).
func staticLength(sym int) int {
	switch {
	case sym < 144:
		return 8
	case sym < 256:
		return 9
	case sym < 280:
		return 7
	}
	return 8
}

// header makes the description of both codes.
func (e *blockEncoder) header() {
	e.nlit, e.ndist = usedLit, usedDist
	for e.nlit > 257 && e.lit.lens[e.nlit-1] == 0 {
		e.nlit--
	}
	for e.ndist > 1 && e.dist.lens[e.ndist-1] == 0 {
		e.ndist--
	}
	var lens [usedLit + usedDist]uint8
	copy(lens[:], e.lit.lens[:e.nlit])
	copy(lens[e.nlit:], e.dist.lens[:e.ndist])
	e.runs = e.runs[:0]
	e.preFreq = [19]uint32{}
	for rest := lens[:e.nlit+e.ndist]; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n] == rest[0] {
			n++
		}
		e.run(rest[0], n)
		rest = rest[n:]
	}
	e.pre.build(e.preFreq[:], preBits)
	e.npre = 19
	for e.npre > 4 && e.pre.lens[preOrder(e.npre-1)] == 0 {
		e.npre--
	}
}

// run adds a run of n equal code lengths.
func (e *blockEncoder) run(length uint8, n int) {
	add := func(sym, extra int) {
		e.runs = append(e.runs, uint16(sym|extra<<5))
		e.preFreq[sym]++
	}
	if length == 0 {
		for n >= 11 {
			k := min(n, 138)
			add(18, k-11)
			n -= k
		}
		if n >= 3 {
			add(17, n-3)
			n = 0
		}
	} else if n >= 4 {
		add(int(length), 0)
		for n--; n >= 3; {
			k := min(n, 6)
			add(16, k-3)
			n -= k
		}
	}
	for ; n > 0; n-- {
		add(int(length), 0)
	}
}

// preOrder returns the symbol whose code length comes as number i in a header.
func preOrder(i int) int {
	return int([19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}[i])
}

// preExtra returns how many bits follow a symbol in a header.
func preExtra(sym int) uint {
	switch sym {
	case 16:
		return 2
	case 17:
		return 3
	case 18:
		return 7
	}
	return 0
}

func (e *blockEncoder) headerSize() int {
	size := 3 + 14 + 3*e.npre
	for s, f := range e.preFreq {
		size += int(f) * (int(e.pre.lens[s]) + int(preExtra(s)))
	}
	return size
}

func (e *blockEncoder) putHeader() {
	e.put(uint64(e.nlit-257), 5)
	e.put(uint64(e.ndist-1), 5)
	e.put(uint64(e.npre-4), 4)
	for i := range e.npre {
		e.put(uint64(e.pre.lens[preOrder(i)]), 3)
	}
	for _, r := range e.runs {
		s := int(r & 31)
		e.put(uint64(e.pre.bits[s]), uint(e.pre.lens[s]))
		e.put(uint64(r>>5), preExtra(s))
	}
}

func (c *code) setStatic() {
	for s := range c.lens {
		c.lens[s] = uint8(staticLength(s))
	}
	c.assign(len(c.lens))
}

func (c *code) setFlat(n uint8) {
	for s := range maxDist {
		c.lens[s] = n
	}
	c.assign(maxDist)
}

// build makes the best code for freq whose codes have at most limit bits. There
// are two symbols in it at least, since some decoders want that.
func (c *code) build(freq []uint32, limit int) {
	var memory [maxLit]uint64
	used := memory[:0]
	for s, f := range freq {
		c.lens[s] = 0
		if f > 0 {
			used = append(used, uint64(f)<<16|uint64(s))
		}
	}
	for s := 0; len(used) < 2; s++ {
		if freq[s] == 0 {
			used = append(used, uint64(s))
		}
	}
	slices.Sort(used)
	count := codeLengths(used, limit)
	i := 0
	for n := limit; n > 0; n-- {
		for range count[n] {
			c.lens[used[i]&0xffff] = uint8(n)
			i++
		}
	}
	c.assign(len(freq))
}

// codeLengths returns how many codes of each length the best code for used has,
// which is sorted and has the frequencies above bit 16.
func codeLengths(used []uint64, limit int) [maxCode + 1]int {
	var memory [maxLit]uint32
	a := memory[:len(used)]
	for i, u := range used {
		a[i] = uint32(u >> 16)
	}
	depths(a)
	var count [maxCode + 1]int
	total := 0
	for _, n := range a {
		n := min(int(n), limit)
		count[n]++
		total += 1 << (limit - n)
	}
	// Codes that were cut claim too much: others pay for it.
	for ; total > 1<<limit; total-- {
		count[limit]--
		for n := limit - 1; n > 0; n-- {
			if count[n] > 0 {
				count[n]--
				count[n+1] += 2
				break
			}
		}
	}
	return count
}

// depths turns sorted frequencies into the depths of their leaves in a Huffman
// tree (Moffat and Katajainen, In-place calculation of minimum-redundancy codes).
func depths(a []uint32) {
	n := len(a)
	a[0] += a[1]
	root, leaf := 0, 2
	for next := 1; next < n-1; next++ {
		take := func() uint32 {
			if leaf >= n || root < next && a[root] < a[leaf] {
				f := a[root]
				a[root] = uint32(next)
				root++
				return f
			}
			leaf++
			return a[leaf-1]
		}
		f := take()
		a[next] = f + take()
	}
	a[n-2] = 0
	for next := n - 3; next >= 0; next-- {
		a[next] = a[a[next]] + 1
	}
	free, depth := 1, uint32(0)
	root = n - 2
	for next := n - 1; free > 0; depth++ {
		inner := 0
		for root >= 0 && a[root] == depth {
			inner++
			root--
		}
		for ; free > inner; free-- {
			a[next] = depth
			next--
		}
		free = 2 * inner
	}
}

// assign gives n symbols the codes that follow from their lengths (RFC 1951, 3.2.2).
func (c *code) assign(n int) {
	var next [maxCode + 2]uint16
	var count [maxCode + 1]uint16
	for _, l := range c.lens[:n] {
		count[l]++
	}
	count[0] = 0
	for l := 1; l <= maxCode; l++ {
		next[l+1] = (next[l] + count[l]) << 1
	}
	for s, l := range c.lens[:n] {
		if l > 0 {
			c.bits[s] = bits.Reverse16(next[l]) >> (16 - l)
			next[l]++
		}
	}
}
