// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz

import (
	"math/bits"
	"sync"
)

// Decoding looks up the next litBits (distBits) bits of input in a table whose
// entry holds all there is to know about the symbol; codes longer than that
// lead to a second table which lies behind the first in the same array.
//
// The low byte of every entry is the number of bits to drop, so that it can be
// used as a shift count and subtracted without being cut out first.
//
//	literal    31: set, 16-23: first byte, 24-30: second byte
//	                    8: set if there is a second byte
//	length     16-24: base,   8-11: bits of the code alone, 0-7: with the extra bits
//	distance   16-30: base,   8-11: bits of the code alone, 0-7: with the extra bits
//	subtable   15: set, 16-28: its start, 8-11: its width in bits, 0-7: litBits
//	end        15, 14: set, 0-7: bits of the code
//	invalid    15, 14, 13: set
//
// Two literals share an entry if both codes fit into the index and the second
// byte is below 128: text and most of a binary is such.
const (
	litBits  = 11
	distBits = 8
	preBits  = 7

	litMask  = 1<<litBits - 1
	distMask = 1<<distBits - 1
	preMask  = 1<<preBits - 1

	entryLiteral = 1 << 31
	entryPair    = 1 << 8
	entryOther   = 1 << 15 // neither literal nor length nor distance
	entryStop    = 1 << 14 // end of block or invalid
	entryInvalid = 1 << 13
	invalid      = entryOther | entryStop | entryInvalid | 1

	maxCode = 15
	maxLit  = 288
	maxDist = 32

	// The most a complete code can take is 2342 and 402 entries (zlib's
	// examples/enough.c for 288 symbols at 11 bits and 32 at 8).
	litSize  = 2400
	distSize = 512
)

type (
	litTable  [litSize]uint32
	distTable [distSize]uint32
	preTable  [1 << preBits]uint32
)

type fixedCodes struct {
	lit  litTable
	dist distTable
}

// fixedTables returns the tables of block type 1 (RFC 1951, 3.2.6).
//
//nolint:gochecknoglobals // a constant that is computed when first used
var fixedTables = sync.OnceValue(func() *fixedCodes {
	var lens [maxLit]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	f := new(fixedCodes)
	buildTable(f.lit[:], litBits, lens[:], litSymbol)
	pairLiterals(&f.lit)
	for i := range maxDist {
		lens[i] = 5
	}
	buildTable(f.dist[:], distBits, lens[:maxDist], distSymbol)
	return f
})

// litSymbol returns the entry of a literal or length symbol without the bits of
// its code.
func litSymbol(sym int) uint32 {
	switch {
	case sym < 256:
		return entryLiteral | uint32(sym)<<16
	case sym == 256:
		return entryOther | entryStop
	case sym < 265:
		return uint32(sym-257+3) << 16
	case sym < 285:
		extra := uint32(sym-261) >> 2
		base := uint32(sym-261)&3 + 4
		return (base<<extra+3)<<16 | extra
	case sym == 285:
		return 258 << 16
	}
	return entryOther | entryStop | entryInvalid
}

// distSymbol is litSymbol for distances.
func distSymbol(sym int) uint32 {
	switch {
	case sym < 4:
		return uint32(sym+1) << 16
	case sym < 30:
		extra := uint32(sym-2) >> 1
		base := uint32(sym)&1 + 2
		return (base<<extra+1)<<16 | extra
	}
	return entryOther | entryStop | entryInvalid
}

// preSymbol is litSymbol for the code of the code lengths.
func preSymbol(sym int) uint32 { return uint32(sym) << 16 }

// addCode puts the n bits of a code into an entry.
func addCode(e, n uint32) uint32 {
	if e&(entryLiteral|entryOther) != 0 {
		return e + n
	}
	return e + n<<8 + n
}

// buildTable fills t from the code lengths of the symbols and reports whether
// they form a code: one that uses every combination of bits, or the two
// exceptions everyone allows, no code at all and one code of one bit.
func buildTable(t []uint32, width int, lens []uint8, symbol func(int) uint32) bool {
	var count [maxCode + 1]int
	for _, n := range lens {
		count[n]++
	}
	count[0] = 0
	var next [maxCode + 2]int // where the symbols of each length go in sorted
	space := 0                // share of the code space used, in 2^-15
	for n := 1; n <= maxCode; n++ {
		next[n+1] = next[n] + count[n]
		space += count[n] << (maxCode - n)
	}
	if space != 1<<maxCode {
		return buildPartial(t[:1<<width], lens, next[maxCode+1], count[1], symbol)
	}
	var sorted [maxLit]uint16
	for sym, n := range lens {
		if n != 0 {
			sorted[next[n]] = uint16(sym)
			next[n]++
		}
	}
	fillTable(t, width, &count, sorted[:], symbol)
	return true
}

// buildPartial fills t for a code that leaves combinations unused.
func buildPartial(t []uint32, lens []uint8, symbols, ofOneBit int, symbol func(int) uint32) bool {
	if symbols > 1 || symbols != ofOneBit {
		return false
	}
	for i := range t {
		t[i] = invalid
	}
	for sym, n := range lens {
		if n == 0 {
			continue
		}
		e := addCode(symbol(sym), 1)
		for i := 0; i < len(t); i += 2 {
			t[i] = e
		}
	}
	return true
}

// fillTable fills t for a complete code. The first table is grown by doubling:
// when all codes of n bits are in place its second half is a copy of the first.
func fillTable(t []uint32, width int, count *[maxCode + 1]int, sorted []uint16, symbol func(int) uint32) {
	code, at := uint16(0), 0
	for n := 1; n <= width; n++ {
		half := 1 << (n - 1)
		copy(t[half:2*half], t[:half])
		code <<= 1
		for range count[n] {
			t[bits.Reverse16(code)>>(16-n)] = addCode(symbol(int(sorted[at])), uint32(n))
			code++
			at++
		}
	}
	start, sub, prefix := 1<<width, 0, -1
	for n := width + 1; n <= maxCode; n++ {
		code <<= 1
		for left := count[n]; left > 0; left-- {
			rev := int(bits.Reverse16(code) >> (16 - n))
			if p := rev & (1<<width - 1); p != prefix {
				// A new prefix: its table is as wide as the longest code in it.
				start += sub
				prefix = p
				w, used := n-width, left
				for used < 1<<w {
					w++
					used = used<<1 + count[width+w]
				}
				sub = 1 << w
				t[p] = entryOther | uint32(start)<<16 | uint32(w)<<8 | uint32(width)
			}
			e := addCode(symbol(int(sorted[at])), uint32(n-width))
			for i := rev >> width; i < sub; i += 1 << (n - width) {
				t[start+i] = e
			}
			code++
			at++
		}
	}
}

// pairLiterals merges entries for literals that follow one another. It goes
// downwards because the entry of what follows has a lower index and has to be
// read while it still stands for one literal.
func pairLiterals(t *litTable) {
	for i := litMask; i >= 0; i-- {
		e := t[i]
		if e&entryLiteral == 0 {
			continue
		}
		n := e & 15
		second := t[i>>n]
		if second&(entryLiteral|0x80<<16) != entryLiteral || second&15+n > litBits {
			continue
		}
		t[i] = e + second&0x7f0000<<8 + second&15 + entryPair
	}
}
