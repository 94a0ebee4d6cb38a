// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

const (
	// maxWindow bounds what a decompressor keeps of what it has written: an
	// archive can ask for gigabytes. It is what zstd allows by default, and
	// twice what xz -9 needs.
	maxWindow = 128 << 20

	magicSize = 10
)

// Decompress returns what r holds uncompressed, by its first bytes: gzip,
// bzip2, xz, zstd, or as it is (plain).
func Decompress(r io.Reader) (out io.ReadCloser, plain bool, err error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(magicSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	if isGzip(head) {
		z, err := gzip.NewReader(b)
		return z, false, err
	}
	out, err = decompressOther(b, head)
	if out == nil && err == nil {
		return io.NopCloser(b), true, nil
	}
	return out, false, err
}

func isGzip(head []byte) bool { return bytes.HasPrefix(head, []byte{0x1f, 0x8b, 8}) }

// decompressOther returns what r holds in the formats besides gzip; nil if its
// first bytes are of none of them.
func decompressOther(r io.Reader, head []byte) (io.ReadCloser, error) {
	switch {
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(r)), nil
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		z, err := xz.NewReader(r, maxWindow)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(z), nil
	case isZstd(head):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return nil, nil
}

// isZstd reports whether head begins a zstd or a skippable frame, RFC 8878, 3.1.
func isZstd(head []byte) bool {
	if len(head) < 8 {
		return bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd})
	}
	m := binary.LittleEndian.Uint32(head)
	return m == 0xfd2fb528 || m&0xfffffff0 == 0x184d2a50
}
