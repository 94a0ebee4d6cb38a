// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz

import "encoding/binary"

// fast decodes symbols while input and room for output are plentiful, so that
// neither has to be looked at in between. It reports whether the block ended.
//
// nb counts in its low 6 bits only: entries are subtracted as they are, with
// what they hold above their low byte.
func (f *inflater) fast() (done bool, err error) {
	in, out := f.in, f.buf
	ip, op := uint(f.ip), uint(f.op)
	bb, nb := f.bb, uint64(f.nb)
	lit, dst := f.lit, f.dist
	low := f.low
	inEnd := uint(f.end - inSlack)
	problem := ""

loop:
	for ip <= inEnd && op < outLimit {
		bb |= in.load64(ip) << (nb & 63)
		ip += uint((63 - nb&63) >> 3)
		nb |= 56

		e := lit[bb&litMask]
		if int32(e) < 0 {
			bb >>= e & 63
			nb -= uint64(e)
			out.put16(op, uint16(e>>16)&0x7fff)
			op += uint(1 + e>>8&1)
			e = lit[bb&litMask]
			if int32(e) < 0 {
				bb >>= e & 63
				nb -= uint64(e)
				out.put16(op, uint16(e>>16)&0x7fff)
				op += uint(1 + e>>8&1)
				e = lit[bb&litMask]
				if int32(e) < 0 {
					bb >>= e & 63
					nb -= uint64(e)
					out.put16(op, uint16(e>>16)&0x7fff)
					op += uint(1 + e>>8&1)
					continue
				}
			}
		}
		if e&entryOther != 0 {
			if e&entryStop == 0 {
				bb >>= litBits
				nb -= litBits
				e = lit[uint64(e>>16&0x1fff)+bb&(1<<(e>>8&15)-1)]
				if int32(e) < 0 {
					bb >>= e & 63
					nb -= uint64(e)
					out.put16(op, uint16(e>>16)&0xff)
					op++
					continue
				}
			}
			if e&entryOther != 0 {
				if e&entryInvalid != 0 {
					problem = "unused literal code"
					break loop
				}
				bb >>= e & 63
				nb -= uint64(e)
				done = true
				break loop
			}
		}
		// At most 42 bits are gone, so that those of the length are there.
		length := uint(e>>16) + uint(bb&(1<<(e&63)-1)>>(e>>8&15))
		bb >>= e & 63
		nb -= uint64(e)

		bb |= in.load64(ip) << (nb & 63)
		ip += uint((63 - nb&63) >> 3)
		nb |= 56
		e = dst[bb&distMask]
		if e&entryOther != 0 {
			if e&entryStop == 0 {
				bb >>= distBits
				nb -= distBits
				e = dst[(uint64(e>>16&0x1fff)+bb&(1<<(e>>8&15)-1))&(distSize-1)]
			}
			if e&entryOther != 0 {
				problem = "unused distance code"
				break loop
			}
		}
		dist := uint(e>>16) + uint(bb&(1<<(e&63)-1)>>(e>>8&15))
		bb >>= e & 63
		nb -= uint64(e)

		from := op - dist
		if int(from) < low {
			if !f.reach(int(from)) {
				problem = "distance beyond the start"
				break loop
			}
			low = f.low
		}
		end := op + length
		if dist < 16 {
			copyNear(out[:], int(from), int(op), int(end))
			op = end
			continue
		}
		// Most matches end here, so that nothing is left to foresee.
		out.copy16(op, from)
		out.copy16(op+16, from+16)
		for op += 32; op < end; op += 16 {
			out.copy16(op, op-dist)
		}
		op = end
	}
	f.ip, f.op = int(ip), int(op)
	f.bb, f.nb = bb, uint(nb&63)
	if problem != "" {
		return false, f.corrupt(problem)
	}
	return done, nil
}

// copyNear copies a match from less than 16 bytes before op to what ends at end,
// and may write up to 7 bytes more.
func copyNear(out []byte, from, op, end int) {
	switch dist := op - from; {
	case dist >= 8:
		for ; op < end; op += 8 {
			binary.LittleEndian.PutUint64(out[op:], binary.LittleEndian.Uint64(out[from:]))
			from += 8
		}
	case dist == 1:
		v := uint64(out[from]) * 0x0101010101010101
		for ; op < end; op += 8 {
			binary.LittleEndian.PutUint64(out[op:], v)
		}
	default:
		for ; op < end; op++ {
			out[op] = out[from]
			from++
		}
	}
}

// slow decodes one entry's worth near the end of the input, where zeros follow
// what is there. What needs bits of those is not put out. (Of two literals in
// one entry the first may be there, but then the end of the block is not.)
func (f *inflater) slow() (done bool, err error) {
	f.unload()
	bb := f.bb | binary.LittleEndian.Uint64(f.in[f.ip:])<<f.nb
	have := f.nb + uint(f.end-f.ip)*8
	used := uint(0)
	drop := func(e uint32) {
		bb >>= e & 63
		used += uint(e & 63)
	}
	e := f.lit[bb&litMask]
	if e&(entryLiteral|entryOther|entryStop) == entryOther {
		drop(litBits)
		e = f.lit[uint64(e>>16&0x1fff)+bb&(1<<(e>>8&15)-1)]
	}
	extra := bb
	drop(e)
	if used > have {
		return false, f.short()
	}
	if e&entryLiteral != 0 {
		f.buf[f.op] = byte(e >> 16)
		f.buf[f.op+1] = byte(e>>24) & 0x7f
		f.op += int(1 + e>>8&1)
		f.skip(used)
		return false, nil
	}
	if e&entryOther != 0 {
		if e&entryInvalid != 0 {
			return false, f.corrupt("unused literal code")
		}
		f.skip(used)
		return true, nil
	}
	length := int(e>>16) + int(extra&(1<<(e&63)-1)>>(e>>8&15))
	e = f.dist[bb&distMask]
	if e&(entryOther|entryStop) == entryOther {
		drop(distBits)
		e = f.dist[uint64(e>>16&0x1fff)+bb&(1<<(e>>8&15)-1)]
	}
	extra = bb
	drop(e)
	if used > have {
		return false, f.short()
	}
	if e&entryOther != 0 {
		return false, f.corrupt("unused distance code")
	}
	dist := int(e>>16) + int(extra&(1<<(e&63)-1)>>(e>>8&15))
	from := f.op - dist
	if from < f.low && !f.reach(from) {
		return false, f.corrupt("distance beyond the start")
	}
	for range length {
		f.buf[f.op] = f.buf[from]
		f.op++
		from++
	}
	f.skip(used)
	return false, nil
}

// skip removes n bits of unloaded input.
func (f *inflater) skip(n uint) {
	if n <= f.nb {
		f.take(n)
		return
	}
	n -= f.nb
	f.ip += int(n >> 3)
	f.bb, f.nb = 0, 0
	if n &= 7; n != 0 {
		f.bb = uint64(f.in[f.ip]) >> n
		f.nb = 8 - n
		f.ip++
	}
}
