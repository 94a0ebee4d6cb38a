// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"hako/internal/gz"
	"hako/internal/tree"
)

// An indexBuilder collects records in the order of a tar.
type indexBuilder struct {
	chunks  [][]byte // never copied to grow: an index of a large layer is tens of megabytes
	pos     []place
	size    int            // of the chunks' content
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
	before := len(b.chunks[last])
	b.chunks[last] = appendRecord(b.chunks[last], r)
	b.size += len(b.chunks[last]) - before
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
		return tree.ComparePaths(b.path(order[i]), b.path(order[j])) < 0
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
		i := sort.Search(len(order), func(i int) bool { return tree.ComparePaths(b.path(order[i]), target) >= 0 })
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
