// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz_test

import (
	"bytes"
	"compress/flate"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	kflate "github.com/klauspost/compress/flate"

	"hako/internal/gz"
)

// corpora returns data with all sorts of matches, lengths and codes.
func corpora() map[string][]byte {
	rnd := rand.New(rand.NewPCG(3, 4))
	noise := make([]byte, 700<<10)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	// Distances of every size, up to the whole window, and of every class of
	// copying.
	var far []byte
	for range 6000 {
		switch rnd.IntN(4) {
		case 0:
			at := rnd.IntN(len(noise) - 100)
			far = append(far, noise[at:at+rnd.IntN(60)]...)
		case 1:
			dist := min(1+rnd.IntN(40), len(far))
			for range min(dist, 1) * rnd.IntN(400) {
				far = append(far, far[len(far)-dist])
			}
		default:
			dist := min(rnd.IntN(32<<10)+1, len(far))
			at := len(far) - dist
			far = append(far, far[at:at+min(rnd.IntN(300), dist)]...)
		}
	}
	return map[string][]byte{
		"empty":  {},
		"one":    {'x'},
		"zeros":  make([]byte, 1<<20),
		"ascii":  logText(900 << 10),
		"noise":  noise,
		"far":    far,
		"period": []byte(strings.Repeat("abcdefghijklmnopqrstuvwxy", 40000)),
		"high":   bytes.Repeat([]byte{0xff, 0xfe, 0x80, 0x7f}, 1000),
	}
}

// compressions returns ways to make a gzip member.
func compressions() map[string]func([]byte) []byte {
	all := map[string]func([]byte) []byte{}
	for level := flate.HuffmanOnly; level <= 9; level++ {
		all[fmt.Sprintf("std%d", level)] = func(p []byte) []byte {
			var out bytes.Buffer
			w, _ := stdgzip.NewWriterLevel(&out, level)
			w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
			w.Write(p)
			w.Close()
			return out.Bytes()
		}
	}
	for _, level := range []int{1, 6, 9} {
		all[fmt.Sprintf("flushed%d", level)] = func(p []byte) []byte {
			var out bytes.Buffer
			w, _ := stdgzip.NewWriterLevel(&out, level)
			for len(p) > 0 {
				n := min(len(p), 10000)
				w.Write(p[:n])
				w.Flush()
				p = p[n:]
			}
			w.Close()
			return out.Bytes()
		}
		all[fmt.Sprintf("gz%d", level)] = func(p []byte) []byte {
			var out bytes.Buffer
			w := gz.NewWriter(&out, gz.WriterOptions{Level: level})
			w.Write(p)
			w.Close()
			return out.Bytes()
		}
	}
	all["members"] = func(p []byte) []byte {
		var out bytes.Buffer
		for ok := true; ok; ok = len(p) > 0 {
			w := stdgzip.NewWriter(&out)
			n := min(len(p), 100000)
			w.Write(p[:n])
			w.Close()
			p = p[n:]
		}
		return out.Bytes()
	}
	return all
}

// read returns everything in r and the error, having used Read of size n or,
// if n is 0, WriteTo.
func read(r io.Reader, opt gz.ReaderOptions, n int) ([]byte, error) {
	z, err := gz.NewReader(r, opt)
	if err != nil {
		return nil, err
	}
	return drain(z, n)
}

func drain(z *gz.Reader, n int) ([]byte, error) {
	var out bytes.Buffer
	if n == 0 {
		_, err := z.WriteTo(&out)
		return out.Bytes(), err
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{&out}, struct{ io.Reader }{z}, make([]byte, n))
	return out.Bytes(), err
}

func TestReader(t *testing.T) {
	t.Parallel()
	for name, data := range corpora() {
		for how, compress := range compressions() {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				packed := compress(data)
				inputs := map[string]io.Reader{
					"whole":   bytes.NewReader(packed),
					"half":    iotest.HalfReader(bytes.NewReader(packed)),
					"onebyte": iotest.OneByteReader(bytes.NewReader(packed)),
					"dataerr": iotest.DataErrReader(bytes.NewReader(packed)),
					"padded":  bytes.NewReader(append(packed[:len(packed):len(packed)], make([]byte, 70000)...)),
				}
				for input, r := range inputs {
					got, err := read(r, gz.ReaderOptions{}, len(input)*1000%5000)
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("%s: %d bytes, want %d, error %v", input, len(got), len(data), err)
					}
				}
			})
		}
	}
}

func TestCheckpoints(t *testing.T) {
	t.Parallel()
	for name, data := range corpora() {
		for how, compress := range compressions() {
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				packed := compress(data)
				for _, every := range []int64{1, 200 << 10} {
					checkCheckpoints(t, packed, data, every)
				}
			})
		}
	}
}

func checkCheckpoints(t *testing.T, packed, data []byte, every int64) {
	t.Helper()
	var cps []gz.Checkpoint
	got, err := read(bytes.NewReader(packed), gz.ReaderOptions{Every: every, Checkpoint: func(cp gz.Checkpoint) error {
		cps = append(cps, cp)
		return nil
	}}, 777)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("got %d bytes and %v, want %d", len(got), err, len(data))
	}
	last := int64(0)
	for i, cp := range cps {
		if cp.Out < last+every {
			t.Errorf("checkpoint at %d follows one at %d", cp.Out, last)
		}
		last = cp.Out
		if i%(1+len(cps)/20) != 0 {
			continue // some of them will do
		}
		if cp.Window != nil && !bytes.HasSuffix(data[:cp.Out], cp.Window) {
			t.Errorf("window of checkpoint at %d is not what precedes", cp.Out)
		}
		z, err := gz.Resume(bytes.NewReader(packed[cp.In:]), cp)
		if err != nil {
			t.Fatal(err)
		}
		got, err := drain(z, 0)
		if err != nil || !bytes.Equal(got, data[cp.Out:]) {
			t.Errorf("resume at %d.%d: got %d bytes and %v, want %d", cp.In, cp.Bits, len(got), err, int64(len(data))-cp.Out)
		}
	}
}

// TestCheckpointKinds tells apart borders that need a window and others.
func TestCheckpointKinds(t *testing.T) {
	t.Parallel()
	data := logText(3 * gz.BlockSize)
	kinds := func(packed []byte) (windows, free, bits int) {
		_, err := read(bytes.NewReader(packed), gz.ReaderOptions{Every: gz.BlockSize / 2, Checkpoint: func(cp gz.Checkpoint) error {
			if cp.Window == nil {
				free++
			} else {
				windows++
			}
			if cp.Bits != 0 {
				bits++
			}
			return nil
		}}, 0)
		if err != nil {
			t.Error(err)
		}
		return windows, free, bits
	}
	var std bytes.Buffer
	w := stdgzip.NewWriter(&std)
	w.Write(data)
	w.Close()
	if windows, free, bits := kinds(std.Bytes()); windows < 3 || free != 0 || bits == 0 {
		t.Errorf("plain gzip: %d with window, %d without, %d inside of a byte", windows, free, bits)
	}
	var out bytes.Buffer
	z := gz.NewWriter(&out, gz.WriterOptions{})
	z.Write(data)
	z.Close()
	var free int
	_, err := read(bytes.NewReader(out.Bytes()), gz.ReaderOptions{Every: gz.BlockSize, Checkpoint: func(cp gz.Checkpoint) error {
		if cp.Out%gz.BlockSize == 0 && cp.Window == nil {
			free++
		}
		return nil
	}}, 0)
	if err != nil || free < 2 {
		t.Errorf("blocks: %d without window, want at least 2; error %v", free, err)
	}
}

func TestCheckpointError(t *testing.T) {
	t.Parallel()
	stop := errors.New("stop")
	var out bytes.Buffer
	w := stdgzip.NewWriter(&out)
	w.Write(logText(1 << 20))
	w.Close()
	_, err := read(&out, gz.ReaderOptions{Every: 1, Checkpoint: func(gz.Checkpoint) error { return stop }}, 0)
	if !errors.Is(err, stop) {
		t.Errorf("got %v, want the callback's error", err)
	}
}

func TestResumeVerifiesLaterMembers(t *testing.T) {
	t.Parallel()
	var first, second bytes.Buffer
	w := stdgzip.NewWriter(&first)
	w.Write([]byte("first "))
	w.Close()
	w = stdgzip.NewWriter(&second)
	w.Write([]byte("second"))
	w.Close()
	both := append(first.Bytes()[10:], second.Bytes()...)
	z, err := gz.Resume(bytes.NewReader(both), gz.Checkpoint{In: 10})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := drain(z, 0); string(got) != "first second" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	both[len(both)-8] ^= 1
	z, err = gz.Resume(bytes.NewReader(both), gz.Checkpoint{In: 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := drain(z, 0); !errors.Is(err, gz.ErrCorrupt) {
		t.Errorf("got %v, want ErrCorrupt", err)
	}
	for _, cp := range []gz.Checkpoint{{Bits: 8}, {In: -1}, {Out: 1, Window: []byte("ab")}} {
		if _, err := gz.Resume(bytes.NewReader(both), cp); err == nil {
			t.Errorf("Resume(%v) gave no error", cp)
		}
	}
}

func TestReaderTruncated(t *testing.T) {
	t.Parallel()
	data := logText(3000)
	for how, compress := range compressions() {
		packed := compress(data)
		for n := range packed {
			got, err := read(bytes.NewReader(packed[:n]), gz.ReaderOptions{}, 0)
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s cut at %d: got %v, want io.ErrUnexpectedEOF", how, n, err)
			}
			if !bytes.HasPrefix(data, got) {
				t.Fatalf("%s cut at %d: output is not a prefix", how, n)
			}
		}
	}
}

func TestReaderCorrupt(t *testing.T) {
	t.Parallel()
	data := logText(3000)
	for how, compress := range compressions() {
		packed := compress(data)
		for i := range packed {
			damaged := bytes.Clone(packed)
			damaged[i] ^= 1 << (i % 8)
			got, err := read(bytes.NewReader(damaged), gz.ReaderOptions{}, 0)
			if err == nil && !bytes.Equal(got, data) {
				t.Fatalf("%s damaged at %d: wrong data without an error", how, i)
			}
			if err != nil && !errors.Is(err, gz.ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s damaged at %d: error %v", how, i, err)
			}
		}
		for i := len(packed) - 8; i < len(packed); i++ {
			damaged := bytes.Clone(packed)
			damaged[i] ^= 0x10
			if _, err := read(bytes.NewReader(damaged), gz.ReaderOptions{}, 0); !errors.Is(err, gz.ErrCorrupt) {
				t.Fatalf("%s damaged at %d: error %v, want ErrCorrupt", how, i, err)
			}
		}
		if _, err := read(bytes.NewReader(append(packed, 0, 0, 1)), gz.ReaderOptions{}, 0); !errors.Is(err, gz.ErrCorrupt) {
			t.Fatalf("%s with data after zeros: error %v, want ErrCorrupt", how, err)
		}
	}
}

func TestReaderSourceError(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	var out bytes.Buffer
	w := stdgzip.NewWriter(&out)
	w.Write(logText(10000))
	w.Close()
	r := io.MultiReader(bytes.NewReader(out.Bytes()[:500]), iotest.ErrReader(broken))
	if _, err := read(r, gz.ReaderOptions{}, 0); !errors.Is(err, broken) {
		t.Errorf("got %v, want the source's error", err)
	}
	r = io.MultiReader(bytes.NewReader(out.Bytes()), iotest.ErrReader(broken))
	if _, err := read(r, gz.ReaderOptions{}, 0); !errors.Is(err, broken) {
		t.Errorf("at the end: got %v, want the source's error", err)
	}
}

// FuzzInflate compares with the standard library on raw deflate data, which no
// checksum hides.
func FuzzInflate(f *testing.F) {
	for _, data := range corpora() {
		data = data[:min(len(data), 2000)]
		for level := flate.HuffmanOnly; level <= 9; level++ {
			var out bytes.Buffer
			w, _ := kflate.NewWriter(&out, level)
			w.Write(data)
			w.Close()
			f.Add(out.Bytes())
		}
	}
	f.Add([]byte{0x05, 0xe0, 0x03, 0x00})
	f.Fuzz(func(t *testing.T, packed []byte) {
		const limit = 4 << 20
		src := bytes.NewReader(packed)
		want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(src), limit))
		used := len(packed) - src.Len()
		// The 8 bytes of the sums, which Resume cannot verify.
		whole := append(packed[:used:used], make([]byte, 8)...)
		if wantErr != nil {
			whole = packed
		}
		z, err := gz.Resume(bytes.NewReader(whole), gz.Checkpoint{})
		if err != nil {
			t.Fatal(err)
		}
		got, gotErr := io.ReadAll(io.LimitReader(z, limit))
		if len(want) == limit {
			wantErr, gotErr = nil, nil
		}
		if (gotErr == nil) != (wantErr == nil) {
			t.Fatalf("error %v, want %v", gotErr, wantErr)
		}
		if gotErr == nil && !bytes.Equal(got, want) {
			t.Fatalf("got %d bytes unlike the %d wanted", len(got), len(want))
		}
		if gotErr != nil && !errors.Is(gotErr, gz.ErrCorrupt) && !errors.Is(gotErr, io.ErrUnexpectedEOF) {
			t.Fatalf("untyped error %v", gotErr)
		}
		if gotErr != nil && !bytes.HasPrefix(want, got) && !bytes.HasPrefix(got, want) {
			t.Fatal("output before the error differs")
		}
	})
}

// FuzzReader looks for panics and undue success.
func FuzzReader(f *testing.F) {
	for _, compress := range compressions() {
		f.Add(compress([]byte("hello hello hello")))
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		got, err := read(io.LimitReader(bytes.NewReader(packed), 1<<16), gz.ReaderOptions{Every: 1, Checkpoint: func(gz.Checkpoint) error { return nil }}, 1000)
		if err != nil {
			return
		}
		// The standard library takes no zeros at the end.
		for n := len(packed); ; n-- {
			r, err := stdgzip.NewReader(bytes.NewReader(packed[:n]))
			if err == nil {
				var want []byte
				if want, err = io.ReadAll(r); err == nil && bytes.Equal(got, want) {
					return
				}
			}
			if n == 0 || packed[n-1] != 0 {
				// Nor does it take long names.
				if len(packed) > 500 {
					return
				}
				t.Fatalf("read without an error what the standard library does not: %v", err)
			}
		}
	})
}
