// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/pjbgf/sha1cd"
)

const (
	packHeader  = 12
	packTrailer = len(ID{})
	// maxInMemory bounds an object that cannot be streamed: one that is stored
	// as a delta, and trees, commits and tags. Git makes no deltas of larger
	// files than 512 MiB.
	maxInMemory = 1 << 30
	noBase      = -1
)

// An object is what is known of one object of a pack.
type object struct {
	offset int64 // of its header
	size   int64 // of its content
	base   int32 // the object that it is a delta to, or noBase
	typ    Type
	id     ID
}

// errCollision is for content that was made to have another's SHA-1.
var errCollision = errors.New("its content is part of a SHA-1 collision attack")

// Index copies a pack from r to f, which is to be empty, and finds out what is
// in it. What follows the pack in r is not read, but for a buffer's worth.
//
// Memory is needed for 56 bytes an object and, where objects are stored as
// deltas, for the content of a few at a time; files that are stored whole are
// never in memory.
func Index(ctx context.Context, r io.Reader, f File) (*Pack, error) {
	x := &indexer{ctx: ctx, in: newPackReader(r, f), pack: &Pack{file: f}}
	p, err := x.run()
	if err != nil {
		return nil, fmt.Errorf("read pack: %w", err)
	}
	return p, nil
}

type indexer struct {
	ctx  context.Context //nolint:containedctx // lives for one call
	in   *packReader
	pack *Pack
	zlib io.ReadCloser
	byID map[ID][]int32 // deltas whose base is named by its ID
}

func (x *indexer) run() (*Pack, error) {
	head := make([]byte, packHeader)
	if _, err := io.ReadFull(x.in, head); err != nil {
		return nil, unexpected(err)
	}
	if v := binary.BigEndian.Uint32(head[4:]); string(head[:4]) != "PACK" || v != 2 && v != 3 {
		return nil, errors.New("it does not begin as a pack of version 2")
	}
	x.byID = make(map[ID][]int32)
	n := binary.BigEndian.Uint32(head[8:])
	for i := range n {
		if i%1024 == 0 && x.ctx.Err() != nil {
			return nil, context.Cause(x.ctx)
		}
		if err := x.object(); err != nil {
			return nil, fmt.Errorf("object %d of %d: %w", i+1, n, unexpected(err))
		}
	}
	x.pack.size = x.in.pos + int64(packTrailer)
	if err := x.trailer(); err != nil {
		return nil, err
	}
	if err := x.deltas(); err != nil {
		return nil, err
	}
	x.pack.sort()
	return x.pack, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// object reads one object: its header, and its content if it is there.
func (x *indexer) object() error {
	o := object{offset: x.in.pos, base: noBase}
	h, err := readHeader(x.in)
	if err != nil {
		return err
	}
	o.typ, o.size = h.typ, h.size
	i := int32(len(x.pack.objects))
	switch h.typ {
	case Commit, Tree, Blob, Tag:
		sum := newHash(h.typ, h.size)
		if err := x.inflate(sum, h.size); err != nil {
			return err
		}
		if o.id, err = finish(sum); err != nil {
			return err
		}
	case offsetDelta:
		if o.base = x.pack.at(o.offset - h.back); o.base == noBase {
			return errors.New("a delta counts from where no object begins")
		}
		err = x.inflate(io.Discard, h.size)
	case idDelta:
		x.byID[h.base] = append(x.byID[h.base], i)
		err = x.inflate(io.Discard, h.size)
	default:
		return fmt.Errorf("its type is %d", h.typ)
	}
	x.pack.objects = append(x.pack.objects, o)
	return err
}

// inflate writes the content that follows to w; it has to be of that size.
func (x *indexer) inflate(w io.Writer, size int64) error {
	if x.zlib == nil {
		z, err := zlib.NewReader(x.in)
		if err != nil {
			return err
		}
		x.zlib = z
	} else if err := x.zlib.(zlib.Resetter).Reset(x.in, nil); err != nil {
		return err
	}
	n, err := io.Copy(w, io.LimitReader(x.zlib, size+1))
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("its size is not the %d bytes of its header", size)
	}
	// One read more, which finds the end and verifies the checksum before it.
	if _, err := x.zlib.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("after its content: %w", err)
	}
	return nil
}

// trailer compares the pack's own checksum.
func (x *indexer) trailer() error {
	sum := x.in.sum()
	if _, err := io.ReadFull(x.in, x.pack.checksum[:]); err != nil {
		return unexpected(err)
	}
	if sum != x.pack.checksum {
		return errors.New("its checksum is wrong: it was damaged on the way")
	}
	return x.in.flush()
}

// deltas computes the IDs of the objects that are stored as deltas: those of
// one base after each other, the deeper first, so that bases are at hand.
func (x *indexer) deltas() error {
	objects := x.pack.objects
	d := newDeltas(objects)
	for i := range objects {
		if d.isOpen(int32(i)) || objects[i].base != noBase {
			continue
		}
		d.resolved(int32(i), x.byID)
		for n := 0; len(d.ready) > 0; n++ {
			if n%256 == 0 && x.ctx.Err() != nil {
				return context.Cause(x.ctx)
			}
			at := d.ready[len(d.ready)-1]
			d.ready = d.ready[:len(d.ready)-1]
			if err := x.pack.resolve(at); err != nil {
				return fmt.Errorf("object at %d: %w", objects[at].offset, err)
			}
			d.resolved(at, x.byID)
		}
	}
	for i := range objects {
		if d.isOpen(int32(i)) {
			return fmt.Errorf("object at %d: it is a delta to one that the pack does not have", objects[i].offset)
		}
	}
	return nil
}

// deltas are the objects that are yet to be resolved, as lists by base.
type deltas struct {
	objects     []object
	first, next []int32 // by object: its first delta; the next delta to the same base
	ready       []int32 // deltas whose bases are resolved
}

func newDeltas(objects []object) *deltas {
	d := &deltas{objects: objects, first: make([]int32, len(objects)), next: make([]int32, len(objects))}
	for i := range d.first {
		d.first[i] = noBase
	}
	for i, o := range objects {
		if o.typ == offsetDelta {
			d.add(o.base, int32(i))
		}
	}
	return d
}

func (d *deltas) add(base, i int32) { d.next[i], d.first[base] = d.first[base], i }

func (d *deltas) isOpen(i int32) bool {
	t := d.objects[i].typ
	return t == offsetDelta || t == idDelta
}

// resolved makes the deltas to an object ready, now that its ID is known.
func (d *deltas) resolved(i int32, byID map[ID][]int32) {
	if list := byID[d.objects[i].id]; list != nil {
		delete(byID, d.objects[i].id)
		for _, c := range list {
			d.objects[c].base = i
			d.add(i, c)
		}
	}
	for c := d.first[i]; c != noBase; c = d.next[c] {
		d.ready = append(d.ready, c)
	}
}

// newHash returns the hash of an object of that type and size.
func newHash(t Type, size int64) sha1cd.CollisionResistantHash {
	h := sha1cd.New().(sha1cd.CollisionResistantHash)
	fmt.Fprintf(h, "%s %d\x00", t, size)
	return h
}

func finish(h sha1cd.CollisionResistantHash) (id ID, err error) {
	sum, collision := h.CollisionResistantSum(nil)
	if collision {
		return id, errCollision
	}
	copy(id[:], sum)
	return id, nil
}

// A header precedes an object's content (gitformat-pack).
type header struct {
	typ  Type
	size int64
	back int64 // offsetDelta: how far before this object its base begins
	base ID    // idDelta
}

func readHeader(r io.ByteReader) (h header, err error) {
	b, err := r.ReadByte()
	if err != nil {
		return h, err
	}
	h.typ, h.size = Type(b>>4&7), int64(b&15)
	for shift := 4; b&0x80 != 0; shift += 7 {
		if b, err = r.ReadByte(); err != nil {
			return h, err
		}
		if shift > 56 {
			return h, errors.New("its size is out of range")
		}
		h.size |= int64(b&0x7f) << shift
	}
	switch h.typ {
	case offsetDelta:
		for more := true; more; {
			if b, err = r.ReadByte(); err != nil {
				return h, err
			}
			if h.back > 1<<55 {
				return h, errors.New("the offset of its base is out of range")
			}
			h.back = h.back<<7 | int64(b&0x7f)
			if more = b&0x80 != 0; more {
				h.back++
			}
		}
	case idDelta:
		for i := range h.base {
			if h.base[i], err = r.ReadByte(); err != nil {
				return h, err
			}
		}
	}
	return h, nil
}

// A packReader copies what is read of it to a file, counts it, and hashes it.
type packReader struct {
	in   *bufio.Reader
	out  *bufio.Writer
	hash hash.Hash
	pos  int64
	one  [1]byte
	held []byte // read, but neither hashed nor written yet
}

func newPackReader(r io.Reader, w io.Writer) *packReader {
	return &packReader{
		in: bufio.NewReaderSize(r, 64<<10), out: bufio.NewWriterSize(w, 256<<10), hash: sha1cd.New(),
		held: make([]byte, 0, 32<<10),
	}
}

func (p *packReader) Read(b []byte) (int, error) {
	n, err := p.in.Read(b)
	p.hold(b[:n])
	return n, err
}

// ReadByte keeps the decompressor from reading more than it needs.
func (p *packReader) ReadByte() (byte, error) {
	b, err := p.in.ReadByte()
	if err == nil {
		p.one[0] = b
		p.hold(p.one[:])
	}
	return b, err
}

func (p *packReader) hold(b []byte) {
	p.pos += int64(len(b))
	if len(p.held)+len(b) > cap(p.held) {
		p.settle()
		if len(b) > cap(p.held) {
			p.held = append(p.held, b...)
			p.settle()
			return
		}
	}
	p.held = append(p.held, b...)
}

// settle hashes and writes what is held. The writer remembers its error.
func (p *packReader) settle() {
	p.hash.Write(p.held)
	_, _ = p.out.Write(p.held)
	p.held = p.held[:0]
}

func (p *packReader) sum() (id ID) {
	p.settle()
	copy(id[:], p.hash.Sum(nil))
	return id
}

func (p *packReader) flush() error {
	p.settle()
	return p.out.Flush()
}

func compareID(a, b ID) int { return bytes.Compare(a[:], b[:]) }

func (p *Pack) sort() {
	p.order = make([]int32, len(p.objects))
	for i := range p.order {
		p.order[i] = int32(i)
	}
	slices.SortFunc(p.order, func(a, b int32) int { return compareID(p.objects[a].id, p.objects[b].id) })
}
