// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tandem

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"
)

// A model computes the same with crypto/sha256, from all that was written.
type model struct {
	all  []byte
	from int
}

func (m *model) sum() [sha256.Size]byte  { return sha256.Sum256(m.all) }
func (m *model) part() [sha256.Size]byte { return sha256.Sum256(m.all[m.from:]) }

// both returns a Hash of each kind that this processor can do.
func both() map[string]*Hash {
	hs := map[string]*Hash{"alone": newHash(false)}
	if hasInstructions() {
		hs["instructions"] = newHash(true)
	}
	return hs
}

// Parts of all lengths, at all places in a block, in pieces of any size.
func TestParts(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for kind, h := range both() {
		var m model
		write := func(n int) {
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			m.all = append(m.all, p...)
			for len(p) > 0 {
				k := 1 + rnd.IntN(len(p))
				if n, err := h.Write(p[:k]); n != k || err != nil {
					t.Fatal(n, err)
				}
				p = p[k:]
			}
		}
		for i := range 600 {
			before := rnd.IntN(130)
			if i%2 == 0 {
				before = 64 - len(m.all)%64 // as in a tar
			}
			write(before)
			h.Begin()
			m.from = len(m.all)
			write(i % 300)
			if i%3 == 0 && h.Sum() != m.sum() {
				t.Fatalf("%s: part %d: within, the whole has another digest", kind, i)
			}
			if h.End() != m.part() {
				t.Fatalf("%s: part %d of %d bytes, at %d, has another digest", kind, i, i%300, m.from)
			}
			if h.Sum() != m.sum() {
				t.Fatalf("%s: after part %d the whole has another digest", kind, i)
			}
		}
	}
}

// FuzzHash compares with crypto/sha256. Each byte of ops is a write of that many
// bytes; a part begins or ends before it if it is odd.
func FuzzHash(f *testing.F) {
	f.Add([]byte{64, 65, 3, 128, 1}, uint64(1))
	f.Add([]byte{1, 1, 1, 255, 254, 253}, uint64(2))
	f.Fuzz(func(t *testing.T, ops []byte, seed uint64) {
		for kind, h := range both() {
			rnd := rand.New(rand.NewPCG(seed, 0))
			var m model
			in := false
			for _, op := range ops {
				if op%2 == 1 {
					if in && h.End() != m.part() {
						t.Fatalf("%s: a part has another digest", kind)
					}
					if in = !in; in {
						h.Begin()
						m.from = len(m.all)
					}
				}
				p := make([]byte, op)
				for i := range p {
					p[i] = byte(rnd.Uint32())
				}
				_, _ = h.Write(p)
				m.all = append(m.all, p...)
			}
			if h.Sum() != m.sum() {
				t.Fatalf("%s: the whole has another digest", kind)
			}
		}
	})
}

func BenchmarkHash(b *testing.B) {
	p := make([]byte, 64<<10)
	for _, part := range []bool{false, true} {
		for kind, h := range both() {
			b.Run(fmt.Sprintf("part=%t/%s", part, kind), func(b *testing.B) {
				b.SetBytes(int64(len(p)))
				for b.Loop() {
					if part {
						h.Begin()
					}
					_, _ = h.Write(p)
					if part {
						h.End()
					}
				}
			})
		}
	}
}
