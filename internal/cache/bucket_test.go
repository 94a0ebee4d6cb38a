// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/layer"
	"hako/internal/source/bucket"
	"hako/test/rig"
)

// A s3World is a bucket whose requests are counted and can be interfered with.
type s3World struct {
	t   *testing.T
	dir string // of the bucket
	url string
	key [2]string

	mu       sync.Mutex
	requests []string
	fault    func(w http.ResponseWriter, r *http.Request) bool
}

func newS3World(t *testing.T) *s3World {
	t.Helper()
	g := rig.StartGateway(t, "bkt")
	w := &s3World{t: t, dir: filepath.Join(g.Dir, "bkt"), key: [2]string{g.Key, g.Secret}}
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		what := r.Method
		if r.Header.Get("X-Amz-Copy-Source") != "" {
			what = "COPY"
		}
		w.requests = append(w.requests, what+" "+strings.TrimPrefix(r.URL.Path, "/bkt/"))
		fault := w.fault
		w.mu.Unlock()
		if fault == nil || !fault(rw, r) {
			g.ServeHTTP(rw, r)
		}
	}))
	t.Cleanup(srv.Close)
	w.url = srv.URL
	return w
}

// count returns how many requests since the last call began so.
func (w *s3World) count(prefix string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	w.requests = nil
	return n
}

func (w *s3World) open(change func(*Bucket)) Backend {
	w.t.Helper()
	inPath := true
	s, err := bucket.OpenStore(w.t.Context(), bucket.StoreOptions{
		Options: bucket.Options{HTTP: &http.Client{Transport: &http.Transport{}}, Getenv: func(string) string { return "" }},
		Bucket:  "bkt", Endpoint: w.url, Region: "us-east-1", PathStyle: &inPath, AccessKeyID: w.key[0], SecretKey: w.key[1], Wait: time.Second, Stall: 2 * time.Second,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	x := Bucket{Objects: s, Name: "s3://bkt/p", Blobs: "p/blobs/", Documents: "p/manifests/"}
	if change != nil {
		change(&x)
	}
	b := InBucket(x)
	w.t.Cleanup(func() { _ = b.Close() })
	return b
}

func testBlob(content string) (ocispecs.Descriptor, func(context.Context, int64) (io.ReadCloser, error)) {
	desc := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromString(content), Size: int64(len(content))}
	return desc, func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content[offset:])), nil
	}
}

func readBlob(t *testing.T, src layer.Source, offset int64) (string, error) {
	t.Helper()
	rc, err := src.Open(t.Context(), offset)
	if err != nil {
		return "", err
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	return string(b), err
}

// addRecords is what a build does to a document.
func addRecords(keys ...string) func(old []byte) ([]byte, []ocispecs.Descriptor, error) {
	return func(old []byte) ([]byte, []ocispecs.Descriptor, error) {
		d := &document{Version: version}
		if old != nil {
			if known, err := parse(old, nil); err == nil {
				d = known
			}
		}
		for _, key := range keys {
			d.add(aRecord(1, key), []docLayer{aLayer(key)}, nil)
		}
		b, err := d.pack()
		return b, d.blobs(), err
	}
}

// TestPlacesKeep has what all places have in common.
func TestPlacesKeep(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T) Backend{
		"bucket": func(t *testing.T) Backend { return newS3World(t).open(nil) },
		"directory": func(t *testing.T) Backend {
			b, err := InDirectory(t.TempDir(), true)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = b.Close() })
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t)
			if _, err := b.Load(t.Context(), "hako-a"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("load what is not there: %v", err)
			}
			desc, from := testBlob("0123456789")
			for range 2 {
				if err := b.Put(t.Context(), desc, from, ""); err != nil {
					t.Fatal(err)
				}
			}
			for offset, want := range map[int64]string{0: "0123456789", 3: "3456789", 10: ""} {
				if got, err := readBlob(t, b.Blob(desc), offset); err != nil || got != want {
					t.Errorf("from %d: %q, %v", offset, got, err)
				}
			}
			missing, _ := testBlob("missing")
			if _, err := readBlob(t, b.Blob(missing), 0); err == nil {
				t.Error("a blob that is not there was read")
			}
			wrong, _ := testBlob("abcdefghij")
			if err := b.Put(t.Context(), wrong, from, ""); err == nil {
				t.Error("other bytes than the descriptor's were taken")
			}
			for _, key := range []string{"a", "b"} {
				if err := b.Update(t.Context(), "hako-a", addRecords(key)); err != nil {
					t.Fatal(err)
				}
			}
			doc, err := b.Load(t.Context(), "hako-a")
			if err != nil {
				t.Fatal(err)
			}
			if d := parsed(t, doc, nil); d.find("a") == nil || d.find("b") == nil {
				t.Errorf("records are %+v", d.Records)
			}
			if _, err := b.Load(t.Context(), "hako-b"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("load another: %v", err)
			}
		})
	}
}

// TestBucketWriters: of those who write a document at the same time nobody goes lost.
func TestBucketWriters(t *testing.T) {
	t.Parallel()
	w := newS3World(t)
	var wg sync.WaitGroup
	const writers = 6
	for n := range writers {
		b := w.open(nil)
		wg.Go(func() {
			for k := range 3 {
				if err := b.Update(t.Context(), "hako-a", addRecords(fmt.Sprint(n, k))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	doc, err := w.open(nil).Load(t.Context(), "hako-a")
	if err != nil {
		t.Fatal(err)
	}
	d := parsed(t, doc, nil)
	for n := range writers {
		for k := range 3 {
			if d.find(fmt.Sprint(n, k)) == nil {
				t.Errorf("what writer %d wrote as number %d is gone", n, k)
			}
		}
	}
}

// TestBucketPut: a blob is sent once, and again only if what is there is not it.
func TestBucketPut(t *testing.T) {
	t.Parallel()
	w := newS3World(t)
	desc, from := testBlob("0123456789")
	file := filepath.Join(w.dir, "p/blobs", desc.Digest.String())
	put := func(change func(*Bucket)) {
		t.Helper()
		if err := w.open(change).Put(t.Context(), desc, from, ""); err != nil {
			t.Fatal(err)
		}
	}
	put(nil)
	if n := w.count("PUT "); n != 1 {
		t.Errorf("%d uploads of a new blob", n)
	}
	put(nil)
	if n := w.count("PUT "); n != 0 {
		t.Errorf("%d uploads of one that is there", n)
	}
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	put(nil)
	if n := w.count("COPY "); n != 0 {
		t.Errorf("one of two hours was touched %d times", n)
	}
	put(func(x *Bucket) { x.Refresh = time.Hour })
	if n := w.count("COPY p/blobs/"); n != 1 {
		t.Errorf("one that is to be refreshed each hour was touched %d times", n)
	}
	if err := os.WriteFile(file, []byte("01234"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(nil)
	if n := w.count("PUT "); n != 1 {
		t.Errorf("%d uploads in the place of half a blob", n)
	}
	if err := os.WriteFile(file, []byte("012345678X"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(func(x *Bucket) { x.Rewrite = true })
	if got, err := readBlob(t, w.open(nil).Blob(desc), 0); got != "0123456789" {
		t.Errorf("a broken blob was not written anew: %q, %v", got, err)
	}
	w.count("")
	// Names of documents share one bucket: each blob is sent once.
	other, more := testBlob("more")
	b := w.open(nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := b.Put(t.Context(), other, more, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := w.count("PUT "); n != 1 {
		t.Errorf("%d uploads of a blob that was put by four at the same time", n)
	}
}

// TestBucketRefresh: what was of use after a long time is made young, blobs too.
func TestBucketRefresh(t *testing.T) {
	t.Parallel()
	w := newS3World(t)
	l := aLayer("one")
	b := w.open(nil)
	desc, from := testBlob("layer")
	l.Digest, l.Size = desc.Digest, desc.Size
	index, fromIndex := testBlob("index")
	l.Index = &docBlob{index.Digest, index.Size}
	if err := errors.Join(b.Put(t.Context(), desc, from, ""), b.Put(t.Context(), index, fromIndex, "")); err != nil {
		t.Fatal(err)
	}
	var warned []string
	for after, touched := range map[time.Duration]int{time.Hour: 0, 25 * time.Hour: 2} {
		place := w.open(nil)
		c := New(t.Context(), Options{Tag: "hako-a", From: []Backend{place}, To: []Backend{place}, Warn: func(s string) { warned = append(warned, s) }})
		r := aRecord(1, "a")
		was := r.Used
		r.Used = was.Add(after)
		w.count("")
		c.renew(c.exports[0], r, was, []docLayer{l})
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if n := w.count("COPY p/blobs/"); n != touched {
			t.Errorf("after %s %d blobs were touched, want %d", after, n, touched)
		}
	}
	if len(warned) > 0 {
		t.Error(warned)
	}
}

// TestBucketBreaks: a blob that breaks off in the middle is read on.
func TestBucketBreaks(t *testing.T) {
	t.Parallel()
	w := newS3World(t)
	content := strings.Repeat("0123456789", 10_000)
	desc, from := testBlob(content)
	b := w.open(nil)
	if err := b.Put(t.Context(), desc, from, ""); err != nil {
		t.Fatal(err)
	}
	breaks := 1
	w.fault = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || breaks == 0 {
			return false
		}
		breaks--
		rw.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = io.WriteString(rw, content[:len(content)/2])
		panic(http.ErrAbortHandler)
	}
	if got, err := readBlob(t, b.Blob(desc), 0); err != nil || got != content {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	breaks = 100
	if _, err := readBlob(t, b.Blob(desc), 0); err == nil {
		t.Error("a blob that always breaks off was read")
	}
}

// TestBucketHostile: a document that is too big or none is as good as none, and is
// replaced; a server that refuses is not.
func TestBucketHostile(t *testing.T) {
	t.Parallel()
	w := newS3World(t)
	b := w.open(func(x *Bucket) { x.Tag = "main" })
	file := filepath.Join(w.dir, "p/manifests/hako-main")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{strings.Repeat("x", 2*maxPacked+1), "no document", ""} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		doc, err := b.Load(t.Context(), "hako-a")
		if err == nil {
			_, err = parse(doc, nil)
		}
		if !errors.Is(err, errDocument) {
			t.Errorf("a document of %d bytes: %v", len(content), err)
		}
		if err := b.Update(t.Context(), "hako-a", addRecords("a")); err != nil {
			t.Error(err)
		}
		if doc, err := b.Load(t.Context(), "hako-a"); err != nil || parsed(t, doc, nil).find("a") == nil {
			t.Errorf("it was not replaced: %v", err)
		}
	}
	w.fault = func(rw http.ResponseWriter, r *http.Request) bool {
		rw.WriteHeader(http.StatusForbidden)
		return true
	}
	if err := b.Update(t.Context(), "hako-a", addRecords("b")); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a server that refuses: %v", err)
	}
}
