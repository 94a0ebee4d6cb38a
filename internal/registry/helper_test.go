// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A front stands before a registry: fault may answer a request itself. It
// records what it was asked.
type front struct {
	*httptest.Server
	mu    sync.Mutex
	log   []string // "METHOD path" of each request
	seen  []*http.Request
	fault func(w http.ResponseWriter, r *http.Request) (done bool)
}

func newFront(t testing.TB, fault func(w http.ResponseWriter, r *http.Request) bool) *front {
	f := &front{fault: fault}
	f.Server = httptest.NewServer(f.handler())
	t.Cleanup(f.Close)
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	return f
}

func (f *front) handler() http.Handler {
	reg := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.log = append(f.log, r.Method+" "+r.URL.Path)
		f.seen = append(f.seen, r.Clone(context.WithoutCancel(r.Context())))
		fault := f.fault
		f.mu.Unlock()
		if fault != nil && fault(w, r) {
			return
		}
		reg.ServeHTTP(w, r)
	})
}

func (f *front) host() string {
	return strings.TrimPrefix(strings.TrimPrefix(f.URL, "http://"), "https://")
}

func (f *front) repo(t testing.TB, path string) name.Repository {
	t.Helper()
	r, err := name.NewRepository(f.host() + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// count returns how many requests begin with prefix.
func (f *front) count(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, l := range f.log {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

func (f *front) set(fault func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// reset breaks the connection.
func reset(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }

// sleeps records how long a client would have waited.
type sleeps struct {
	mu sync.Mutex
	d  []time.Duration
}

func newClient(t testing.TB, opt Options) (*Client, *sleeps) {
	t.Helper()
	c, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	s := &sleeps{}
	c.sleep = func(ctx context.Context, d time.Duration) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.d = append(s.d, d)
		return ctx.Err()
	}
	return c, s
}

func randomBytes(n int) []byte {
	r := rand.NewChaCha8([32]byte{1, 2, 3})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

func descOf(mt string, b []byte) ocispecs.Descriptor {
	return ocispecs.Descriptor{MediaType: mt, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func opener(b []byte) Opener {
	return func(_ context.Context, off int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b[off:])), nil
	}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pushImage pushes an image of one layer for arch and returns its descriptor.
func pushImage(t testing.TB, c *Client, repo name.Repository, tag, arch, variant string) ocispecs.Descriptor {
	t.Helper()
	p := ocispecs.Platform{OS: "linux", Architecture: arch, Variant: variant}
	config := mustJSON(t, ocispecs.Image{Platform: p})
	layer := []byte("layer for " + arch)
	m := mustJSON(t, ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest,
		Config: descOf(ocispecs.MediaTypeImageConfig, config),
		Layers: []ocispecs.Descriptor{descOf(ocispecs.MediaTypeImageLayerGzip, layer)},
	})
	for _, b := range [][]byte{config, layer} {
		if _, err := c.PushBlob(t.Context(), repo, descOf("", b), opener(b), nil); err != nil {
			t.Fatal(err)
		}
	}
	if tag == "" {
		tag = "by-arch-" + arch + variant
	}
	if err := c.PushManifest(t.Context(), repo.Tag(tag), ocispecs.MediaTypeImageManifest, m); err != nil {
		t.Fatal(err)
	}
	d := descOf(ocispecs.MediaTypeImageManifest, m)
	d.Platform = &p
	return d
}

func pushIndex(t testing.TB, c *Client, repo name.Repository, tag string, ds ...ocispecs.Descriptor) ocispecs.Descriptor {
	t.Helper()
	raw := mustJSON(t, ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex, Manifests: ds})
	if err := c.PushManifest(t.Context(), repo.Tag(tag), ocispecs.MediaTypeImageIndex, raw); err != nil {
		t.Fatal(err)
	}
	return descOf(ocispecs.MediaTypeImageIndex, raw)
}
