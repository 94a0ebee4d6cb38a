// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/gz"
	"hako/internal/image"
	"hako/internal/store"
	"hako/internal/tandem"
	"hako/internal/tree"
)

// keptXattr is the one extended attribute that layers carry, as containerd's
// writer has it (pkg/archive, tar.go): file capabilities. Others are properties
// of the machine that built.
const keptXattr = "security.capability"

// ErrChanged is returned when a file is not what it was when the build looked
// at it first.
var ErrChanged = errors.New("changed during the build")

// A SecretError is returned for a file whose content no layer may hold.
type SecretError struct {
	Path string
	Name string // what to call the content
}

func (e *SecretError) Error() string {
	return fmt.Sprintf("/%s: holds %s, which must not get into an image", e.Path, e.Name)
}

// Explain tells how to use a secret without keeping it.
func (e *SecretError) Explain() string {
	return " why     everybody who can pull the image could read it\n" +
		" try     use it where it is mounted, or remove the copy in the same RUN"
}

// WriteOptions say how a layer is written.
type WriteOptions struct {
	// Created is the layer's time in the image's history, and the mtime of whiteouts.
	Created time.Time
	// Description says what made the layer.
	Description string
	// Zstd compresses with zstd instead of gzip.
	Zstd bool
	// Level is the compression level; 0 is the default of the format.
	Level int
	// Workers compress in parallel; 0 means 1. The bytes do not depend on it.
	Workers int
	// Clamp, if set, is the latest time any file in the layer may have.
	Clamp *time.Time
	// Annotations are put on the blob's descriptor.
	Annotations map[string]string
	// Forbidden are contents that must never get into a layer, with what to
	// call them: secrets.
	Forbidden map[digest.Digest]string
	// Growing, if set, is told of the blob once it is large, while it is still
	// being written. The layer may yet fail. It holds up the writer.
	Growing func(*Growing)
}

// Write makes a layer of changes in one pass: tar, diffID, compression, digest
// and index, with the compressed blob spooled into st. The same changes give
// the same bytes on every machine.
func Write(ctx context.Context, st *store.Store, changes iter.Seq2[tree.Change, error], opt WriteOptions) (*Layer, error) {
	spool, err := st.Create()
	if err != nil {
		return nil, err
	}
	defer spool.Discard()
	grows := &growth{file: spool, tell: opt.Growing}
	defer grows.end(ocispecs.Descriptor{}, errGivenUp)
	blob := sha256.New()
	out := bufio.NewWriterSize(grows, 256<<10)
	size := &counter{w: io.MultiWriter(out, blob)}
	comp, mediaType, err := compressor(size, opt)
	if err != nil {
		return nil, err
	}
	w := &writer{ctx: ctx, opt: opt, sums: tandem.New(), build: &indexBuilder{}, buf: make([]byte, 128<<10)}
	w.out = &counter{w: io.MultiWriter(comp, w.sums)}
	w.tar = tar.NewWriter(w.out)
	err = w.all(changes)
	if err == nil {
		err = w.tar.Close()
	}
	// Close on failure too: it ends the compressor's goroutines.
	if cerr := comp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = out.Flush()
	}
	if size.err != nil {
		// The compressor writes behind: which file was being read when the spool
		// failed is chance, and says nothing.
		err = size.err
	}
	if err != nil {
		return nil, fmt.Errorf("write layer: %w", err)
	}
	l := &Layer{
		Created: opt.Created, Description: opt.Description, st: st, changes: changes,
		diffID: image.DiffID(sha256Digest(w.sums.Sum())),
		desc: ocispecs.Descriptor{
			MediaType: mediaType, Digest: digest.NewDigest(digest.SHA256, blob), Size: size.n, Annotations: opt.Annotations,
		},
	}
	if err := spool.Commit(store.Blobs, l.desc.Digest); err != nil {
		return nil, err
	}
	grows.end(l.desc, io.EOF)
	var points []gz.Checkpoint
	if g, ok := comp.(*gz.Writer); ok {
		points = g.Checkpoints()
	}
	if _, err := l.saveIndex(w.build, points); err != nil {
		return nil, err
	}
	return l, nil
}

func compressor(w io.Writer, opt WriteOptions) (io.WriteCloser, string, error) {
	if !opt.Zstd {
		level := opt.Level
		if level == 0 {
			level = gz.DefaultLevel
		}
		return gz.NewWriter(w, gz.WriterOptions{Level: level, Workers: max(opt.Workers, 1)}), ocispecs.MediaTypeImageLayerGzip, nil
	}
	level := zstd.SpeedDefault
	if opt.Level != 0 {
		level = zstd.EncoderLevelFromZstd(opt.Level)
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	return z, ocispecs.MediaTypeImageLayerZstd, err
}

type counter struct {
	w   io.Writer
	n   int64
	err error // of the last Write
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.err = err
	return n, err
}

// A writer turns changes into a tar and its index.
type writer struct {
	ctx   context.Context //nolint:containedctx // io.Writer takes none
	opt   WriteOptions
	tar   *tar.Writer
	out   *counter     // the uncompressed tar
	sums  *tandem.Hash // of the tar, and of each file in it
	build *indexBuilder
	buf   []byte
}

func (w *writer) all(changes iter.Seq2[tree.Change, error]) error {
	for c, err := range changes {
		if err != nil {
			return err
		}
		if err := w.ctx.Err(); err != nil {
			return context.Cause(w.ctx)
		}
		if c.Path == "" {
			continue // layers have no entry for the root, as containerd's have none
		}
		if err := w.change(&c); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) change(c *tree.Change) error {
	if err := CheckName(c.Path); err != nil {
		return err
	}
	switch {
	case c.Deleted:
		return w.delete(c.Path)
	case c.LinkTo != "":
		h := w.tarHeader(&c.Entry)
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, c.LinkTo, 0
		if err := w.tar.WriteHeader(h); err != nil {
			return fmt.Errorf("/%s: %w", c.Path, err)
		}
		return w.build.addLink(c.Path, c.LinkTo)
	case c.Mode.Type() == tree.ModeSocket:
		return fmt.Errorf("/%s: a socket cannot be in an image", c.Path)
	}
	return w.entry(c)
}

func (w *writer) delete(p string) error {
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: whiteoutPath(p), ModTime: w.opt.Created.Truncate(time.Second), Format: tar.FormatPAX,
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("delete /%s: %w", p, err)
	}
	return w.build.add(&record{Entry: tree.Entry{Path: p}, kind: whiteout})
}

func (w *writer) entry(c *tree.Change) error {
	h := w.tarHeader(&c.Entry)
	if err := w.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("/%s: %w", c.Path, err)
	}
	e := c.Entry
	e.ModTime = h.ModTime
	e.Xattrs = keptXattrs(e.Xattrs)
	off := w.out.n
	if e.Mode.IsRegular() && e.Size > 0 {
		sum, err := w.content(c)
		if err != nil {
			return fmt.Errorf("/%s: %w", c.Path, err)
		}
		if name, ok := w.opt.Forbidden[sum]; ok {
			return &SecretError{Path: c.Path, Name: name}
		}
		e.Digest = sum
	}
	return w.build.add(&record{Entry: e, kind: present, off: off})
}

// content copies a regular file's bytes and returns their digest. The file has
// to be what its entry says.
func (w *writer) content(c *tree.Change) (digest.Digest, error) {
	rc, err := c.Open()
	if err != nil {
		return "", err
	}
	defer rc.Close()
	// What is written now is the file, and nothing else: padding comes later.
	w.sums.Begin()
	n, err := io.CopyBuffer(writerOnly{w.tar}, io.LimitReader(stoppable{w.ctx, rc}, c.Size), w.buf)
	if err != nil {
		return "", err
	}
	if n < c.Size {
		return "", fmt.Errorf("shorter than its %d bytes: %w", c.Size, ErrChanged)
	}
	if k, _ := rc.Read(w.buf[:1]); k > 0 {
		return "", fmt.Errorf("longer than its %d bytes: %w", c.Size, ErrChanged)
	}
	d := sha256Digest(w.sums.End())
	if c.Digest != "" && c.Digest.Algorithm() == digest.SHA256 && c.Digest != d {
		return "", fmt.Errorf("its content is not the one seen before: %w", ErrChanged)
	}
	return d, nil
}

func sha256Digest(sum [sha256.Size]byte) digest.Digest {
	return digest.NewDigestFromBytes(digest.SHA256, sum[:])
}

// stoppable is a file that may be so large that a build which is stopped cannot
// wait for its end.
type stoppable struct {
	ctx context.Context //nolint:containedctx // io.Reader takes none
	r   io.Reader
}

func (s stoppable) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	return s.r.Read(p)
}

// writerOnly hides ReadFrom, which would bypass the copy's buffer.
type writerOnly struct{ io.Writer }

// tarHeader returns the header as containerd's writer makes it: PAX, whole
// seconds, ids without names, one extended attribute.
func (w *writer) tarHeader(e *tree.Entry) *tar.Header {
	h := &tar.Header{
		Name: e.Path, Mode: int64(e.Mode.Perm()), Uid: int(e.UID), Gid: int(e.GID),
		ModTime: e.ModTime.Truncate(time.Second), Format: tar.FormatPAX,
	}
	if w.opt.Clamp != nil && h.ModTime.After(*w.opt.Clamp) {
		h.ModTime = *w.opt.Clamp
	}
	switch e.Mode.Type() {
	case tree.ModeDir:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case tree.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		h.Linkname = e.Link
	case tree.ModeChar:
		h.Typeflag = tar.TypeChar
		h.Devmajor, h.Devminor = int64(e.Major), int64(e.Minor)
	case tree.ModeBlock:
		h.Typeflag = tar.TypeBlock
		h.Devmajor, h.Devminor = int64(e.Major), int64(e.Minor)
	case tree.ModeFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		h.Typeflag = tar.TypeReg
		h.Size = e.Size
	}
	if v, ok := e.Xattrs[keptXattr]; ok && e.Mode.IsRegular() {
		h.PAXRecords = map[string]string{xattrPrefix + keptXattr: v}
	}
	return h
}

func keptXattrs(x map[string]string) map[string]string {
	if v, ok := x[keptXattr]; ok {
		return map[string]string{keptXattr: v}
	}
	return nil
}
