// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !purego

package tandem

import "github.com/klauspost/cpuid/v2"

// hasInstructions tells whether the processor has what blocks is made of.
func hasInstructions() bool { return cpuid.CPU.Supports(cpuid.SHA, cpuid.SSE4, cpuid.SSSE3) }

// blocks hashes p, which is made of whole blocks, into both a and b.
//
//go:noescape
func blocks(a, b *state, p []byte)
