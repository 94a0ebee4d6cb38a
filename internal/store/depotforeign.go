// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// A foreign is what kaniko's warmer has left in a directory: for each image,
// named by the digest of its manifest, either an OCI layout (what the fork
// writes), or a docker archive with the manifest beside it, in a file with the
// suffix ".json". Both hold the registry's blobs as they are, by digest. They
// are read and never written.
type foreign struct {
	root  *os.Root
	blobs map[digest.Digest]*foreignBlob
}

// A foreignBlob is a file, or a part of one.
type foreignBlob struct {
	root      *os.Root
	name      string
	dg        digest.Digest
	off, size int64

	once sync.Once
	good bool
}

// maxForeign limits how much of an archive's directory is believed.
const maxForeign = 4096

// findForeign looks into a directory. What is not understood is passed over.
func findForeign(root *os.Root) *foreign {
	f := &foreign{root: root, blobs: map[digest.Digest]*foreignBlob{}}
	dir, err := root.Open(".")
	if err != nil {
		return f
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return f
	}
	for _, e := range entries {
		name := e.Name()
		if dg, err := digest.Parse(strings.TrimSuffix(name, ".json")); err != nil || dg.Algorithm() != digest.SHA256 {
			continue
		}
		switch {
		case e.IsDir():
			f.layout(name)
		case !e.Type().IsRegular():
		case strings.HasSuffix(name, ".json"):
			f.add(strings.TrimSuffix(name, ".json"), name, 0, sizeOf(e))
		default:
			f.archive(name)
		}
	}
	return f
}

func sizeOf(e fs.DirEntry) int64 {
	fi, err := e.Info()
	if err != nil {
		return -1
	}
	return fi.Size()
}

// add notes a blob with the digest in words, if it is one.
func (f *foreign) add(words, name string, off, size int64) {
	dg, err := digest.Parse(words)
	if err == nil && dg.Algorithm() == digest.SHA256 && size >= 0 {
		f.blobs[dg] = &foreignBlob{root: f.root, name: name, dg: dg, off: off, size: size}
	}
}

func (f *foreign) layout(name string) {
	p := path.Join(name, "blobs", "sha256")
	dir, err := f.root.Open(p)
	if err != nil {
		return
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			f.add("sha256:"+e.Name(), path.Join(p, e.Name()), 0, sizeOf(e))
		}
	}
}

func (f *foreign) archive(name string) {
	file, err := f.root.Open(name)
	if err != nil {
		return
	}
	defer file.Close()
	for _, m := range members(file) {
		f.add(m.digest, name, m.off, m.size)
	}
}

// A member is a blob within an archive.
type member struct {
	digest    string
	off, size int64
}

// members lists the blobs in an archive: "sha256:<hex>" is the config, and
// "<hex>.tar.gz" are layers as the registry has them.
func members(r io.ReadSeeker) (list []member) {
	tr := tar.NewReader(r)
	for len(list) < maxForeign {
		h, err := tr.Next()
		if err != nil {
			return list
		}
		off, err := r.Seek(0, io.SeekCurrent) // tar.Reader reads no further than the header
		if err != nil || h.Typeflag != tar.TypeReg {
			continue
		}
		words := h.Name
		if hex, ok := strings.CutSuffix(words, ".tar.gz"); ok {
			words = "sha256:" + hex
		}
		if _, err := digest.Parse(words); err == nil {
			list = append(list, member{words, off, h.Size})
		}
	}
	return list
}

// find returns the blob, compared with its digest when it is first asked for.
func (f *foreign) find(dg digest.Digest, size int64) (*foreignBlob, bool) {
	b := f.blobs[dg]
	if b == nil || b.size != size {
		return nil, false
	}
	return b, b.isGood()
}

func (b *foreignBlob) isGood() bool {
	b.once.Do(func() {
		r, c, err := b.open()
		if err != nil {
			return
		}
		defer c.Close()
		got, err := digest.SHA256.FromReader(io.NewSectionReader(r, 0, b.size))
		b.good = err == nil && got == b.dg
	})
	return b.good
}

func (b *foreignBlob) open() (io.ReaderAt, io.Closer, error) {
	f, err := b.root.Open(b.name)
	if err != nil {
		return nil, nil, err
	}
	fi, err := f.Stat()
	if err == nil && (b.off < 0 || b.size < 0 || fi.Size()-b.off < b.size) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return io.NewSectionReader(f, b.off, b.size), f, nil
}

// readAll returns a small blob, verified.
func (f *foreign) readAll(dg digest.Digest, limit int64) ([]byte, error) {
	b := f.blobs[dg]
	if b == nil {
		return nil, ErrNotKept
	}
	if b.size > limit {
		return nil, fmt.Errorf("blob %s: more than %d bytes", dg, limit)
	}
	r, c, err := b.open()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	raw := make([]byte, b.size)
	if _, err := r.ReadAt(raw, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if dg.Algorithm().FromBytes(raw) != dg {
		return nil, ErrNotKept
	}
	return raw, nil
}
