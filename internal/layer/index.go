// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
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
	s := digest.NewDigestFromBytes(digest.SHA256, d.b[:32])
	d.b = d.b[32:]
	return s
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
	data, unmap, err := mapFile(f)
	if err != nil {
		return nil, fmt.Errorf("map index of %s: %w", id, err)
	}
	x, err := parseIndex(data)
	if err != nil {
		_ = unmap()
		return nil, fmt.Errorf("index of %s: %w", id, err)
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
	return sort.Search(x.count, func(i int) bool { return comparePath(x.path(i), p) >= 0 })
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

func within(p []byte, dir string) bool {
	return dir == "" || len(p) >= len(dir) && string(p[:len(dir)]) == dir && (len(p) == len(dir) || p[len(dir)] == '/')
}

func comparePath(a []byte, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		if a[i] == '/' {
			return -1
		}
		if b[i] == '/' {
			return 1
		}
		return int(a[i]) - int(b[i])
	}
	return len(a) - len(b)
}

// An indexBuilder collects records in the order of a tar.
type indexBuilder struct {
	chunks  [][]byte // never copied to grow: an index of a large layer is tens of megabytes
	pos     []place
	links   map[int]string // record number → target path, for hard links
	implied bool
	low     bool // there are links to lower layers
}

func (b *indexBuilder) add(r *record) error {
	last := len(b.chunks) - 1
	if last < 0 || cap(b.chunks[last])-len(b.chunks[last]) < maxRecord {
		b.chunks = append(b.chunks, make([]byte, 0, chunkSize))
		last++
	}
	// A record larger than maxRecord, with long attributes, makes append move
	// the chunk, which changes no offset.
	b.pos = append(b.pos, place{uint32(last), uint32(len(b.chunks[last]))})
	b.chunks[last] = appendRecord(b.chunks[last], r)
	return nil
}

// A place is where a record is in the chunks.
type place struct{ chunk, off uint32 }

const (
	chunkSize = 256 << 10
	maxRecord = 4 << 10
)

// raw returns record n, encoded, with what follows it.
func (b *indexBuilder) raw(n int) []byte {
	p := b.pos[n]
	return b.chunks[p.chunk][p.off:]
}

// addLink adds a hard link at p to target; which file that is, is settled by finish.
func (b *indexBuilder) addLink(p, target string) error {
	if b.links == nil {
		b.links = make(map[int]string)
	}
	b.links[len(b.pos)] = target
	return b.add(&record{Entry: tree.Entry{Path: p}, kind: lowlink, linkTo: target})
}

func (b *indexBuilder) path(n int) []byte {
	d := decoder{b: b.raw(n)}
	d.kind()
	return d.bytes()
}

// finish sorts the records, binds hard links, fills in implied directories and
// writes the index to w.
func (b *indexBuilder) finish(w io.Writer, points []gz.Checkpoint) error {
	order := make([]int, len(b.pos))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool {
		return compareBytes(b.path(order[i]), b.path(order[j])) < 0
	})
	groups, err := b.bindLinks(order)
	if err != nil {
		return err
	}
	out := indexWriter{w: w}
	out.write([]byte(indexMagic))
	var link string // the link written last
	var last string // path of the last directory chain written, for implied parents
	for i := 0; i < len(order); {
		j := i + 1
		for j < len(order) && bytes.Equal(b.path(order[j]), b.path(order[i])) {
			j++
		}
		r, err := b.merge(order[i:j], groups)
		if err != nil {
			return err
		}
		if r.kind&(present|lowlink) == 0 && (r.kind&opaque != 0 || j < len(order) && within(b.path(order[j]), r.Path)) {
			// A marker in, or entries of, a directory that has no entry itself.
			r.Entry = tree.Entry{Path: r.Path, Mode: tree.ModeDir | 0o755, ModTime: time.Unix(0, 0)}
			r.kind |= present | implied
			b.implied = true
		}
		if b.implyParents(&out, last, r.Path) {
			b.implied = true
		}
		if r.kind&present != 0 && r.Mode.IsSymlink() {
			link = r.Path
		} else if link != "" && r.kind&(present|lowlink) != 0 && tree.Within(r.Path, link) {
			b.implied = true
		}
		b.low = b.low || r.kind&lowlink != 0
		out.record(&r)
		last = r.Path
		i = j
	}
	out.tail(points, b.implied, b.low)
	return out.err
}

// implyParents writes records for the parents of p that have none. prev is the
// path written last: everything that encloses both is there already.
func (b *indexBuilder) implyParents(out *indexWriter, prev, p string) bool {
	added := false
	for i := 0; i < len(p); i++ {
		if p[i] != '/' || tree.Within(prev, p[:i]) {
			continue
		}
		out.record(&record{Entry: tree.Entry{Path: p[:i], Mode: tree.ModeDir | 0o755, ModTime: time.Unix(0, 0)}, kind: present | implied})
		added = true
	}
	return added
}

// merge makes one record of all that a tar says of one path: the last entry
// wins, whiteouts keep hiding what lower layers have.
func (b *indexBuilder) merge(same []int, groups map[int]int) (record, error) {
	var out record
	for _, n := range same {
		r, err := decodeRecord(b.raw(n))
		if err != nil {
			return out, err
		}
		if r.kind&lowlink != 0 {
			if t, ok := groups[n]; ok {
				p := r.Path
				if r, err = decodeRecord(b.raw(t)); err != nil {
					return out, err
				}
				r.Path = p
				r.group = uint64(t) + 1
			} else if to, ok := b.links[n]; ok {
				r.linkTo = to
			}
		} else if g, ok := groups[n]; ok {
			r.group = uint64(g) + 1
		}
		hidden := (out.kind | r.kind) & (whiteout | opaque)
		if r.kind&(present|lowlink) != 0 {
			out = r
		} else {
			out.Path = r.Path
		}
		out.kind |= hidden
	}
	return out, nil
}

// bindLinks finds, for every hard link whose target is in this layer, the
// record that its target path stood for when the link was made. It returns
// record number → number of the file's own record, targets included.
func (b *indexBuilder) bindLinks(order []int) (map[int]int, error) {
	if len(b.links) == 0 {
		return nil, nil
	}
	bound := make(map[int]int)
	nums := make([]int, 0, len(b.links))
	for n := range b.links {
		nums = append(nums, n)
	}
	sort.Ints(nums)
	for _, n := range nums {
		target := b.links[n]
		i := sort.Search(len(order), func(i int) bool { return comparePath(b.path(order[i]), target) >= 0 })
		found := -1
		for ; i < len(order) && string(b.path(order[i])) == target && order[i] < n; i++ {
			if kind(b.raw(order[i])[0])&(present|lowlink) != 0 {
				found = order[i]
			}
		}
		if found < 0 {
			continue // a file of a lower layer
		}
		if _, isLink := b.links[found]; isLink {
			t, ok := bound[found]
			if !ok {
				// A link to a link to a lower layer. Its own target may be
				// something else there, so it takes over the other's.
				b.links[n] = b.links[found]
				continue
			}
			found = t
		}
		r, err := decodeRecord(b.raw(found))
		if err != nil {
			return nil, err
		}
		if r.Mode.IsDir() {
			return nil, fmt.Errorf("hard link %q to the directory %q", b.path(n), strings.TrimPrefix(target, "/"))
		}
		bound[n], bound[found] = found, found
	}
	return bound, nil
}

func compareBytes(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		if a[i] == '/' {
			return -1
		}
		if b[i] == '/' {
			return 1
		}
		return int(a[i]) - int(b[i])
	}
	return len(a) - len(b)
}

// An indexWriter writes an index file; the first error sticks.
type indexWriter struct {
	w   io.Writer
	n   uint64
	pos []uint32
	buf []byte
	err error
}

func (o *indexWriter) write(b []byte) {
	if o.err != nil {
		return
	}
	n, err := o.w.Write(b)
	o.n += uint64(n)
	o.err = err
}

func (o *indexWriter) record(r *record) {
	o.pos = append(o.pos, uint32(o.n))
	o.buf = appendRecord(o.buf[:0], r)
	o.write(o.buf)
}

func (o *indexWriter) tail(points []gz.Checkpoint, hasImplied, hasLow bool) {
	posAt := o.n
	for _, p := range o.pos {
		o.write(binary.LittleEndian.AppendUint32(o.buf[:0], p))
	}
	pointsAt := o.n
	for _, p := range points {
		b := binary.AppendUvarint(o.buf[:0], uint64(p.In))
		b = binary.AppendUvarint(b, uint64(p.Bits))
		b = binary.AppendUvarint(b, uint64(p.Out))
		b = binary.AppendUvarint(b, uint64(len(p.Window)))
		o.write(append(b, p.Window...))
	}
	var flags uint64
	if hasImplied {
		flags = 1
	}
	if hasLow {
		flags |= 2
	}
	var foot []byte
	for _, v := range []uint64{uint64(len(o.pos)), posAt, pointsAt, uint64(len(points)), flags, o.n + footerSize} {
		foot = binary.LittleEndian.AppendUint64(foot, v)
	}
	o.write(foot)
}
