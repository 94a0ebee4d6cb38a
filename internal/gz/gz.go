// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package gz reads and writes gzip so that it can be entered in the middle.
//
// A gzip stream is normally read from its first byte. Two facts make other
// entries possible. Inflating can begin at the border of any deflate block if
// the 32 KiB of output before that border are known (the idea of zlib's
// examples/zran.c). And a compressor that forgets its history now and then
// leaves borders at which nothing needs to be known. [Reader] reports borders
// of both sorts as [Checkpoint] values while it reads, telling them apart;
// [Resume] starts at one; [Writer] makes streams which have a border of the
// second sort every [BlockSize] bytes.
//
// Both directions are what a build waits for, so both are written for speed:
// the Reader has an inflate of its own, and the Writer compresses its blocks on
// several cores, with the same bytes whatever their number. On one core of an
// AMD EPYC the Reader gives 540 MB/s of logs where compress/gzip and klauspost's
// give 220 to 290; see BenchmarkReader, and [DefaultLevel] for the Writer.
package gz

import "errors"

// ErrCorrupt is wrapped by the errors for input that is not gzip, or whose
// checksum or length do not fit its contents. Input that ends too early gives
// [io.ErrUnexpectedEOF] instead.
var ErrCorrupt = errors.New("corrupt gzip data")

// A Checkpoint is a place where decompression can start.
type Checkpoint struct {
	In     int64  // offset in the compressed stream of the byte that holds the first bit
	Bits   uint8  // bits of that byte, lowest first, that belong to what precedes (0 to 7)
	Out    int64  // offset in the uncompressed stream
	Window []byte // the up to 32 KiB of output before Out; nil if nothing refers back
}
