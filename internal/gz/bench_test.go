// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"

	"hako/internal/gz"
)

// logText returns n bytes like those of a log, the same every time.
func logText(n int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 2000)
	for i := range words {
		b := make([]byte, 2+rnd.IntN(9))
		for j := range b {
			b[j] = "etaoinshrdlucmfwypvbgkqjxz"[min(rnd.IntN(26), rnd.IntN(26))]
		}
		words[i] = string(b)
	}
	var out bytes.Buffer
	for i := 0; out.Len() < n; i++ {
		fmt.Fprintf(&out, "2026-03-%02dT%02d:%02d:%02d.%03dZ level=info id=%08x msg=\"", i/86400%28+1, i/3600%24, i/60%60, i%60, rnd.IntN(1000), rnd.Uint32())
		for range 3 + rnd.IntN(12) {
			out.WriteString(words[min(rnd.IntN(2000), rnd.IntN(2000), rnd.IntN(2000))])
			out.WriteByte(' ')
		}
		out.WriteString("\"\n")
	}
	return out.Bytes()[:n]
}

// benchData returns text and a program.
func benchData(b *testing.B) map[string][]byte {
	data := map[string][]byte{"text": logText(32 << 20)}
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	if data["binary"], err = os.ReadFile(exe); err != nil {
		b.Fatal(err)
	}
	return data
}

func BenchmarkReader(b *testing.B) {
	for name, data := range benchData(b) {
		var buf bytes.Buffer
		w, _ := stdgzip.NewWriterLevel(&buf, 6)
		w.Write(data)
		w.Close()
		for _, impl := range []struct {
			name string
			open func(io.Reader) (io.Reader, error)
		}{
			{"gz", func(r io.Reader) (io.Reader, error) { return gz.NewReader(r, gz.ReaderOptions{}) }},
			{"std", func(r io.Reader) (io.Reader, error) { return stdgzip.NewReader(r) }},
			{"klauspost", func(r io.Reader) (io.Reader, error) { return kgzip.NewReader(r) }},
		} {
			b.Run(name+"/"+impl.name, func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				b.ReportAllocs()
				for b.Loop() {
					r, err := impl.open(bytes.NewReader(buf.Bytes()))
					if err != nil {
						b.Fatal(err)
					}
					if n, err := io.Copy(io.Discard, r); err != nil || n != int64(len(data)) {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}
