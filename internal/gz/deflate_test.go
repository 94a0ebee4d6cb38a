// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package gz_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"hako/internal/gz"
)

// roundTrip compresses at the default level, which is this package's own, and
// holds what compress/gzip and this package's reader make of it against data.
func roundTrip(t *testing.T, data []byte) []byte {
	t.Helper()
	packed, _ := write(t, data, gz.WriterOptions{}, len(data)+1)
	std, err := stdgzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	own, err := gz.NewReader(bytes.NewReader(packed), gz.ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]io.Reader{"compress/gzip": std, "gz": own} {
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%s reads %d bytes of %d, and %v", name, len(got), len(data), err)
		}
	}
	return packed
}

func TestDeflateShapes(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(8, 9))
	noise := make([]byte, 200000)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	// Frequencies like Fibonacci's numbers make the longest codes.
	var skewed []byte
	for i, a, b := 0, 1, 1; i < 24; i, a, b = i+1, b, a+b {
		skewed = append(skewed, bytes.Repeat([]byte{byte(i * 7)}, a)...)
	}
	rnd.Shuffle(len(skewed), func(i, j int) { skewed[i], skewed[j] = skewed[j], skewed[i] })
	var digits strings.Builder
	for digits.Len() < 900000 {
		fmt.Fprintf(&digits, "%d", rnd.Uint64())
	}
	pairs := make([]byte, 400000) // many short matches: as many sequences as a block holds
	for i := range pairs {
		pairs[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[rnd.IntN(36)]
	}
	for i := 64; i+4 < len(pairs); i += 5 {
		at := i - 1 - rnd.IntN(60)
		copy(pairs[i:i+4], pairs[at:min(at+4, i)])
	}
	var four []byte // a little of many bytes, of which only four at a time come again
	for i := range 150 {
		if at := len(four) - 4 - rnd.IntN(max(len(four)-4, 1)); i%3 > 0 && at >= 0 {
			four = append(four, four[at:at+4]...)
		}
		four = append(four, byte(' '+rnd.IntN(70)), byte(' '+rnd.IntN(70)))
	}
	for name, c := range map[string]struct {
		data []byte
		most int // bytes that it may take
	}{
		"one byte":         {bytes.Repeat([]byte{'a'}, 1<<20), 1200},
		"two bytes":        {bytes.Repeat([]byte("ab"), 300000), 1000},
		"noise":            {noise, len(noise) + 100},
		"noise and text":   {append(bytes.Clone(noise), logText(100000)...), len(noise) + 45000},
		"repeated, near":   {bytes.Repeat(noise[:32768], 4), 32768 + 1500},
		"repeated, beyond": {bytes.Repeat(noise[:32769], 4), 4*32769 + 100},
		"repeated, 65536":  {bytes.Repeat(noise[:65536], 3), 3*65536 + 150},
		"repeated, 65000":  {bytes.Repeat(noise[:65000], 4), 4*65000 + 150},
		"four":             {four, 450},
		"skewed":           {skewed, len(skewed) / 2},
		"digits":           {[]byte(digits.String()), digits.Len() * 45 / 100},
		"short matches":    {pairs, len(pairs)},
		"text":             {logText(300000), 115000},
		"kinds":            {mixed(2 << 20), 2 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if n := len(roundTrip(t, c.data)); n > c.most {
				t.Errorf("%d bytes take %d, want at most %d", len(c.data), n, c.most)
			}
		})
	}
}

func TestDeflateSizes(t *testing.T) {
	t.Parallel()
	text := logText(400000)
	for n := range 300 {
		roundTrip(t, text[:n])
		roundTrip(t, bytes.Repeat([]byte{'x'}, n))
	}
	for _, n := range []int{299990, 299999, 300000, 300001, 300007, 300008, 300009} {
		roundTrip(t, text[:n])
	}
}

// TestDeflateSmall holds the promise that layers are no bigger than BuildKit's.
func TestDeflateSmall(t *testing.T) {
	t.Parallel()
	for _, size := range []int{300, 1000, 3000, 20000, 100000, 4 << 20} {
		data := logText(size)
		var std bytes.Buffer
		w := stdgzip.NewWriter(&std)
		w.Write(data)
		w.Close()
		// An empty block comes at the end of each input: 5 bytes.
		if n := len(roundTrip(t, data)); n > std.Len()+5 {
			t.Errorf("%d bytes take %d, more than the %d of compress/gzip", size, n, std.Len())
		}
	}
}

func FuzzWriter(f *testing.F) {
	f.Add([]byte(""), byte(0))
	f.Add([]byte("aaaaaaaaaaaaaaaaaaaaaaaaa"), byte(3))
	f.Add(logText(5000), byte(40))
	f.Add(mixed(5000), byte(7))
	f.Fuzz(func(t *testing.T, data []byte, times byte) {
		roundTrip(t, bytes.Repeat(data, 1+int(times)%64))
	})
}
