// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
)

// Blobs are compared with the digests of their pieces while they are read, so
// that reading may begin anywhere and no byte gets out that is not the blob's:
// whoever reads can go on elsewhere in the middle.
const pieceSize = 256 << 10

func sumsSize(size int64) int64 { return (size + pieceSize - 1) / pieceSize * sha256.Size }

// A DepotReader reads a blob. All bytes that it returns are right.
type DepotReader struct {
	d    *Depot
	dg   digest.Digest
	f    io.ReaderAt
	c    io.Closer
	size int64
	sums []byte // nil: the blob was compared as a whole

	pos   int64
	buf   []byte
	piece []byte // what is left of buf
}

// Open returns the blob's bytes from offset on. Its errors, and those of the
// reader, mean that the blob has to be had from somewhere else.
func (d *Depot) Open(dg digest.Digest, size, offset int64) (*DepotReader, error) {
	if err := dg.Validate(); err != nil {
		return nil, err
	}
	if d.root != nil {
		r, err := d.open(dg, size, offset)
		if err == nil {
			d.touch(blobFile(dg))
			return r, nil
		}
	}
	if b, ok := d.foreign().find(dg, size); ok {
		f, c, err := b.open()
		if err == nil {
			return &DepotReader{d: d, dg: dg, f: f, c: c, size: size, pos: offset}, nil
		}
	}
	return nil, ErrNotKept
}

func (d *Depot) open(dg digest.Digest, size, offset int64) (*DepotReader, error) {
	f, err := d.root.Open(blobFile(dg))
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	var sums []byte
	if err == nil {
		sums, err = d.root.ReadFile(sumsFile(dg))
	}
	if err != nil || fi.Size() != size || int64(len(sums)) != sumsSize(size) {
		d.Delete(dg)
		return nil, errors.Join(ErrNotKept, f.Close())
	}
	return &DepotReader{d: d, dg: dg, f: f, c: f, size: size, sums: sums, pos: offset}, nil
}

// Read implements io.Reader.
func (r *DepotReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.pos >= r.size {
		return 0, io.EOF
	}
	if len(r.piece) == 0 {
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.piece)
	r.piece = r.piece[n:]
	r.pos += int64(n)
	return n, nil
}

// fill reads and compares the piece that pos is in.
func (r *DepotReader) fill() error {
	i := r.pos / pieceSize
	start := i * pieceSize
	n := min(pieceSize, r.size-start)
	if r.buf == nil {
		r.buf = make([]byte, min(pieceSize, r.size))
	}
	b := r.buf[:n]
	_, err := r.f.ReadAt(b, start)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("blob %s: %w", r.dg, err)
	}
	if r.sums != nil {
		sum := sha256.Sum256(b)
		if err != nil || !bytes.Equal(sum[:], r.sums[i*sha256.Size:(i+1)*sha256.Size]) {
			r.d.Delete(r.dg)
			return fmt.Errorf("blob %s: %w: it was broken at %d", r.dg, ErrNotKept, start)
		}
	} else if err != nil {
		return fmt.Errorf("blob %s: %w", r.dg, io.ErrUnexpectedEOF)
	}
	r.piece = b[r.pos-start:]
	return nil
}

// Close implements io.Closer.
func (r *DepotReader) Close() error { return r.c.Close() }

// A DepotWriter is a blob on its way into a Depot. An error of writing ends the
// attempt and is no other's business: it is kept until Commit.
type DepotWriter struct {
	d     *Depot
	dg    digest.Digest
	f     *os.File
	name  string
	sum   hash.Hash
	piece hash.Hash
	in    int // bytes in piece
	sums  []byte
	done  bool
}

// Create starts the blob dg. It is nil if there is no place for it.
func (d *Depot) Create(dg digest.Digest, size int64) *DepotWriter {
	if !d.Writable() || dg.Validate() != nil || dg.Algorithm() != digest.SHA256 || !d.makeRoom(size) {
		return nil
	}
	f, name, err := d.create()
	if err != nil {
		d.failed(err)
		return nil
	}
	return &DepotWriter{d: d, dg: dg, f: f, name: name, sum: sha256.New(), piece: sha256.New()}
}

// Write implements io.Writer.
func (w *DepotWriter) Write(p []byte) (int, error) {
	if w.done {
		return 0, os.ErrClosed
	}
	if _, err := w.f.Write(p); err != nil {
		w.d.failed(err)
		w.Discard()
		return 0, err
	}
	_, _ = w.sum.Write(p)
	for rest := p; len(rest) > 0; {
		n := min(len(rest), pieceSize-w.in)
		_, _ = w.piece.Write(rest[:n])
		rest = rest[n:]
		if w.in += n; w.in == pieceSize {
			w.endPiece()
		}
	}
	return len(p), nil
}

func (w *DepotWriter) endPiece() {
	w.sums = w.piece.Sum(w.sums)
	w.piece.Reset()
	w.in = 0
}

// Commit stores what was written if it is the blob.
func (w *DepotWriter) Commit() error {
	if w.done {
		return os.ErrClosed
	}
	defer w.Discard()
	if got := digest.NewDigest(digest.SHA256, w.sum); got != w.dg {
		return fmt.Errorf("store blob: it is %s, not %s", got, w.dg)
	}
	if w.in > 0 {
		w.endPiece()
	}
	err := w.commit()
	w.d.failed(err)
	return err
}

func (w *DepotWriter) commit() error {
	f, name, err := w.d.create()
	if err != nil {
		return err
	}
	_, err = f.Write(w.sums)
	// The lock goes with the handle; nobody removes a file of this minute.
	err = errors.Join(err, f.Close())
	if err == nil {
		err = w.d.rename(name, sumsFile(w.dg))
	}
	if err != nil {
		_ = w.d.root.Remove(name)
		return err
	}
	if err := w.d.rename(w.name, blobFile(w.dg)); err != nil {
		return err
	}
	w.d.touch(blobFile(w.dg))
	return nil
}

// Discard drops what was written; it may follow a Commit, to no effect.
func (w *DepotWriter) Discard() {
	if w.done {
		return
	}
	w.done = true
	_ = w.f.Close()
	_ = w.d.root.Remove(w.name) // after a rename there is none
}

// OpenIndex returns the packed index of the layer diffID, verified.
func (d *Depot) OpenIndex(format string, diffID digest.Digest) (io.ReadCloser, error) {
	if d.root == nil || diffID.Validate() != nil {
		return nil, ErrNotKept
	}
	name := indexFile(format, diffID)
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	var want [sha256.Size]byte
	h := indexHash(format, diffID)
	_, err = io.ReadFull(f, want[:])
	if err == nil {
		_, err = io.Copy(h, f)
	}
	if err == nil && !bytes.Equal(h.Sum(nil), want[:]) {
		err = ErrNotKept
	}
	if err == nil {
		_, err = f.Seek(sha256.Size, io.SeekStart)
	}
	if err != nil {
		if d.Writable() {
			_ = d.root.Remove(name)
		}
		return nil, errors.Join(fmt.Errorf("index of %s: broken: %w", diffID, err), f.Close())
	}
	d.touch(name)
	return f, nil
}

// indexHash begins the hash of an index with what it is of.
func indexHash(format string, diffID digest.Digest) hash.Hash {
	h := sha256.New()
	_, _ = io.WriteString(h, format+" "+diffID.String()+"\n")
	return h
}

// HasIndex tells whether there is an index of the layer.
func (d *Depot) HasIndex(format string, diffID digest.Digest) bool {
	if d.root == nil || diffID.Validate() != nil {
		return false
	}
	_, err := d.root.Stat(indexFile(format, diffID))
	return err == nil
}

// PutIndex stores the index that pack writes.
func (d *Depot) PutIndex(format string, diffID digest.Digest, pack func(io.Writer) error) error {
	if !d.Writable() || diffID.Validate() != nil || !d.makeRoom(0) {
		return nil
	}
	f, name, err := d.create()
	if err != nil {
		d.failed(err)
		return nil
	}
	defer func() { _ = d.root.Remove(name) }() // after a rename there is none
	h := indexHash(format, diffID)
	out := &failingWriter{w: f}
	_, _ = out.Write(make([]byte, sha256.Size))
	if err := pack(io.MultiWriter(out, h)); err != nil && out.err == nil {
		return errors.Join(err, f.Close())
	}
	if out.err == nil {
		_, out.err = f.WriteAt(h.Sum(nil), 0)
	}
	err = errors.Join(out.err, f.Close())
	if err == nil {
		err = d.rename(name, indexFile(format, diffID))
	}
	d.failed(err)
	return nil
}

// A failingWriter remembers its error, to tell it from those of others.
type failingWriter struct {
	w   io.Writer
	err error
}

func (w *failingWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err != nil {
		w.err = err
	}
	return n, err
}
