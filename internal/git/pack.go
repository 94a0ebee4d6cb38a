// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
)

// A File holds a pack. It is written once, from start to end; Open opens what
// has been written.
type File interface {
	io.Writer
	Open() (FileReader, error)
}

// A FileReader reads a file anywhere.
type FileReader interface {
	io.ReaderAt
	io.Closer
}

// cacheSize bounds the contents that are kept, bases of deltas above all.
const cacheSize = 24 << 20

// A Pack is a set of objects in a file. It is safe for concurrent use.
type Pack struct {
	file     File
	size     int64
	checksum ID
	objects  []object // by offset
	order    []int32  // indexes of objects, by ID

	mu     sync.Mutex
	cache  map[int32][]byte
	recent []int32 // keys of cache, the oldest first
	cached int
}

// Len returns the number of objects.
func (p *Pack) Len() int { return len(p.objects) }

// Size returns the size of the pack in bytes.
func (p *Pack) Size() int64 { return p.size }

// at returns the object that begins at offset, or noBase.
func (p *Pack) at(offset int64) int32 {
	i, ok := slices.BinarySearchFunc(p.objects, offset, func(o object, at int64) int {
		return int(min(1, max(-1, o.offset-at)))
	})
	if !ok {
		return noBase
	}
	return int32(i)
}

func (p *Pack) find(id ID) (int32, error) {
	i, ok := slices.BinarySearchFunc(p.order, id, func(i int32, id ID) int { return compareID(p.objects[i].id, id) })
	if !ok {
		return 0, fmt.Errorf("object %s: %w", id, ErrNotFound)
	}
	return p.order[i], nil
}

// Has reports whether the pack has the object.
func (p *Pack) Has(id ID) bool {
	_, err := p.find(id)
	return err == nil
}

// Stat returns the type and size of an object.
func (p *Pack) Stat(id ID) (Type, int64, error) {
	i, err := p.find(id)
	if err != nil {
		return 0, 0, err
	}
	return p.objects[i].typ, p.objects[i].size, nil
}

// Open opens the content of an object.
func (p *Pack) Open(id ID) (io.ReadCloser, error) {
	i, err := p.find(id)
	if err != nil {
		return nil, err
	}
	if p.objects[i].base == noBase {
		s, _, err := p.stream(i)
		if err != nil {
			return nil, fmt.Errorf("object %s: %w", id, err)
		}
		return s, nil
	}
	b, err := p.content(i)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", id, err)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// Read returns the content of an object that is to be of that type. It must
// not be changed.
func (p *Pack) Read(id ID, t Type) ([]byte, error) {
	i, err := p.find(id)
	if err != nil {
		return nil, err
	}
	if got := p.objects[i].typ; got != t {
		return nil, fmt.Errorf("object %s is a %s, not a %s", id, got, t)
	}
	b, err := p.content(i)
	if err != nil {
		return nil, fmt.Errorf("object %s: %w", id, err)
	}
	return b, nil
}

// A stream is what is stored of an object, its content or its delta, as it is
// inflated.
type stream struct {
	io.ReadCloser
	file io.Closer
}

func (s *stream) Close() error { return errors.Join(s.ReadCloser.Close(), s.file.Close()) }

// stream opens what is stored of an object and returns its size, too.
func (p *Pack) stream(i int32) (_ *stream, size int64, err error) {
	f, err := p.file.Open()
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	at := p.objects[i].offset
	r := bufio.NewReader(io.NewSectionReader(f, at, p.size-at))
	h, err := readHeader(r)
	if err != nil {
		return nil, 0, err
	}
	z, err := zlib.NewReader(r)
	if err != nil {
		return nil, 0, err
	}
	return &stream{ReadCloser: z, file: f}, h.size, nil
}

// stored returns what is stored of an object.
func (p *Pack) stored(i int32) (_ []byte, err error) {
	r, size, err := p.stream(i)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := r.Close(); err == nil {
			err = cerr
		}
	}()
	if size > maxInMemory {
		return nil, fmt.Errorf("%d bytes are too many for an object that has to be in memory", size)
	}
	w := bytes.NewBuffer(make([]byte, 0, size))
	if _, err := io.Copy(w, io.LimitReader(r, size)); err != nil {
		return nil, unexpected(err)
	}
	if int64(w.Len()) != size {
		return nil, io.ErrUnexpectedEOF
	}
	return w.Bytes(), nil
}

// content returns an object's content, from the nearest base that is at hand.
func (p *Pack) content(i int32) ([]byte, error) {
	var chain []int32
	at := i
	var b []byte
	for {
		if b = p.get(at); b != nil {
			break
		}
		o := &p.objects[at]
		if o.base == noBase {
			var err error
			if b, err = p.stored(at); err != nil {
				return nil, err
			}
			p.put(at, b)
			break
		}
		chain = append(chain, at)
		at = o.base
	}
	for _, at := range slices.Backward(chain) {
		delta, err := p.stored(at)
		if err != nil {
			return nil, err
		}
		if b, err = apply(b, delta); err != nil {
			return nil, err
		}
		p.put(at, b)
	}
	return b, nil
}

// resolve finds the type, size and ID of an object that is a delta to one
// that has been resolved.
func (p *Pack) resolve(i int32) error {
	o := &p.objects[i]
	b, err := p.content(i)
	if err != nil {
		return err
	}
	typ := p.objects[o.base].typ
	h := newHash(typ, int64(len(b)))
	h.Write(b)
	id, err := finish(h)
	if err != nil {
		return err
	}
	o.typ, o.size, o.id = typ, int64(len(b)), id
	return nil
}

func (p *Pack) get(i int32) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cache[i]
}

// put keeps a content, unless it is too large to be worth it.
func (p *Pack) put(i int32, b []byte) {
	if len(b) > cacheSize/2 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cache == nil {
		p.cache = make(map[int32][]byte)
	}
	if _, ok := p.cache[i]; ok {
		return
	}
	if b == nil {
		b = []byte{}
	}
	p.cache[i] = b
	p.recent = append(p.recent, i)
	const each = 128 // what an entry needs besides its content
	for p.cached += len(b) + each; p.cached > cacheSize; p.recent = p.recent[1:] {
		p.cached -= len(p.cache[p.recent[0]]) + each
		delete(p.cache, p.recent[0])
	}
}

var errDelta = errors.New("a delta is damaged")

// apply makes an object of a base and a delta (gitformat-pack, "Deltified
// representation").
func apply(base, delta []byte) ([]byte, error) {
	from, delta, err := deltaSize(delta)
	if err != nil {
		return nil, err
	}
	to, delta, err := deltaSize(delta)
	if err != nil {
		return nil, err
	}
	if from != uint64(len(base)) {
		return nil, errDelta
	}
	if to > maxInMemory {
		return nil, fmt.Errorf("%d bytes are too many for an object that is stored as a delta", to)
	}
	out := make([]byte, 0, min(to, 64<<20)) // more only if the delta has it
	for len(delta) > 0 {
		op := delta[0]
		delta = delta[1:]
		if op&0x80 == 0 {
			if n := int(op); n == 0 || n > len(delta) {
				return nil, errDelta
			}
			out = append(out, delta[:op]...)
			delta = delta[op:]
		} else {
			var offset, size uint64
			if offset, size, delta, err = copyOp(op, delta); err != nil {
				return nil, err
			}
			if offset+size > uint64(len(base)) {
				return nil, errDelta
			}
			out = append(out, base[offset:offset+size]...)
		}
		if uint64(len(out)) > to {
			return nil, errDelta
		}
	}
	if uint64(len(out)) != to {
		return nil, errDelta
	}
	return out, nil
}

// copyOp reads which part of the base is copied: the bits of op tell which
// bytes of the two numbers follow.
func copyOp(op byte, delta []byte) (offset, size uint64, rest []byte, err error) {
	for bit := range 7 {
		if op&(1<<bit) == 0 {
			continue
		}
		if len(delta) == 0 {
			return 0, 0, nil, errDelta
		}
		if bit < 4 {
			offset |= uint64(delta[0]) << (8 * bit)
		} else {
			size |= uint64(delta[0]) << (8 * (bit - 4))
		}
		delta = delta[1:]
	}
	if size == 0 {
		size = 0x10000
	}
	return offset, size, delta, nil
}

func deltaSize(b []byte) (uint64, []byte, error) {
	var n uint64
	for i, c := range b {
		if i > 8 {
			break
		}
		n |= uint64(c&0x7f) << (7 * i)
		if c&0x80 == 0 {
			return n, b[i+1:], nil
		}
	}
	return 0, nil, errDelta
}
