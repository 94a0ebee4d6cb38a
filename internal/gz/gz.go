// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package gz reads and writes gzip so that it can be entered in the middle.
package gz

// A Checkpoint is a place where decompression can start.
type Checkpoint struct {
	In     int64  // offset in the compressed stream of the byte that holds the first bit
	Bits   uint8  // bits of that byte, lowest first, that belong to what precedes (0 to 7)
	Out    int64  // offset in the uncompressed stream
	Window []byte // the up to 32 KiB of output before Out; nil if nothing refers back
}
