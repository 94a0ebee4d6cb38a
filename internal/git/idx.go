// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"math"

	"github.com/pjbgf/sha1cd"
)

// Checksum returns the pack's checksum, which is part of its files' names.
func (p *Pack) Checksum() string { return p.checksum.String() }

// WriteIdx writes the index that git keeps beside a pack (gitformat-pack,
// "Version 2 pack-*.idx files").
func (p *Pack) WriteIdx(w io.Writer) error {
	crcs, err := p.crcs()
	if err != nil {
		return err
	}
	o := newHashedWriter(w)
	o.bytes([]byte("\xfftOc"))
	o.number(2)
	n := 0
	for b := range 256 {
		for n < len(p.order) && int(p.objects[p.order[n]].id[0]) == b {
			n++
		}
		o.number(uint32(n))
	}
	for _, i := range p.order {
		o.bytes(p.objects[i].id[:])
	}
	for _, i := range p.order {
		o.number(crcs[i])
	}
	var far []uint64
	for _, i := range p.order {
		at := p.objects[i].offset
		if at <= math.MaxInt32 {
			o.number(uint32(at))
			continue
		}
		o.number(1<<31 | uint32(len(far)))
		far = append(far, uint64(at))
	}
	for _, at := range far {
		o.number(uint32(at >> 32))
		o.number(uint32(at))
	}
	o.bytes(p.checksum[:])
	return o.finish()
}

// crcs returns the checksums of what is stored of each object.
func (p *Pack) crcs() (_ []uint32, err error) {
	f, err := p.file.Open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	in := bufio.NewReaderSize(io.NewSectionReader(f, packHeader, p.size-packHeader), 256<<10)
	sums := make([]uint32, len(p.objects))
	h := crc32.NewIEEE()
	for i, o := range p.objects {
		end := p.size - int64(packTrailer)
		if i+1 < len(p.objects) {
			end = p.objects[i+1].offset
		}
		h.Reset()
		if _, err := io.CopyN(h, in, end-o.offset); err != nil {
			return nil, unexpected(err)
		}
		sums[i] = h.Sum32()
	}
	return sums, nil
}

// A hashedWriter ends a file with the SHA-1 of what is before. Its error is
// told at the end.
type hashedWriter struct {
	w    *bufio.Writer
	hash hash.Hash
}

func newHashedWriter(w io.Writer) *hashedWriter {
	return &hashedWriter{w: bufio.NewWriter(w), hash: sha1cd.New()}
}

func (h *hashedWriter) bytes(b []byte) {
	h.hash.Write(b)
	_, _ = h.w.Write(b) // it remembers its error
}

func (h *hashedWriter) number(n uint32) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	h.bytes(b[:])
}

func (h *hashedWriter) finish() error {
	_, _ = h.w.Write(h.hash.Sum(nil))
	return h.w.Flush()
}

// A CheckoutIndex writes the file .git/index (gitformat-index, version 2). Its
// entries have no times and inodes: git compares contents once, and writes
// its own.
type CheckoutIndex struct {
	w    *hashedWriter
	left int
}

// NewCheckoutIndex begins an index of n entries.
func NewCheckoutIndex(w io.Writer, n int) *CheckoutIndex {
	x := &CheckoutIndex{w: newHashedWriter(w), left: n}
	x.w.bytes([]byte("DIRC"))
	x.w.number(2)
	x.w.number(uint32(n))
	return x
}

// Add writes the next entry; they are to come sorted by path, in byte order.
func (x *CheckoutIndex) Add(path string, mode Mode, id ID) {
	x.left--
	var stat [40]byte
	binary.BigEndian.PutUint32(stat[24:], uint32(mode))
	x.w.bytes(stat[:])
	x.w.bytes(id[:])
	flags := min(len(path), 0xfff)
	x.w.bytes([]byte{byte(flags >> 8), byte(flags)})
	x.w.bytes([]byte(path))
	// One to eight zeros, up to a multiple of eight.
	x.w.bytes(make([]byte, 8-(len(stat)+len(id)+2+len(path))%8))
}

// Close ends the index.
func (x *CheckoutIndex) Close() error {
	if x.left != 0 {
		return errors.New("the index has not as many entries as it says")
	}
	return x.w.finish()
}
