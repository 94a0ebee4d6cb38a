// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// decompress returns what r holds uncompressed, by its first bytes: gzip,
// bzip2, xz, zstd, or as it is (plain).
func decompress(r io.Reader) (out io.ReadCloser, plain bool, err error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(10)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	switch {
	case bytes.HasPrefix(head, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(b)), false, nil
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 8}):
		z, err := gzip.NewReader(b)
		return z, false, err
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		z, err := xz.NewReader(b)
		if err != nil {
			return nil, false, err
		}
		return io.NopCloser(z), false, nil
	case isZstd(head):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, false, err
		}
		return z.IOReadCloser(), false, nil
	}
	return io.NopCloser(b), true, nil
}

// isZstd reports whether head begins a zstd or a skippable frame, RFC 8878, 3.1.
func isZstd(head []byte) bool {
	if len(head) < 8 {
		return bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd})
	}
	m := binary.LittleEndian.Uint32(head)
	return m == 0xfd2fb528 || m&0xfffffff0 == 0x184d2a50
}
