// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// serveBlob answers GETs of a blob with fn, which gets the number of the
// request, from 1.
func serveBlob(t *testing.T, fn func(n int, w http.ResponseWriter, r *http.Request)) (*front, *atomic.Int64) {
	var n atomic.Int64
	f := newFront(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		fn(int(n.Add(1)), w, r)
		return true
	})
	return f, &n
}

// sendRange serves b as a well-behaved server, but at most limit bytes of it
// before the connection breaks.
func sendRange(w http.ResponseWriter, r *http.Request, b []byte, limit int) {
	from := 0
	if h := r.Header.Get("Range"); h != "" {
		_, _ = fmt.Sscanf(h, "bytes=%d-", &from)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(b)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	rest := b[from:]
	if len(rest) <= limit {
		_, _ = w.Write(rest)
		return
	}
	_, _ = w.Write(rest[:limit])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func TestOpenBlob(t *testing.T) {
	blob := randomBytes(300_000)
	const whole = 1 << 30
	tests := []struct {
		name    string
		offset  int64
		serve   func(n int, w http.ResponseWriter, r *http.Request)
		want    string // of the error
		wantIs  error
		atMost  int // requests
		atLeast int
	}{
		{name: "whole", serve: func(_ int, w http.ResponseWriter, r *http.Request) { sendRange(w, r, blob, whole) }, atMost: 1},
		{name: "from the middle", offset: 1234, serve: func(_ int, w http.ResponseWriter, r *http.Request) { sendRange(w, r, blob, whole) }, atMost: 1},
		{name: "at the end", offset: int64(len(blob)), serve: func(_ int, w http.ResponseWriter, r *http.Request) {}, atMost: 0},
		{name: "reset and resumed", serve: func(_ int, w http.ResponseWriter, r *http.Request) { sendRange(w, r, blob, 80_000) }, atLeast: 4, atMost: 5},
		{name: "Range ignored", offset: 100_000, serve: func(_ int, w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			sendRange(w, r, blob, whole)
		}, atMost: 1},
		{name: "resumed where Range is ignored", serve: func(n int, w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			sendRange(w, r, blob, n*120_000)
		}, atMost: 3},
		{name: "always reset", serve: func(_ int, w http.ResponseWriter, r *http.Request) { sendRange(w, r, blob, 10) }, want: "blob sha256:", wantIs: io.ErrUnexpectedEOF, atMost: 7},
		{name: "truncated without a length", serve: func(_ int, w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(blob[:1000])
		}, wantIs: io.ErrUnexpectedEOF, atMost: 7},
		{name: "too long without a length", serve: func(_ int, w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(blob)
			_, _ = w.Write([]byte("x"))
		}, wantIs: ErrWrongContent, atMost: 1},
		{name: "other length", serve: func(_ int, w http.ResponseWriter, r *http.Request) { sendRange(w, r, blob[:9], whole) }, wantIs: ErrWrongContent, atMost: 1},
		{name: "wrong part", offset: 10, serve: func(_ int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 20-%d/%d", len(blob)-1, len(blob)))
			w.WriteHeader(http.StatusPartialContent)
		}, want: "asked for 10", atMost: 1},
		{name: "nonsense part", offset: 10, serve: func(_ int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes ten-20/*")
			w.WriteHeader(http.StatusPartialContent)
		}, want: "invalid Content-Range", atMost: 1},
		{name: "earlier part", offset: 10, serve: func(_ int, w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=5-")
			sendRange(w, r, blob, whole)
		}, atMost: 1},
		{name: "unavailable for a while", serve: func(n int, w http.ResponseWriter, r *http.Request) {
			if n < 4 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			sendRange(w, r, blob, whole)
		}, atMost: 4},
		{name: "absent", serve: func(n int, w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}`))
		}, wantIs: ErrNotFound, want: "not found (404): blob unknown to registry", atMost: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, n := serveBlob(t, tt.serve)
			var received atomic.Int64
			c, _ := newClient(t, Options{Received: func(n int64) { received.Add(n) }})
			var got []byte
			r, err := BlobSource{Client: c, Repo: f.repo(t, "team/app"), Descriptor: descOf("", blob)}.Open(t.Context(), tt.offset)
			if err == nil {
				got, err = io.ReadAll(r)
				r.Close()
			}
			if int(n.Load()) > tt.atMost || int(n.Load()) < tt.atLeast {
				t.Errorf("%d requests", n.Load())
			}
			if tt.want != "" || tt.wantIs != nil {
				if err == nil || !strings.Contains(err.Error(), tt.want) || tt.wantIs != nil && !errors.Is(err, tt.wantIs) {
					t.Fatalf("err = %v, want %q, %v", err, tt.want, tt.wantIs)
				}
				var e *Error
				if !errors.As(err, &e) {
					t.Errorf("no *Error: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, blob[tt.offset:]) {
				t.Errorf("wrong bytes")
			}
			if received.Load() != int64(len(blob))-tt.offset {
				t.Errorf("counted %d", received.Load())
			}
		})
	}
}

func TestOpenBlobStall(t *testing.T) {
	blob := randomBytes(100_000)
	f, n := serveBlob(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			_, _ = w.Write(blob[:100])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done() // never another byte
			return
		}
		sendRange(w, r, blob, 1<<30)
	})
	c, _ := newClient(t, Options{StallTimeout: 50 * time.Millisecond})
	r, err := c.OpenBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, blob) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n.Load() < 2 {
		t.Error("not resumed")
	}
}

func TestRetryAfter(t *testing.T) {
	blob := []byte("blob")
	f, _ := serveBlob(t, func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 1:
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusTooManyRequests)
		case 2:
			w.Header().Set("Retry-After", "99999999")
			w.WriteHeader(http.StatusTooManyRequests)
		default:
			sendRange(w, r, blob, 100)
		}
	})
	c, slept := newClient(t, Options{})
	if _, err := c.FetchBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob)); err != nil {
		t.Fatal(err)
	}
	if len(slept.d) != 2 || slept.d[0] != 7*time.Second || slept.d[1] != maxRetryAfter {
		t.Errorf("slept %v", slept.d)
	}
}

func TestBackoffGrowsAndIsBounded(t *testing.T) {
	for n := range 100 {
		want := min(minBackoff<<min(n, 20), maxBackoff)
		if d := backoff(n); d < want/2 || d > want {
			t.Errorf("backoff(%d) = %v", n, d)
		}
	}
}

func TestRedirect(t *testing.T) {
	blob := randomBytes(1000)
	var atCDN atomic.Pointer[http.Request]
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		atCDN.Store(r)
		if r.URL.Query().Get("sig") != "signed" {
			w.WriteHeader(http.StatusForbidden)
			_, _ = fmt.Fprintf(w, `{"message":"no: http://%s%s?sig=abc"}`, r.Host, r.URL.Path)
			return
		}
		sendRange(w, r, blob, 1<<30)
	}))
	defer cdn.Close()
	target := ""
	f, n := serveBlob(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, strings.ReplaceAll(target, "SELF", "http://"+r.Host+r.URL.Path), http.StatusTemporaryRedirect)
	})
	f.set(withBasic(f.fault, "ci", "hunter22"))
	tests := []struct {
		target, want string
		requests     int64
	}{
		{cdn.URL + "/x?sig=signed", "", 1},
		{cdn.URL + "/x?sig=wrong-signature", "denied (403): no: " + cdn.URL + "/x?[redacted]", 1},
		{"SELF", "more than 10 redirects", 11},
		{"http://169.254.169.254/latest", "refused", 1},
		{"file:///etc/passwd", "refused", 1},
		{"http://[::1", "invalid Location", 1},
	}
	for _, tt := range tests {
		n.Store(0)
		target = tt.target
		c, _ := newClient(t, Options{Keychain: config(t, f.host(), "ci", "hunter22")})
		b, err := c.FetchBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob))
		if tt.want == "" {
			if err != nil || !bytes.Equal(b, blob) {
				t.Errorf("%s: %v", tt.target, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "wrong-sig") {
			t.Errorf("%s: %v", tt.target, err)
		}
		if n.Load() != tt.requests {
			t.Errorf("%s: %d requests", tt.target, n.Load())
		}
	}
	if r := atCDN.Load(); r == nil || r.Header.Get("Authorization") != "" {
		t.Error("credentials were sent to another host")
	}
}

func TestFetchBlobLimit(t *testing.T) {
	c, _ := newClient(t, Options{})
	d := descOf("", []byte("x"))
	d.Size = maxConfig + 1
	repo, _ := name.NewRepository("localhost:1/x/y")
	if _, err := c.FetchBlob(t.Context(), repo, d); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Error(err)
	}
}
