// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package tandem computes the SHA-256 of a stream and of parts of it in one go.
//
// A layer has a digest of its tar, and its index one of each file in that tar. In a
// tar files begin at multiples of 512 bytes, so the blocks of 64 bytes that SHA-256
// takes are the same for both. More than half of what a block costs is to spread it
// out for the rounds, which is the same for both, too; and a processor with
// instructions for the rounds mostly waits for the last one to end, during which it
// can do another's. So both digests take little longer than one.
//
// Where there are no such instructions, or only one digest is wanted, package
// crypto/sha256 does as well. The digests are the same everywhere.
package tandem

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// A Hash computes the SHA-256 of what is written to it and, between Begin and End,
// of that part. It is not safe for concurrent use.
type Hash struct {
	inPart bool
	// Without the instructions these two do it all; one of them also does a part
	// that does not begin where a block of the whole does.
	wholeAlone, partAlone hash.Hash

	fast        bool
	inStep      bool // the blocks of the part are blocks of the whole
	whole, part state
	rest        [sha256.BlockSize]byte // what is no block yet; of the part too, if it is in step
	n           int                    // bytes in rest
	size, from  uint64                 // bytes written, and before the part
}

// New returns a Hash that nothing was written to.
func New() *Hash { return newHash(hasInstructions()) }

func newHash(fast bool) *Hash {
	h := &Hash{fast: fast, partAlone: sha256.New()}
	if fast {
		h.whole = initial()
	} else {
		h.wholeAlone = sha256.New()
	}
	return h
}

// Write implements [io.Writer]. It never fails.
func (h *Hash) Write(p []byte) (int, error) {
	if h.inPart && !h.inStep {
		_, _ = h.partAlone.Write(p)
	}
	if !h.fast {
		return h.wholeAlone.Write(p)
	}
	size := len(p)
	h.size += uint64(size)
	if h.n > 0 {
		k := copy(h.rest[h.n:], p)
		h.n += k
		p = p[k:]
		if h.n < len(h.rest) {
			return size, nil
		}
		h.blocks(h.rest[:])
	}
	whole := len(p) &^ (sha256.BlockSize - 1)
	if whole > 0 {
		h.blocks(p[:whole])
	}
	h.n = copy(h.rest[:], p[whole:])
	return size, nil
}

func (h *Hash) blocks(p []byte) {
	if h.inPart && h.inStep {
		blocks(&h.whole, &h.part, p)
		return
	}
	var nobody state
	blocks(&h.whole, &nobody, p)
}

// Begin begins a part, with what is written next. It must not be called in one.
func (h *Hash) Begin() {
	h.inPart = true
	h.inStep = h.fast && h.n == 0
	if h.inStep {
		h.part, h.from = initial(), h.size
	} else {
		h.partAlone.Reset()
	}
}

// End ends the part and returns its digest.
func (h *Hash) End() (sum [sha256.Size]byte) {
	h.inPart = false
	if !h.inStep {
		h.partAlone.Sum(sum[:0])
		return sum
	}
	return h.part.end(h.rest[:h.n], h.size-h.from)
}

// Sum returns the digest of all that was written so far.
func (h *Hash) Sum() (sum [sha256.Size]byte) {
	if !h.fast {
		h.wholeAlone.Sum(sum[:0])
		return sum
	}
	s := h.whole
	return s.end(h.rest[:h.n], h.size)
}

// A state is the eight words of FIPS 180-4, 5.3.3, in the order in which the
// instructions have them: F, E, B, A, H, G, D, C.
type state [8]uint32

func initial() state {
	return state{0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667, 0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372}
}

// end hashes the rest of a message of size bytes, with what FIPS 180-4, 5.1.1, puts
// behind it, and returns the digest.
func (s *state) end(rest []byte, size uint64) (sum [sha256.Size]byte) {
	var last [2 * sha256.BlockSize]byte
	n := copy(last[:], rest)
	last[n] = 0x80
	end := sha256.BlockSize
	if n+1+8 > end {
		end *= 2
	}
	binary.BigEndian.PutUint64(last[end-8:], size*8)
	var nobody state
	blocks(s, &nobody, last[:end])
	for i, at := range []int{3, 2, 7, 6, 1, 0, 5, 4} { // A to H
		binary.BigEndian.PutUint32(sum[4*i:], s[at])
	}
	return sum
}
