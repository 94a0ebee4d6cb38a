// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func openDepot(t testing.TB, dir string, opt DepotOptions) *Depot {
	t.Helper()
	d, err := OpenDepot(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// blob returns n bytes that are not the same for two seeds.
func blob(seed uint64, n int) ([]byte, digest.Digest) {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b, digest.FromBytes(b)
}

func put(t testing.TB, d *Depot, b []byte) digest.Digest {
	t.Helper()
	dg := digest.FromBytes(b)
	w := d.Create(dg, int64(len(b)))
	if w == nil {
		t.Fatalf("no place for %d bytes", len(b))
	}
	for _, part := range [][]byte{b[:len(b)/3], b[len(b)/3:]} {
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return dg
}

func TestDepotBlob(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDepot(t, dir, DepotOptions{})
	for _, n := range []int{0, 1, pieceSize - 1, pieceSize, pieceSize + 1, 3*pieceSize + 7} {
		b, _ := blob(uint64(n), n)
		dg := put(t, d, b)
		if !d.Has(dg, int64(n)) || d.Has(dg, int64(n)+1) {
			t.Errorf("%d bytes: Has is wrong", n)
		}
		other := openDepot(t, dir, DepotOptions{ReadOnly: true})
		for _, off := range []int{0, 1, n / 2, n - 1, n} {
			if off < 0 || off > n {
				continue
			}
			r, err := other.Open(dg, int64(n), int64(off))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, b[off:]) {
				t.Errorf("%d bytes from %d: got %d bytes, %v", n, off, len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		if n < 100 {
			if got, err := other.ReadAll(dg, 100); err != nil || !bytes.Equal(got, b) {
				t.Errorf("ReadAll: %v", err)
			}
		}
	}
	if _, dg := blob(99, 10); d.Has(dg, 10) {
		t.Error("has what was never put there")
	}
	if _, err := d.ReadAll("sha256:../../x", 10); err == nil {
		t.Error("read a blob with a digest that is none")
	}
}

// What is broken is never given out, and is removed.
func TestDepotBroken(t *testing.T) {
	t.Parallel()
	const n = 3*pieceSize + 100
	b, dg := blob(1, n)
	for name, spoil := range map[string]func(file, sums string) error{
		"a changed byte": func(file, _ string) error {
			c := bytes.Clone(b)
			c[2*pieceSize+5] ^= 1
			return os.WriteFile(file, c, 0o600)
		},
		"cut off":         func(file, _ string) error { return os.Truncate(file, n-50) },
		"empty":           func(file, _ string) error { return os.Truncate(file, 0) },
		"grown":           func(file, _ string) error { return os.Truncate(file, n+50) },
		"no sums":         func(_, sums string) error { return os.Remove(sums) },
		"other sums":      func(_, sums string) error { return os.WriteFile(sums, make([]byte, sumsSize(n)), 0o600) },
		"sums of another": func(_, sums string) error { return os.Truncate(sums, 32) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			d := openDepot(t, dir, DepotOptions{})
			put(t, d, b)
			file, sums := filepath.Join(dir, DepotDir, blobFile(dg)), filepath.Join(dir, DepotDir, sumsFile(dg))
			if err := spoil(file, sums); err != nil {
				t.Fatal(err)
			}
			r, err := d.Open(dg, n, 0)
			if err == nil {
				var got []byte
				got, err = io.ReadAll(r)
				if !bytes.HasPrefix(b, got) {
					t.Error("wrong bytes got out")
				}
				if cerr := r.Close(); cerr != nil {
					t.Error(cerr)
				}
			}
			if err == nil {
				t.Error("read to the end without an error")
			}
			if d.Has(dg, n) {
				t.Error("it is still there")
			}
			put(t, d, b)
			if !d.Check(dg, n) {
				t.Error("what was put there again is not whole")
			}
		})
	}
}

func TestDepotReadAllBroken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDepot(t, dir, DepotOptions{})
	dg := put(t, d, []byte("manifest"))
	if err := os.WriteFile(filepath.Join(dir, DepotDir, blobFile(dg)), []byte("manifesT"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := d.ReadAll(dg, 100); err == nil {
		t.Errorf("read %q", b)
	}
	if d.Has(dg, 8) {
		t.Error("it is still there")
	}
	d.Put(dg, []byte("manifest"))
	if _, err := d.ReadAll(dg, 3); err == nil || !d.Has(dg, 8) {
		t.Error("what is larger than asked for is an error, and stays")
	}
}

// What was written is stored under no other digest than its own.
func TestDepotWrongBytes(t *testing.T) {
	t.Parallel()
	d := openDepot(t, t.TempDir(), DepotOptions{})
	b, dg := blob(1, 100)
	w := d.Create(dg, 100)
	if _, err := w.Write(b[:99]); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err == nil || d.Has(dg, 100) || d.Has(dg, 99) {
		t.Errorf("Commit: %v; want an error", err)
	}
	if left := d.list("tmp"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if !d.Writable() {
		t.Error("wrong bytes are no reason not to write others")
	}
}

func TestDepotRoom(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	now := time.Now()
	fill := openDepot(t, dir, DepotOptions{Now: func() time.Time { return now }})
	var list []digest.Digest
	for i := range 4 {
		now = now.Add(time.Minute)
		b, _ := blob(uint64(i), 1000)
		list = append(list, put(t, fill, b))
	}
	now = now.Add(time.Minute)
	d := openDepot(t, dir, DepotOptions{Limit: 4200, Now: func() time.Time { return now }})
	// The first is used again: it stays.
	r, err := d.Open(list[0], 1000, 500)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// What another process reads it reads to its end.
	other, err := fill.Open(list[1], 1000, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	b, _ := blob(9, 1000)
	put(t, d, b)
	for i, want := range []bool{true, false, true, true} {
		if got := d.Has(list[i], 1000); got != want {
			t.Errorf("blob %d is there: %v, want %v", i, got, want)
		}
	}
	if n, err := io.Copy(io.Discard, other); n != 1000 || err != nil {
		t.Errorf("read %d bytes, %v", n, err)
	}
	if d.HasRoom(5000) || d.Create(digest.FromString("x"), 5000) != nil {
		t.Error("there is room for more than the limit")
	}
	if !d.Has(list[0], 1000) || !d.Has(list[2], 1000) {
		t.Error("blobs went although that was of no use")
	}
	if _, err := os.Stat(filepath.Join(dir, DepotDir, sumsFile(list[1]))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the sums of a blob that went are left: %v", err)
	}
}

func TestDepotIndex(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDepot(t, dir, DepotOptions{})
	id, other := digest.FromString("layer"), digest.FromString("other")
	write := func(text string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, text); return err }
	}
	if err := d.PutIndex("v1", id, write("the index")); err != nil {
		t.Fatal(err)
	}
	read := func(format string, id digest.Digest) (string, error) {
		rc, err := d.OpenIndex(format, id)
		if err != nil {
			return "", err
		}
		defer rc.Close()
		b, err := io.ReadAll(rc)
		return string(b), err
	}
	if got, err := read("v1", id); got != "the index" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := read("v2", id); err == nil || d.HasIndex("v2", id) || d.HasIndex("v1", other) {
		t.Error("there is an index of another form, or of another layer")
	}
	// A failure of whoever writes it stores nothing.
	broken := errors.New("broken")
	if err := d.PutIndex("v1", other, func(io.Writer) error { return broken }); !errors.Is(err, broken) || d.HasIndex("v1", other) {
		t.Errorf("PutIndex: %v", err)
	}
	p := func(id digest.Digest) string { return filepath.Join(dir, DepotDir, indexFile("v1", id)) }
	raw, err := os.ReadFile(p(id))
	if err != nil {
		t.Fatal(err)
	}
	// One that got under another layer's name is no index of it.
	if err := os.WriteFile(p(other), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := read("v1", other); err == nil || d.HasIndex("v1", other) {
		t.Error("the index of another layer was taken, or is still there")
	}
	for n := range len(raw) {
		bad := bytes.Clone(raw)
		bad[n] ^= 0x40
		if err := os.WriteFile(p(id), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := read("v1", id); err == nil {
			t.Fatalf("byte %d changed: read %q", n, got)
		}
	}
}

// A process that was killed has no lock any more, one that writes does.
func TestDepotSweep(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDepot(t, dir, DepotOptions{})
	b, dg := blob(1, 100)
	w := d.Create(dg, 100)
	scratch, end, err := d.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(dir, DepotDir, "tmp")
	for _, dead := range []string{"dead", "gone/lock", "gone/blobs/x"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(tmp, dead)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tmp, dead), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// None of it is new.
	later := func() time.Time { return time.Now().Add(time.Hour) }
	openDepot(t, dir, DepotOptions{Now: later})
	for _, dead := range []string{"dead", "gone"} {
		if _, err := os.Stat(filepath.Join(tmp, dead)); err == nil {
			t.Errorf("%s is still there", dead)
		}
	}
	if _, err := os.Stat(scratch); err != nil {
		t.Errorf("a directory in use is gone: %v", err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Commit(), end()); err != nil {
		t.Errorf("a file in use is gone: %v", err)
	}
	if entries, err := os.ReadDir(tmp); len(entries) > 0 || err != nil {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// Many write and read the same blobs, and some make room.
func TestDepotTogether(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const n = pieceSize + 1000
	var wg sync.WaitGroup
	for i := range 6 {
		d := openDepot(t, dir, DepotOptions{Limit: 8 * n, Warn: func(err error) { t.Error(err) }})
		wg.Go(func() {
			for k := range 20 {
				b, dg := blob(uint64((i+k)%12), n)
				r, err := d.Open(dg, n, 0)
				if err != nil {
					if w := d.Create(dg, n); w != nil {
						_, _ = w.Write(b)
						_ = w.Commit()
					}
					continue
				}
				got, err := io.ReadAll(r)
				if !bytes.HasPrefix(b, got) || err == nil && len(got) != n {
					t.Errorf("wrong bytes: %d of %d, %v", len(got), n, err)
				}
				_ = r.Close()
			}
		})
	}
	wg.Wait()
}

// A directory that breaks is told once, and is then only read.
func TestDepotWarnsOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var told []string
	d := openDepot(t, dir, DepotOptions{Warn: func(err error) { told = append(told, err.Error()) }})
	dg := put(t, d, []byte("there"))
	if err := os.RemoveAll(filepath.Join(dir, DepotDir, "tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, DepotDir, "tmp"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		d.Put(digest.FromString(fmt.Sprint(i)), []byte(fmt.Sprint(i)))
	}
	if len(told) != 1 || d.Writable() || !d.Has(dg, 5) {
		t.Errorf("told %q, writable: %v", told, d.Writable())
	}
}

func TestDepotMissing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "none")
	if _, err := OpenDepot(dir, DepotOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that there is none", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("it was made unasked")
	}
	// What may not be written to stays as it is.
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d := openDepot(t, dir, DepotOptions{ReadOnly: true})
	d.Put(digest.FromString("x"), []byte("x"))
	if entries, err := os.ReadDir(dir); len(entries) > 0 || err != nil {
		t.Errorf("there are %v, %v", entries, err)
	}
	if d.Has(digest.FromString("x"), 1) || d.HasIndex("v", digest.FromString("x")) {
		t.Error("an empty directory has something")
	}
}
