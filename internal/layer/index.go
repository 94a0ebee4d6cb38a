// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sort"
	"time"

	"github.com/opencontainers/go-digest"

	"hako/internal/gz"
	"hako/internal/store"
	"hako/internal/tree"
)

// An index is what a layer does, without its contents: a file, sorted by path
// with tree.ComparePaths, that is mapped and searched, not loaded. With it, no
// byte of the layer is needed to know what a COPY onto it means, and a file in
// the middle of the compressed blob is found without inflating what precedes.
//
// The file is: magic, records, the records' positions (u32 each, sorted by
// path), restart points, footer. Integers of the footer are little-endian u64.
type index struct {
	data   []byte
	unmap  func() error
	count  int
	posAt  int // where the table of positions starts
	points []gz.Checkpoint
	// implied tells whether any directory is only implied by what lies below it,
	// or is a link.
	implied bool
	// lowlinks tells whether there are hard links to files of lower layers.
	lowlinks bool
}

const (
	indexMagic  = "hakoidx3"
	footerSize  = 6 * 8
	maxNameSize = 1 << 16 // longer names in a record mean a broken index
)

// A kind says what a record does, as a set of bits.
type kind byte

const (
	present  kind = 1 << iota // there is an entry
	whiteout                  // nothing of lower layers is left at the path
	opaque                    // nothing of lower layers is left below the path
	implied                   // a directory that the tar has no entry for
	lowlink                   // a hard link to a file of a lower layer; linkTo names it
)

// A record is one path of a layer.
type record struct {
	tree.Entry
	kind   kind
	off    int64  // of the content in the uncompressed tar
	linkTo string // with lowlink
	group  uint64 // names of one file share a group; 0: no other name
}

// appendRecord encodes r at the end of b.
func appendRecord(b []byte, r *record) []byte {
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = append(b, byte(r.kind))
	str(r.Path)
	if r.kind&lowlink != 0 {
		str(r.linkTo)
		return b
	}
	if r.kind&present == 0 {
		return b
	}
	b = binary.AppendUvarint(b, uint64(r.Mode))
	b = binary.AppendUvarint(b, uint64(r.UID))
	b = binary.AppendUvarint(b, uint64(r.GID))
	b = binary.AppendVarint(b, r.ModTime.Unix())
	b = binary.AppendUvarint(b, uint64(r.ModTime.Nanosecond()))
	b = binary.AppendUvarint(b, r.group)
	switch {
	case r.Mode.IsRegular():
		b = binary.AppendUvarint(b, uint64(r.Size))
		if r.Size > 0 {
			b = binary.AppendUvarint(b, uint64(r.off))
			b = appendHex(b, r.Digest.Encoded())
		}
	case r.Mode.IsSymlink():
		str(r.Link)
	case r.Mode.IsDevice():
		b = binary.AppendUvarint(b, uint64(r.Major))
		b = binary.AppendUvarint(b, uint64(r.Minor))
	}
	b = binary.AppendUvarint(b, uint64(len(r.Xattrs)))
	for _, k := range sortedKeys(r.Xattrs) {
		str(k)
		str(r.Xattrs[k])
	}
	return b
}

// A decoder reads a record; the first error sticks.
type decoder struct {
	b   []byte
	err error
}

var errBadIndex = errors.New("broken index")

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.err, d.b = errBadIndex, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.err, d.b = errBadIndex, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) || n > maxNameSize+1<<20 {
		d.err, d.b = errBadIndex, nil
		return nil
	}
	s := d.b[:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) kind() kind {
	if len(d.b) == 0 {
		d.err = errBadIndex
		return 0
	}
	k := kind(d.b[0])
	d.b = d.b[1:]
	return k
}

func decodeRecord(b []byte) (record, error) {
	d := decoder{b: b}
	var r record
	r.kind = d.kind()
	r.Path = string(d.bytes())
	if r.kind&lowlink != 0 {
		r.linkTo = string(d.bytes())
		return r, d.err
	}
	if r.kind&present == 0 {
		return r, d.err
	}
	r.Mode = tree.Mode(d.uvarint())
	r.UID = uint32(d.uvarint())
	r.GID = uint32(d.uvarint())
	sec := d.varint()
	r.ModTime = time.Unix(sec, int64(d.uvarint()))
	r.group = d.uvarint()
	switch {
	case r.Mode.IsRegular():
		r.Size = int64(d.uvarint())
		if r.Size > 0 {
			r.off = int64(d.uvarint())
			r.Digest = decodeHex(&d)
		}
		if r.Size < 0 || r.off < 0 {
			d.err = errBadIndex
		}
	case r.Mode.IsSymlink():
		r.Link = string(d.bytes())
	case r.Mode.IsDevice():
		r.Major = uint32(d.uvarint())
		r.Minor = uint32(d.uvarint())
	}
	if n := d.uvarint(); n > 0 && d.err == nil {
		r.Xattrs = make(map[string]string)
		for ; n > 0 && d.err == nil; n-- {
			k := string(d.bytes())
			r.Xattrs[k] = string(d.bytes())
		}
	}
	return r, d.err
}

func appendHex(b []byte, hex string) []byte {
	var sum [32]byte
	for i := 0; i < len(hex)/2 && i < len(sum); i++ {
		sum[i] = nibble(hex[2*i])<<4 | nibble(hex[2*i+1])
	}
	return append(b, sum[:]...)
}

func nibble(c byte) byte {
	if c >= 'a' {
		return c - 'a' + 10
	}
	return c - '0'
}

func decodeHex(d *decoder) digest.Digest {
	if len(d.b) < 32 {
		d.err, d.b = errBadIndex, nil
		return ""
	}
	const prefix = "sha256:"
	var s [len(prefix) + 64]byte
	copy(s[:], prefix)
	hex.Encode(s[len(prefix):], d.b[:32])
	d.b = d.b[32:]
	return digest.Digest(s[:])
}

func sortedKeys(m map[string]string) []string {
	if len(m) == 0 {
		return nil
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// openIndex maps the index stored under id.
func openIndex(st *store.Store, id digest.Digest) (*index, error) {
	f, err := st.Get(store.Indexes, id)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	x, err := loadIndex(f)
	if err != nil {
		return nil, fmt.Errorf("index of %s: %w", id, err)
	}
	return x, nil
}

// loadIndex maps the index in f.
func loadIndex(f *os.File) (*index, error) {
	data, unmap, err := mapFile(f)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	x, err := parseIndex(data)
	if err != nil {
		_ = unmap()
		return nil, err
	}
	x.unmap = unmap
	return x, nil
}

func parseIndex(data []byte) (*index, error) {
	if len(data) < len(indexMagic)+footerSize || string(data[:len(indexMagic)]) != indexMagic {
		return nil, errBadIndex
	}
	foot := data[len(data)-footerSize:]
	u := func(i int) uint64 { return binary.LittleEndian.Uint64(foot[8*i:]) }
	count, posAt, pointsAt, npoints, flags := u(0), u(1), u(2), u(3), u(4)
	limit := uint64(len(data) - footerSize)
	if u(5) != uint64(len(data)) || pointsAt > limit || posAt > pointsAt || count > limit/4 || posAt+4*count != pointsAt {
		return nil, errBadIndex
	}
	x := &index{data: data, count: int(count), posAt: int(posAt), implied: flags&1 != 0, lowlinks: flags&2 != 0, unmap: func() error { return nil }}
	d := decoder{b: data[pointsAt:limit]}
	for ; npoints > 0 && d.err == nil; npoints-- {
		p := gz.Checkpoint{In: int64(d.uvarint()), Bits: uint8(d.uvarint()), Out: int64(d.uvarint())}
		if w := d.bytes(); len(w) > 0 {
			p.Window = w
		}
		if last := len(x.points) - 1; p.In < 0 || p.Out < 0 || p.Bits > 7 || last >= 0 && p.Out < x.points[last].Out {
			return nil, errBadIndex
		}
		x.points = append(x.points, p)
	}
	return x, d.err
}

// raw returns the encoded record i in path order.
func (x *index) raw(i int) []byte {
	pos := binary.LittleEndian.Uint32(x.data[x.posAt+4*i:])
	if int64(pos) >= int64(x.posAt) {
		return []byte{0} // broken: a record that does nothing, and does not decode
	}
	return x.data[pos:x.posAt]
}

// path returns the path of record i; it is valid while the index is open.
func (x *index) path(i int) []byte {
	d := decoder{b: x.raw(i)}
	d.kind()
	return d.bytes()
}

func (x *index) record(i int) (record, error) { return decodeRecord(x.raw(i)) }

// search returns the position of the first record whose path is not less than p.
func (x *index) search(p string) int {
	return sort.Search(x.count, func(i int) bool { return tree.ComparePaths(x.path(i), p) >= 0 })
}

// get returns the record for p.
func (x *index) get(p string) (record, bool, error) {
	i := x.search(p)
	if i == x.count || string(x.path(i)) != p {
		return record{}, false, nil
	}
	r, err := x.record(i)
	return r, err == nil, err
}

// deletes tells whether the layer has whiteouts.
func (x *index) deletes() bool {
	for i := range x.count {
		if kind(x.raw(i)[0])&(whiteout|opaque) != 0 {
			return true
		}
	}
	return false
}

// skip returns the position of the first record from i on that is not p or below it.
func (x *index) skip(i int, p string) int {
	if i < x.count && !within(x.path(i), p) {
		return i
	}
	return i + sort.Search(x.count-i, func(k int) bool { return !within(x.path(i+k), p) })
}

func within[D string | []byte](p []byte, dir D) bool {
	return len(dir) == 0 || len(p) >= len(dir) && string(p[:len(dir)]) == string(dir) && (len(p) == len(dir) || p[len(dir)] == '/')
}
