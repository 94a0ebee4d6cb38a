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
	"io"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"hako/internal/gz"
	"hako/internal/store"
	"hako/internal/tandem"
	"hako/internal/tree"
)

// An Archive is a tar that somebody made, seen as a tree: the files of a build
// context. It is read once, to index it, and lies on disk as one file, but is never
// unpacked. It is safe for concurrent use.
//
// Unlike in a layer no name means a deletion, and hard links are to files of
// the archive. Names cannot leave it: "..", which climbs out, is an error, an
// absolute name is below its root, and links are followed inside ([tree.Resolve]).
type Archive struct {
	tree.FS
	layer *Layer
	spool *store.Writer // nil if the archive is read where it lies
	index *store.Writer
}

// maxEntries and maxIndexSize bound what an index takes of memory while it is
// built: an archive of a few megabytes can hold names by the million, and names of
// a megabyte.
const (
	maxEntries   = 1_000_000
	maxIndexSize = 128 << 20
)

// ErrNoArchive is returned for what is no tar, compressed or not.
var ErrNoArchive = errors.New("it is no tar archive, nor one compressed with gzip, zstd, xz or bzip2")

// ErrTooManyFiles is in the error for an archive with more names than an index is made of.
var ErrTooManyFiles = fmt.Errorf("it has more than %d files, or names that take more than %d MiB", maxEntries, maxIndexSize>>20)

// ErrWindow is in the error for an archive whose compressor wants too much memory.
var ErrWindow = fmt.Errorf("unpacking it takes more than %d MiB of memory", maxWindow>>20)

// ErrCutOff is in the error for an archive without its end.
var ErrCutOff = errors.New("it ends too early")

// NewArchive reads the tar in r: plain, or compressed with gzip, zstd, xz or
// bzip2, as its first bytes tell. Contents are spooled into st; if again is not
// nil, the same bytes can be read there, and are not spooled if that is possible.
func NewArchive(ctx context.Context, st *store.Store, r io.Reader, again Source) (_ *Archive, err error) {
	a := &Archive{layer: &Layer{st: st}}
	defer func() {
		if err != nil {
			_ = a.Close()
		}
	}()
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(tarBlock)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	src := &archiveSource{r: in, head: head, again: again, st: st}
	defer src.end()
	if err := src.open(); err != nil {
		return nil, unreadable(err)
	}
	build := &indexBuilder{}
	if err := scanArchive(ctx, src.plain, build); err != nil {
		return nil, unreadable(err)
	}
	a.spool, a.layer.src = src.spool, src.source()
	src.spool = nil
	if err := a.saveIndex(st, build); err != nil {
		return nil, err
	}
	c, err := newChain(ctx, []*Layer{a.layer})
	a.FS = c
	return a, err
}

// Close drops the archive's files.
func (a *Archive) Close() error {
	a.layer.CloseIdle()
	if a.spool != nil {
		a.spool.Discard()
	}
	if a.index != nil {
		a.index.Discard()
	}
	if x := a.layer.idx; x != nil {
		return x.unmap()
	}
	return nil
}

// saveIndex writes the index to a file of its own, not under the layer's name: the
// same bytes as a layer mean something else.
func (a *Archive) saveIndex(st *store.Store, b *indexBuilder) (err error) {
	if a.index, err = st.Create(); err != nil {
		return err
	}
	bw := bufio.NewWriterSize(a.index, 64<<10)
	if err := errors.Join(b.finish(bw, nil), bw.Flush()); err != nil {
		return err
	}
	if _, err := a.index.Seek(0, io.SeekStart); err != nil {
		return err
	}
	x, err := loadIndex(a.index.File)
	if err != nil {
		return fmt.Errorf("index of the archive: %w", err)
	}
	a.layer.idx = x
	return a.checkLinks(x)
}

// checkLinks refuses hard links to what the archive does not have.
func (a *Archive) checkLinks(x *index) error {
	if !x.lowlinks {
		return nil
	}
	for i := range x.count {
		if kind(x.raw(i)[0])&lowlink == 0 {
			continue
		}
		r, err := x.record(i)
		if err != nil {
			return err
		}
		return fmt.Errorf("hard link %q to %q, which the archive does not have before it", r.Path, r.linkTo)
	}
	return nil
}

func scanArchive(ctx context.Context, plain io.Reader, build *indexBuilder) error {
	ahead := gz.Ahead(plain, aheadBuffers, aheadSize)
	defer ahead.Close()
	end := &endReader{r: ahead}
	s := &scanner{ctx: ctx, r: end, build: build, isArchive: true, sums: tandem.New(), buf: make([]byte, 64<<10)}
	err := s.run()
	switch {
	case err == nil && end.seen:
		return fmt.Errorf("read tar: %w: the blocks that end an archive are missing", ErrCutOff)
	case err == nil:
		_, err = io.Copy(io.Discard, ahead) // a compressed archive's checksum is at its end
	}
	return err
}

// An endReader notes when there was nothing left to read.
type endReader struct {
	r    io.Reader
	seen bool
}

func (e *endReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if n == 0 && err != nil {
		e.seen = true
	}
	return n, err
}

// unreadable gives the errors of archive formats that stand for a missing end
// one meaning.
func unreadable(err error) error {
	switch {
	case errors.Is(err, ErrCutOff), errors.Is(err, ErrNoArchive):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fmt.Errorf("read tar: %w", ErrCutOff)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, xz.ErrMemlimit):
		return ErrWindow
	case errors.Is(err, xz.ErrBuf):
		return fmt.Errorf("read tar: %w", ErrCutOff)
	case errors.Is(err, tar.ErrHeader):
		return fmt.Errorf("%w: a header is damaged", ErrNoArchive)
	}
	return err
}

// An archiveSource is an archive's bytes on their way: from r, through a
// decompressor, and to where the tar can be read again from any place. Archives
// have their files in any order, and are read in that of their names: it takes
// seeking for that, so the spool is not compressed.
type archiveSource struct {
	r     io.Reader
	head  []byte
	again Source
	st    *store.Store

	plain io.Reader // the tar
	spool *store.Writer
	unzip io.Closer
}

func (s *archiveSource) open() error {
	z, err := s.decompress()
	switch {
	case err != nil:
		return err
	case z != nil:
		s.plain, s.unzip = z, z
	case !isTarBlock(s.head):
		return ErrNoArchive
	case s.again != nil:
		s.plain = s.r
		return nil
	default:
		s.plain = s.r
	}
	if s.spool, err = s.st.Create(); err == nil {
		s.plain = io.TeeReader(s.plain, s.spool)
	}
	return err
}

// decompress returns nil if the archive is not compressed.
func (s *archiveSource) decompress() (io.ReadCloser, error) {
	if !isGzip(s.head) {
		return decompressOther(s.r, s.head)
	}
	z, err := gz.NewReader(s.r, gz.ReaderOptions{})
	if err != nil {
		return nil, err
	}
	return io.NopCloser(z), nil
}

// source returns where the bytes can be read again.
func (s *archiveSource) source() Source {
	if s.spool != nil {
		return FileSource{s.spool.File}
	}
	return s.again
}

// end stops what a failure has left.
func (s *archiveSource) end() {
	if s.unzip != nil {
		_ = s.unzip.Close()
	}
	if s.spool != nil {
		s.spool.Discard()
	}
}

// A FileSource reads an open file, whatever becomes of its name.
type FileSource struct{ File io.ReaderAt }

// Open implements [Source].
func (f FileSource) Open(_ context.Context, offset int64) (io.ReadCloser, error) {
	const all = 1<<63 - 1
	return io.NopCloser(io.NewSectionReader(f.File, offset, all-offset)), nil
}

const tarBlock = 512

// IsArchive reports whether data that begin with head (512 bytes, if there are so
// many) are a tar, or compressed.
func IsArchive(head []byte) bool {
	z, err := decompressOther(bytes.NewReader(head), head)
	if z != nil {
		_ = z.Close()
	}
	return z != nil || err != nil || isGzip(head) || isTarBlock(head)
}

// isTarBlock reports whether b begins with a header, by its checksum, or with
// the block of zeros that ends an archive.
func isTarBlock(b []byte) bool {
	const at, size = 148, 8
	if len(b) < tarBlock {
		return false
	}
	var unsigned, signed, all int64
	for i, c := range b[:tarBlock] {
		all |= int64(c)
		if i >= at && i < at+size {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	if all == 0 {
		return true
	}
	want, err := strconv.ParseInt(strings.Trim(string(b[at:at+size]), " \x00"), 8, 64)
	return err == nil && (want == unsigned || want == signed)
}
