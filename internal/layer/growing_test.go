// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
)

// lot is more than a blob must have before anybody is told that it grows.
const lot = 18 << 20

// large is a file of lot bytes that cannot be compressed.
func large(p string) tree.Change {
	c := file(p, "")
	c.Size = lot
	c.Open = func() (io.ReadCloser, error) {
		return io.NopCloser(io.LimitReader(rand.NewChaCha8([32]byte{1}), lot)), nil
	}
	return c
}

func writeTold(t *testing.T, told func(*layer.Growing), zstd bool, cs ...tree.Change) (*layer.Layer, error) {
	t.Helper()
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return layer.Write(t.Context(), st, seq(cs...), layer.WriteOptions{Created: time.Unix(2000, 0), Workers: 2, Level: 1, Zstd: zstd, Growing: told})
}

// What there is of a blob can be read before the rest is written, and then all.
func TestGrowing(t *testing.T) {
	t.Parallel()
	for _, zstd := range []bool{false, true} {
		have, done := make(chan struct{}), make(chan []byte, 1)
		last := file("z", "last")
		open := last.Open
		last.Open = func() (io.ReadCloser, error) {
			select {
			case <-have:
			case <-time.After(30 * time.Second):
				t.Error("nothing can be read before the layer is finished")
			}
			return open()
		}
		var f *layer.Follower
		l, err := writeTold(t, func(g *layer.Growing) {
			var err error
			if f, err = g.Follow(); err != nil {
				t.Error(err)
				return
			}
			if _, isFinished := f.Descriptor(); isFinished {
				t.Error("finished before the end")
			}
			go func() {
				r := f.Open(t.Context())
				begin := make([]byte, 1<<20)
				_, err := io.ReadFull(r, begin)
				close(have)
				rest, rerr := io.ReadAll(r)
				if err != nil || rerr != nil {
					t.Error(err, rerr)
				}
				done <- append(begin, rest...)
			}()
		}, zstd, large("a"), last)
		if err != nil {
			t.Fatal(err)
		}
		want := blobOf(t, l)
		if got := <-done; !bytes.Equal(got, want) {
			t.Errorf("zstd %t: followed %d bytes, the blob has %d", zstd, len(got), len(want))
		}
		if d, ok := f.Descriptor(); !ok || d.Digest != l.Descriptor().Digest || d.Size != int64(len(want)) {
			t.Errorf("zstd %t: finished %t: %+v", zstd, ok, d)
		}
		f.Close()
	}
}

// Who follows holds nobody up, and may begin when the file has another name.
func TestGrowingLate(t *testing.T) {
	t.Parallel()
	var f *layer.Follower
	l, err := writeTold(t, func(g *layer.Growing) { f, _ = g.Follow() }, false, large("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 2 {
		if got, err := io.ReadAll(f.Open(t.Context())); err != nil || !bytes.Equal(got, blobOf(t, l)) {
			t.Errorf("followed %d bytes, %v", len(got), err)
		}
	}
}

// The end of a layer that fails is an error, and no blob.
func TestGrowingFails(t *testing.T) {
	t.Parallel()
	broken := file("z", "x")
	broken.Open = func() (io.ReadCloser, error) { return nil, errors.New("on fire") }
	done := make(chan error, 1)
	_, err := writeTold(t, func(g *layer.Growing) {
		f, err := g.Follow()
		if err != nil {
			t.Error(err)
			return
		}
		go func() {
			defer f.Close()
			_, err := io.Copy(io.Discard, f.Open(t.Context()))
			if _, isFinished := f.Descriptor(); isFinished {
				t.Error("it counts as finished")
			}
			done <- err
		}()
	}, false, large("a"), broken)
	if err == nil {
		t.Fatal("no error")
	}
	if err := <-done; err == nil {
		t.Error("what was read looks whole")
	}
}

// Who waits for more does not wait longer than wanted.
func TestGrowingCanceled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	last := file("z", "x")
	open := last.Open
	last.Open = func() (io.ReadCloser, error) {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
		return open()
	}
	_, err := writeTold(t, func(g *layer.Growing) {
		f, err := g.Follow()
		if err != nil {
			t.Error(err)
			return
		}
		go func() {
			defer f.Close()
			_, err := io.Copy(io.Discard, f.Open(ctx))
			done <- err
		}()
	}, false, large("a"), last)
	if err != nil {
		t.Error(err)
	}
}

func TestGrowingSmall(t *testing.T) {
	t.Parallel()
	_, err := writeTold(t, func(*layer.Growing) { t.Error("told of a small blob") }, false, file("a", "small"))
	if err != nil {
		t.Error(err)
	}
}

func blobOf(t *testing.T, l *layer.Layer) []byte {
	t.Helper()
	r, err := l.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
