// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import "math/rand/v2"

// poolSize is how much of each kind of content is made. Files are pieces of it
// from random offsets: what repeats is too far apart for gzip to see.
const poolSize = 8 << 20

// content is what files of a base are cut from. Text, programs and what is
// already compressed are mixed so that, together, they compress as a Debian
// with build tools does.
type content struct {
	text, program, noise []byte
}

func newContent() *content {
	rnd := rand.New(rand.NewPCG(7, 11))
	c := &content{text: text(rnd), program: program(rnd), noise: make([]byte, poolSize)}
	for i := range c.noise {
		c.noise[i] = byte(rnd.Uint32())
	}
	return c
}

// kind picks what a file holds.
func (c *content) kind(rnd *rand.Rand) []byte {
	switch n := rnd.IntN(100); {
	case n < 46:
		return c.text
	case n < 96:
		return c.program
	default:
		return c.noise
	}
}

// text is words, lines and phrases that come back, as in sources and prose.
func text(rnd *rand.Rand) []byte {
	words := make([][]byte, 6000)
	for i := range words {
		w := make([]byte, 2+rnd.IntN(9))
		for j := range w {
			w[j] = "etaoinshrdlucmfwypvbgkqjxz_"[min(rnd.IntN(27), rnd.IntN(27))]
		}
		words[i] = w
	}
	out := make([]byte, 0, poolSize+256)
	for len(out) < poolSize {
		if len(out) > 16384 && rnd.IntN(100) < 14 {
			from := len(out) - 64 - rnd.IntN(16000)
			out = append(out, out[from:from+12+rnd.IntN(52)]...)
			continue
		}
		out = append(out, words[min(rnd.IntN(6000), rnd.IntN(6000), rnd.IntN(6000), rnd.IntN(6000))]...)
		switch rnd.IntN(12) {
		case 0:
			out = append(out, "\n    "...)
		case 1:
			out = append(out, ';', '\n')
		case 2:
			out = append(out, '(')
		default:
			out = append(out, ' ')
		}
	}
	return out[:poolSize]
}

// program is instructions that differ in a few bytes, runs of zeros and tables,
// as in executables.
func program(rnd *rand.Rand) []byte {
	forms := make([][]byte, 1200)
	for i := range forms {
		f := make([]byte, 2+rnd.IntN(6))
		for j := range f {
			f[j] = byte(min(rnd.IntN(256), rnd.IntN(256)))
		}
		forms[i] = f
	}
	out := make([]byte, 0, poolSize+256)
	for len(out) < poolSize {
		switch n := rnd.IntN(1000); {
		case n < 4:
			out = append(out, make([]byte, 16+rnd.IntN(120))...)
		case n < 90 && len(out) > 32768:
			from := len(out) - 64 - rnd.IntN(30000)
			out = append(out, out[from:from+8+rnd.IntN(48)]...)
		default:
			out = append(out, forms[min(rnd.IntN(1200), rnd.IntN(1200), rnd.IntN(1200))]...)
			if n%3 == 0 {
				out = append(out, byte(rnd.Uint32()), byte(rnd.IntN(16)))
			}
		}
	}
	return out[:poolSize]
}
