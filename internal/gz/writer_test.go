// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/iotest"
	"testing/synctest"

	kgzip "github.com/klauspost/compress/gzip"

	"hako/internal/gz"
)

// mixed returns data of many kinds, the same every time.
func mixed(n int) []byte {
	rnd := rand.New(rand.NewPCG(5, 6))
	text := logText(n/2 + 1)
	var out []byte
	for len(out) < n {
		switch rnd.IntN(4) {
		case 0:
			for range rnd.IntN(5000) {
				out = append(out, byte(rnd.Uint32()))
			}
		case 1:
			out = append(out, make([]byte, rnd.IntN(20000))...)
		default:
			at := rnd.IntN(len(text))
			out = append(out, text[at:min(len(text), at+rnd.IntN(60000))]...)
		}
	}
	return out[:n]
}

func write(t *testing.T, data []byte, opt gz.WriterOptions, chunk int) ([]byte, []gz.Checkpoint) {
	t.Helper()
	var out bytes.Buffer
	w := gz.NewWriter(&out, opt)
	for rest := data; len(rest) > 0; {
		n := min(chunk, len(rest))
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), w.Checkpoints()
}

func TestWriterDeterministic(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, gz.BlockSize - 1, gz.BlockSize, gz.BlockSize + 1, 3*gz.BlockSize + 12345} {
		data := mixed(size)
		for _, level := range []int{1, gz.DefaultLevel} {
			want, cps := write(t, data, gz.WriterOptions{Level: level, Workers: 1}, size+1)
			r, err := stdgzip.NewReader(bytes.NewReader(want))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("size %d level %d: round trip: %d bytes, %v", size, level, len(got), err)
			}
			if n := (size + gz.BlockSize - 1) / gz.BlockSize; len(cps) != n {
				t.Errorf("size %d: %d checkpoints, want %d", size, len(cps), n)
			}
			for _, cp := range cps {
				z, err := gz.Resume(bytes.NewReader(want[cp.In:]), cp)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := drain(z, 0); err != nil || !bytes.Equal(got, data[cp.Out:]) || cp.Window != nil {
					t.Errorf("size %d: resume at %d: %d bytes, %v", size, cp.In, len(got), err)
				}
			}
			for _, workers := range []int{2, 5} {
				got, _ := write(t, data, gz.WriterOptions{Level: level, Workers: workers}, 70001)
				if !bytes.Equal(got, want) {
					t.Errorf("size %d level %d: %d workers give other bytes", size, level, workers)
				}
			}
		}
	}
}

// TestWriterBlocks makes sure that what a compressor did before leaves no trace
// in the next block.
func TestWriterBlocks(t *testing.T) {
	t.Parallel()
	data := mixed(3 * gz.BlockSize)
	for level := 1; level <= 9; level++ {
		packed, cps := write(t, data, gz.WriterOptions{Level: level}, len(data))
		for i, cp := range cps {
			alone, _ := write(t, data[i*gz.BlockSize:(i+1)*gz.BlockSize], gz.WriterOptions{Level: level}, gz.BlockSize)
			// Without the header and the end, both of 10 bytes.
			if !bytes.HasPrefix(packed[cp.In:], alone[10:len(alone)-10]) {
				t.Errorf("level %d: block %d differs from the one of a new compressor", level, i)
			}
		}
	}
}

// TestWriterGolden notices when an update of the compressor changes the digest
// of every layer, or when architectures differ.
func TestWriterGolden(t *testing.T) {
	t.Parallel()
	data := mixed(2*gz.BlockSize + 100000)
	if got, want := fmt.Sprintf("%x", sha256.Sum256(data)), "e7883f8dde00ee699f028d06fdb4d72606fd261d5c75d3ef702abcd867aada70"; got != want {
		t.Fatalf("input has digest %s, want %s", got, want)
	}
	want := map[int]string{
		1: "b6746c7b39a629c9ad7377b8a23c14162a424814fa588959248d89114d8e0ea8",
		2: "bf299a24e08b06ad217ea55ce3c4ae51a41e1c52edff7adb29540910251315da",
		3: "f054d5567f3c5570f3e140e99e80db1ec8d16cedab6a343f551984410b1c1dee",
		4: "59112d9aca4f16265663e829a1b0fc7445136a760ae0357bae4a968b96075a65",
		5: "0f24d8a5206d01a9a471a8f123591ecc2cdeb4204fad15d7c1d81bcd42293eb1",
		6: "a1fb516791fb50ce6f69ea84d282ffff6b02e5d51291aee25a78b6808179eaab",
		7: "69ce199bc14b0aa4fc168ae991a104f8924c90261d8c578a4d88018775ba5751",
		8: "fdce3c3c30ce455c5fa8669e177b33840e598b10d0743478810a71e15c3181f2",
		9: "a8fe2fb996d31c67f2b2e3924d4520c19819e58edb16f26476f0fc130339e083",
	}
	for level := 1; level <= 9; level++ {
		packed, _ := write(t, data, gz.WriterOptions{Level: level, Workers: 2}, 1<<20)
		if got := fmt.Sprintf("%x", sha256.Sum256(packed)); got != want[level] {
			t.Errorf("%d: %q,", level, got)
		}
	}
}

type failingWriter struct{ left int }

var errFull = errors.New("full")

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriterErrors(t *testing.T) {
	t.Parallel()
	data := mixed(20 * gz.BlockSize)
	for _, left := range []int{0, 5, 100000, 2000000} {
		// The bubble fails if a goroutine outlives Close.
		synctest.Test(t, func(t *testing.T) {
			w := gz.NewWriter(&failingWriter{left}, gz.WriterOptions{Workers: 2, Level: 1})
			w.Write(data)
			for range 2 {
				if err := w.Close(); !errors.Is(err, errFull) {
					t.Errorf("room for %d: Close gave %v", left, err)
				}
			}
			if _, err := w.Write(data); err == nil {
				t.Error("Write after Close gave no error")
			}
		})
	}
	for _, level := range []int{-1, 10} {
		w := gz.NewWriter(io.Discard, gz.WriterOptions{Level: level})
		if _, err := w.Write(data); err == nil || w.Close() == nil {
			t.Errorf("level %d gave no error", level)
		}
	}
}

func TestAhead(t *testing.T) {
	t.Parallel()
	data := logText(300000)
	broken := errors.New("broken")
	synctest.Test(t, func(t *testing.T) {
		for _, size := range []int{1000, 4096, 500000} {
			a := gz.Ahead(iotest.HalfReader(bytes.NewReader(data)), 3, size)
			if err := iotest.TestReader(struct{ io.Reader }{a}, data); err != nil {
				t.Error(err)
			}
			a.Close()
			a = gz.Ahead(io.MultiReader(bytes.NewReader(data), iotest.ErrReader(broken)), 2, size)
			var out bytes.Buffer
			if _, err := io.Copy(&out, a); !errors.Is(err, broken) || !bytes.Equal(out.Bytes(), data) {
				t.Errorf("got %d bytes and %v", out.Len(), err)
			}
			a.Close()
		}
		a := gz.Ahead(bytes.NewReader(data), 2, 1000)
		a.Read(make([]byte, 1500))
		a.Close()
		if _, err := a.Read(make([]byte, 1)); err == nil {
			t.Error("Read after Close gave no error")
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	for name, data := range benchData(b) {
		for _, impl := range []struct {
			name string
			open func(io.Writer) io.WriteCloser
		}{
			{"gz-1", func(w io.Writer) io.WriteCloser { return gz.NewWriter(w, gz.WriterOptions{Workers: 1}) }},
			{"gz-n", func(w io.Writer) io.WriteCloser {
				return gz.NewWriter(w, gz.WriterOptions{Workers: runtime.GOMAXPROCS(0)})
			}},
			{"std", func(w io.Writer) io.WriteCloser { return stdgzip.NewWriter(w) }},
			{"klauspost", func(w io.Writer) io.WriteCloser { return kgzip.NewWriter(w) }},
		} {
			b.Run(name+"/"+impl.name, func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				b.ReportAllocs()
				for b.Loop() {
					var out bytes.Buffer
					w := impl.open(&out)
					w.Write(data)
					if err := w.Close(); err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(float64(out.Len())/float64(len(data)), "ratio")
				}
			})
		}
	}
}
