// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"hako/internal/gz"
	"hako/internal/image"
	"hako/internal/store"
	"hako/internal/tandem"
	"hako/internal/tree"
)

const (
	// checkpointEvery is the output between restart points of foreign gzip
	// layers: 32 KiB of window for each keeps indexes below 1 % of the layer.
	checkpointEvery = 4 << 20
	aheadBuffers    = 6
	aheadSize       = 256 << 10
	xattrPrefix     = "SCHILY.xattr."
)

// ErrDigestMismatch is returned when bytes are not what their digest says.
var ErrDigestMismatch = errors.New("digest mismatch")

// A verifier checks size and digest of what passes through it.
type verifier struct {
	rc   io.ReadCloser
	hash hash.Hash
	want digest.Digest
	size int64 // expected; -1 if not known
	n    int64
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.rc.Read(p)
	v.n += int64(n)
	_, _ = v.hash.Write(p[:n])
	if v.size >= 0 && v.n > v.size {
		return n, fmt.Errorf("blob %s: more than its %d bytes: %w", v.want, v.size, ErrDigestMismatch)
	}
	if v.size >= 0 && v.n == v.size && n > 0 {
		// The last bytes of a blob that is wrong go nowhere: whoever uploads it
		// must not come to its end.
		if verr := v.check(); verr != nil {
			return 0, verr
		}
	}
	if err == io.EOF {
		if verr := v.check(); verr != nil {
			return n, verr
		}
	}
	return n, err
}

func (v *verifier) check() error {
	if v.size >= 0 && v.n < v.size {
		return fmt.Errorf("blob %s: truncated: %d of %d bytes: %w", v.want, v.n, v.size, io.ErrUnexpectedEOF)
	}
	if got := digest.NewDigest(v.want.Algorithm(), v.hash); got != v.want {
		return fmt.Errorf("blob %s: corrupt: its bytes have the digest %s: %w", v.want, got, ErrDigestMismatch)
	}
	return nil
}

func (v *verifier) Close() error { return v.rc.Close() }

// index returns the layer's index: in memory, from the store, or by streaming
// the layer once.
func (l *Layer) index(ctx context.Context) (*index, error) {
	if x := l.loadedIndex(); x != nil {
		return x, nil
	}
	l.pass.Lock()
	defer l.pass.Unlock()
	if x := l.loadedIndex(); x != nil {
		return x, nil
	}
	if open := l.offered(); open != nil {
		x, err := l.fetchIndex(ctx, open)
		if err == nil {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.idx = x
			return x, nil
		}
		if l.isKnown || ctx.Err() != nil {
			return nil, l.lost(ctx, fmt.Errorf("its index: %w", err))
		}
	}
	return l.stream(ctx, nil, true)
}

// HasIndex tells whether the layer's index can be had without streaming it.
func (l *Layer) HasIndex() bool { return l.offered() != nil || l.loadedIndex() != nil }

// offered returns how to get an index that somebody keeps; nil if nobody does.
func (l *Layer) offered() func(ctx context.Context) (io.ReadCloser, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.remote
}

func (l *Layer) loadedIndex() *index {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.idx != nil {
		return l.idx
	}
	x, err := openIndex(l.st, l.diffID.Digest())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			_ = l.st.Delete(store.Indexes, l.diffID.Digest()) // broken: build it anew
		}
		return nil
	}
	l.idx = x
	return x
}

// Len returns how many paths the layer has something to say of, 0 if its index
// is not known.
func (l *Layer) Len() int {
	if x := l.loadedIndex(); x != nil {
		return x.count
	}
	return 0
}

// A target receives a layer's entries in the order of its tar.
type target interface {
	// put makes the entry; content is nil for anything but a regular file.
	put(e *tree.Entry, content io.Reader) error
	// link makes the hard link p to the file at target.
	link(p, target string) error
	// remove deletes what lower layers have at p; keep tells which paths the layer
	// itself has made so far.
	remove(p string, childrenOnly bool, keep func(p string) bool) error
	// settle ends what is still being done for entries. It returns the error of the
	// first that failed, which names the entry, however often it is asked.
	settle() error
}

// Unpack streams the layer into dst and builds its index on the way if it is
// not known. With spool the compressed blob is kept in the store.
func (l *Layer) unpack(ctx context.Context, dst target, spool bool) error {
	l.pass.Lock()
	defer l.pass.Unlock()
	_, err := l.stream(ctx, dst, spool)
	return err
}

// stream is the one pass over a layer's blob: download, spool, digest, inflate,
// diffID, index, unpack. l.pass is held.
func (l *Layer) stream(ctx context.Context, dst target, spool bool) (*index, error) {
	x, err := l.streamOnce(ctx, dst, spool)
	if err != nil {
		return nil, l.lost(ctx, fmt.Errorf("layer %s: %w", l.desc.Digest, err))
	}
	return x, nil
}

func (l *Layer) streamOnce(ctx context.Context, dst target, spool bool) (_ *index, err error) {
	known := l.loadedIndex()
	blob, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	var in io.Reader = blob
	var spoolTo *store.Writer
	if spool && !l.keeps() {
		if spoolTo, err = l.st.Create(); err != nil {
			return nil, err
		}
		defer spoolTo.Discard()
		in = io.TeeReader(in, spoolTo)
	}
	var points restarts
	plain, err := decompress(in, l.desc.MediaType, func(p gz.Checkpoint) error {
		if known == nil {
			points.add(p)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// Inflating runs ahead on a core of its own, while this one hashes the tar and
	// its files, reads it and unpacks.
	ahead := gz.Ahead(plain, aheadBuffers, aheadSize)
	defer ahead.Close()
	s := &scanner{ctx: ctx, r: ahead, dst: dst, sums: tandem.New(), buf: make([]byte, 64<<10)}
	if known == nil {
		s.build = &indexBuilder{}
	} else {
		s.known = known
	}
	err = s.run()
	if dst != nil {
		// What went wrong with an earlier entry counts.
		if late := dst.settle(); late != nil {
			err = late
		}
	}
	if err == nil {
		// The padding of the tar, and what a writer may have left behind it,
		// belongs to both digests.
		_, err = io.Copy(io.Discard, s)
	}
	if err != nil {
		ahead.Close()
		return nil, blame(ctx, in, err)
	}
	ahead.Close()
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, err
	}
	if got := image.DiffID(sha256Digest(s.sums.Sum())); got != l.diffID {
		return nil, fmt.Errorf("its content has the diffID %s, not %s: %w", got, l.diffID, ErrDigestMismatch)
	}
	if spoolTo != nil {
		if err := spoolTo.Commit(store.Blobs, l.desc.Digest); err != nil {
			return nil, err
		}
	}
	if known != nil {
		return known, nil
	}
	return l.saveIndex(s.build, points.list)
}

// blame reads the rest of a blob that could not be read as a layer: if its bytes
// are the wrong ones, that is the fault, whatever they looked like.
func blame(ctx context.Context, in io.Reader, err error) error {
	if _, ok := errors.AsType[*fs.PathError](err); ok || ctx.Err() != nil {
		return err // of the disk, not of the bytes
	}
	if _, rerr := io.Copy(io.Discard, in); rerr != nil {
		return rerr
	}
	return err
}

// restarts are places in a gzip blob where reading can start. Each holds 32 KiB of
// memory, so of a blob that inflates to more they are farther apart.
type restarts struct {
	list  []gz.Checkpoint
	every int64
}

const maxRestarts = 1024

func (r *restarts) add(p gz.Checkpoint) {
	if n := len(r.list); n > 0 && p.Out-r.list[n-1].Out < r.every {
		return
	}
	if len(r.list) == maxRestarts {
		for i := range maxRestarts / 2 {
			r.list[i] = r.list[2*i]
		}
		clear(r.list[maxRestarts/2:])
		r.list = r.list[:maxRestarts/2]
		r.every = 2 * max(r.every, checkpointEvery)
	}
	r.list = append(r.list, p)
}

// saveIndex stores a finished index and maps it.
func (l *Layer) saveIndex(b *indexBuilder, points []gz.Checkpoint) (*index, error) {
	w, err := l.st.Create()
	if err != nil {
		return nil, err
	}
	bw := bufio.NewWriterSize(w, 64<<10)
	if err := errors.Join(b.finish(bw, points), bw.Flush()); err != nil {
		w.Discard()
		return nil, fmt.Errorf("write index: %w", err)
	}
	if err := w.Commit(store.Indexes, l.diffID.Digest()); err != nil {
		return nil, err
	}
	x := l.loadedIndex()
	if x == nil {
		return nil, fmt.Errorf("index of %s: %w", l.diffID, errBadIndex)
	}
	return x, nil
}

// decompress returns the uncompressed bytes of a layer blob, by its magic
// number: media types in the wild do not always tell the truth.
func decompress(r io.Reader, mediaType string, checkpoint func(gz.Checkpoint) error) (io.Reader, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gz.NewReader(br, gz.ReaderOptions{Every: checkpointEvery, Checkpoint: checkpoint})
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(256<<20))
	case strings.HasSuffix(mediaType, "gzip") || strings.HasSuffix(mediaType, "zstd"):
		return nil, fmt.Errorf("not compressed as its media type %q says", mediaType)
	}
	return br, nil
}

// A scanner walks a layer's tar.
type scanner struct {
	ctx   context.Context //nolint:containedctx // io.Reader takes none
	r     io.Reader
	dst   target        // nil: nothing is unpacked
	build *indexBuilder // nil: the index is known
	known *index
	// isArchive: no name is a whiteout, and there is a limit to how many there are.
	isArchive bool
	n         int64        // bytes of the tar read so far
	sums      *tandem.Hash // of these, and of each file in them
	buf       []byte
	// made holds the names made so far and their parents; nil if there is no
	// deletion yet that could be about them.
	made map[string]bool
}

// Read counts, so that a file's offset in the tar is known, and hashes.
func (s *scanner) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	_, _ = s.sums.Write(p[:n])
	return n, err
}

func (s *scanner) run() error {
	if s.dst != nil && s.known != nil && s.known.deletes() {
		s.made = make(map[string]bool)
	}
	tr := tar.NewReader(s)
	for {
		if err := s.ctx.Err(); err != nil {
			return context.Cause(s.ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if err := s.header(h, tr); err != nil {
			return err
		}
	}
}

func (s *scanner) header(h *tar.Header, tr *tar.Reader) error {
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if s.isArchive && (len(s.build.pos) >= maxEntries || s.build.size >= maxIndexSize) {
		return ErrTooManyFiles
	}
	m, p := parseMarker(name)
	if s.isArchive {
		m = noMarker
	}
	switch m {
	case metaMarker:
		return nil
	case deleteMarker, opaqueMarker:
		return s.marker(m, p)
	case badMarker:
		return fmt.Errorf("entry %q would delete a directory that it is in", h.Name)
	case noMarker:
	}
	switch h.Typeflag {
	case tar.TypeLink:
		return s.hardLink(h, name)
	case tar.TypeXGlobalHeader:
		return nil
	}
	e, err := entryOf(h, name)
	if err != nil {
		return err
	}
	if s.isArchive {
		e.Xattrs = nil // a build takes none from its context
	}
	return s.entry(e, s.n, tr)
}

func (s *scanner) marker(m marker, p string) error {
	k := whiteout
	if m == opaqueMarker {
		k = opaque
	}
	if s.dst != nil {
		if err := s.dst.remove(p, m == opaqueMarker, s.ours); err != nil {
			return fmt.Errorf("delete /%s: %w", p, err)
		}
	}
	if s.build == nil {
		return nil
	}
	return s.build.add(&record{Entry: tree.Entry{Path: p}, kind: k})
}

// ours tells whether this layer has made p, or something below it, so far.
func (s *scanner) ours(p string) bool {
	if s.made == nil {
		// The first deletion: most layers have none, and need no such table.
		s.made = make(map[string]bool)
		for n := range s.build.pos {
			if kind(s.build.raw(n)[0])&(present|lowlink) != 0 {
				s.note(string(s.build.path(n)))
			}
		}
	}
	return s.made[p]
}

// note remembers that the layer has made p, if that can matter.
func (s *scanner) note(p string) {
	if s.made == nil {
		return
	}
	for ; p != "" && !s.made[p]; p = tree.Parent(p) {
		s.made[p] = true
	}
}

func (s *scanner) hardLink(h *tar.Header, name string) error {
	target, err := cleanName(h.Linkname)
	if err != nil {
		return err
	}
	if s.dst != nil {
		if err := s.dst.link(name, target); err != nil {
			return fmt.Errorf("link /%s to /%s: %w", name, target, err)
		}
	}
	s.note(name)
	if s.build == nil {
		return nil
	}
	return s.build.addLink(name, target)
}

func (s *scanner) entry(e *tree.Entry, off int64, content io.Reader) error {
	hashed := e.Mode.IsRegular() && e.Size > 0 && s.build != nil
	if hashed {
		s.sums.Begin() // a tar is read no further than to the end of a file's content
	}
	if !e.Mode.IsRegular() {
		content = nil
	}
	if s.dst != nil {
		if err := s.dst.put(e, content); err != nil {
			return fmt.Errorf("unpack /%s: %w", e.Path, err)
		}
	}
	s.note(e.Path)
	if s.build == nil {
		return nil
	}
	if hashed {
		if _, err := io.CopyBuffer(writerOnly{io.Discard}, content, s.buf); err != nil {
			return fmt.Errorf("read /%s: %w", e.Path, err)
		}
		e.Digest = sha256Digest(s.sums.End())
	}
	return s.build.add(&record{Entry: *e, kind: present, off: off})
}

// cleanName returns the tree path of a name in a layer. Absolute names are
// relative to the root, as every runtime reads them; a name that climbs out of
// it is an attack, and an error.
func cleanName(name string) (string, error) {
	c := path.Clean(strings.TrimLeft(name, "/"))
	if c == ".." || strings.HasPrefix(c, "../") {
		return "", &EscapeError{Name: name}
	}
	if len(name) > maxNameSize || strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("entry with a broken name of %d bytes", len(name))
	}
	return tree.Clean(c), nil
}

// An EscapeError is returned for a layer with a name that leads out of the
// image's root.
type EscapeError struct{ Name string }

func (e *EscapeError) Error() string { return fmt.Sprintf("entry %q leaves the image's root", e.Name) }

// entryOf returns what a tar header says, in the terms of trees.
func entryOf(h *tar.Header, name string) (*tree.Entry, error) {
	e := &tree.Entry{
		Path: name, Mode: tree.Mode(h.Mode) & tree.ModePerm, UID: uint32(h.Uid), GID: uint32(h.Gid),
		ModTime: h.ModTime,
	}
	if h.ModTime.IsZero() {
		e.ModTime = time.Unix(0, 0)
	}
	switch h.Typeflag {
	case tar.TypeReg, '\x00', '7':
		e.Mode |= tree.ModeRegular
		e.Size = h.Size
		if strings.HasSuffix(h.Name, "/") { // old tars: a directory
			e.Mode = e.Mode&^tree.ModeType | tree.ModeDir
			e.Size = 0
		}
	case tar.TypeGNUSparse:
		return nil, fmt.Errorf("/%s: sparse files in archives are not supported", name)
	case tar.TypeDir:
		e.Mode |= tree.ModeDir
	case tar.TypeSymlink:
		e.Mode |= tree.ModeSymlink
		e.Link = h.Linkname
	case tar.TypeChar:
		e.Mode |= tree.ModeChar
	case tar.TypeBlock:
		e.Mode |= tree.ModeBlock
	case tar.TypeFifo:
		e.Mode |= tree.ModeFIFO
	default:
		return nil, fmt.Errorf("/%s: tar entry of unknown type %q", name, h.Typeflag)
	}
	if h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != "" {
		return nil, fmt.Errorf("/%s: sparse files in archives are not supported", name)
	}
	if e.Mode.IsDevice() {
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	for k, v := range h.PAXRecords {
		if x, ok := strings.CutPrefix(k, xattrPrefix); ok {
			if e.Xattrs == nil {
				e.Xattrs = make(map[string]string)
			}
			e.Xattrs[x] = v
		}
	}
	return e, nil
}
