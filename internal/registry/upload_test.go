// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// A keeper is a registry for blobs that keeps what broken uploads brought, as
// the distribution-spec describes it. Cuts are after how many bytes the
// requests with a body break off, -1 for not.
type keeper struct {
	mu     sync.Mutex
	cuts   []int
	part   []byte
	blobs  map[string][]byte
	got    []string // "METHOD Content-Range"
	status int      // of questions how far an upload got, 204 if not set
	lie    int      // added to how far it got
	limit  int64    // of a request's body, 0 for none
}

func (k *keeper) serve(w http.ResponseWriter, r *http.Request) bool {
	if !strings.Contains(r.URL.Path, "/blobs/") {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	isUpload := strings.Contains(r.URL.Path, "/uploads/")
	if isUpload && r.Method != http.MethodPost {
		k.got = append(k.got, r.Method+" "+r.Header.Get("Content-Range"))
	}
	w.Header().Set("Location", fmt.Sprintf("/v2/team/app/blobs/uploads/%d", len(k.got)))
	switch {
	case !isUpload && k.blobs[r.URL.Path[len(r.URL.Path)-64:]] != nil:
		w.WriteHeader(http.StatusOK)
	case !isUpload:
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodPost:
		k.part = nil
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodGet:
		w.Header().Set("Range", fmt.Sprintf("0-%d", max(len(k.part)-1+k.lie, 0)))
		w.WriteHeader(max(k.status, http.StatusNoContent))
	case k.limit > 0 && r.ContentLength > k.limit:
		w.Header().Set("Connection", "close") // as nginx: the body is not read
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	case !k.read(r):
		panic(http.ErrAbortHandler)
	case r.Method == http.MethodPatch:
		w.Header().Set("Range", fmt.Sprintf("0-%d", len(k.part)-1))
		w.WriteHeader(http.StatusAccepted)
	default:
		if d := r.URL.Query().Get("digest"); d != digest.FromBytes(k.part).String() {
			w.WriteHeader(http.StatusBadRequest)
			return true
		}
		k.blobs[digest.FromBytes(k.part).Encoded()] = k.part
		w.WriteHeader(http.StatusCreated)
	}
	return true
}

// read takes a body, or the beginning of it.
func (k *keeper) read(r *http.Request) bool {
	cut := -1
	if r.ContentLength > 0 && len(k.cuts) > 0 {
		cut, k.cuts = k.cuts[0], k.cuts[1:]
	}
	var body io.Reader = r.Body
	if cut >= 0 {
		body = io.LimitReader(body, int64(cut))
	}
	b, err := io.ReadAll(body)
	k.part = append(k.part, b...)
	return cut < 0 && err == nil
}

func TestUploadResumes(t *testing.T) {
	const size = 1 << 20
	blob := randomBytes(size)
	for _, tt := range []struct {
		name string
		k    *keeper
		want []string // requests of uploads after the first PUT
		sent int64
	}{
		{"not cut", &keeper{}, nil, size},
		{"cut once", &keeper{cuts: []int{400_000}}, []string{"GET ", "PATCH 400000-1048575", "PUT "}, -1},
		{"cut twice", &keeper{cuts: []int{400_000, 100_000}}, []string{"GET ", "PATCH 400000-1048575", "GET ", "PATCH 500000-1048575", "PUT "}, -1},
		{"cut at the end", &keeper{cuts: []int{size}}, []string{"GET ", "PUT "}, size},
		{"cut at the start", &keeper{cuts: []int{0}}, []string{"GET ", "PUT "}, -1},
		{"the registry forgot it", &keeper{cuts: []int{400_000}, status: http.StatusNotFound}, []string{"GET ", "PUT "}, -1},
		{"the registry is wrong about it", &keeper{cuts: []int{400_000}, lie: 5}, []string{"GET ", "PATCH 400005-1048575", "PUT "}, -1},
		{"the registry has too much", &keeper{cuts: []int{400_000}, lie: size}, []string{"GET ", "PUT "}, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := tt.k
			k.blobs = map[string][]byte{}
			f := newFront(t, k.serve)
			var sent int64
			var mu sync.Mutex
			c, _ := newClient(t, Options{Sent: func(n int64) { mu.Lock(); sent += n; mu.Unlock() }})
			var offsets []int64
			open := func(ctx context.Context, off int64) (io.ReadCloser, error) {
				offsets = append(offsets, off)
				return opener(blob)(ctx, off)
			}
			res, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob), open, nil)
			if err != nil || res != Uploaded {
				t.Fatalf("%v, %v; %v", res, err, k.got)
			}
			if !bytes.Equal(k.blobs[digest.FromBytes(blob).Encoded()], blob) {
				t.Error("another blob arrived")
			}
			if !slices.Equal(k.got[1:], tt.want) {
				t.Errorf("asked %q, want %q; opened at %d", k.got[1:], tt.want, offsets)
			}
			mu.Lock()
			defer mu.Unlock()
			if tt.sent > 0 && sent != tt.sent {
				t.Errorf("sent %d bytes, want %d", sent, tt.sent)
			}
		})
	}
}

// What takes only small requests gets the blob in pieces, and the next blob at
// once.
func TestUploadInPieces(t *testing.T) {
	blob, other := randomBytes(1<<20+100), randomBytes(600<<10)
	for _, tt := range []struct {
		name string
		k    *keeper
		want []string // requests of uploads
		err  string
	}{
		{"1 MiB", &keeper{limit: 1 << 20}, []string{"PUT ", "PATCH 0-1048575", "PATCH 1048576-1048675", "PUT "}, ""},
		{"512 KiB", &keeper{limit: 512 << 10}, []string{"PUT ", "PATCH 0-1048575", "PATCH 0-524287", "PATCH 524288-1048575", "PATCH 1048576-1048675", "PUT "}, ""},
		{"cut", &keeper{limit: 1 << 20, cuts: []int{400_000}}, []string{"PUT ", "PATCH 0-1048575", "GET ", "PATCH 400000-1048675", "PUT "}, ""},
		{"100 KiB", &keeper{limit: 100 << 10}, []string{"PUT ", "PATCH 0-1048575", "PATCH 0-524287"}, "request entity too large (413)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := tt.k
			k.blobs = map[string][]byte{}
			f := newFront(t, k.serve)
			c, _ := newClient(t, Options{})
			_, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob), opener(blob), nil)
			if !slices.Equal(k.got, tt.want) {
				t.Errorf("asked %q, want %q", k.got, tt.want)
			}
			if tt.err != "" {
				e, ok := errors.AsType[*Error](err)
				if !ok || !strings.HasSuffix(e.Error(), tt.err) || !strings.Contains(e.Explain(), "client_max_body_size") {
					t.Errorf("%v, want %s", err, tt.err)
				}
				return
			}
			if err != nil || !bytes.Equal(k.blobs[digest.FromBytes(blob).Encoded()], blob) {
				t.Errorf("another blob arrived: %v", err)
			}
			k.got = nil
			_, err = c.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", other), opener(other), nil)
			if err != nil || !bytes.Equal(k.blobs[digest.FromBytes(other).Encoded()], other) {
				t.Errorf("another second blob arrived: %v", err)
			}
			if tt.name == "512 KiB" && !slices.Equal(k.got, []string{"PATCH 0-524287", "PATCH 524288-614399", "PUT "}) {
				t.Errorf("the second time asked %q", k.got)
			}
		})
	}
}

// What was resumed goes on where it was, also for those who are told.
func TestTransferTold(t *testing.T) {
	blob := randomBytes(1 << 20)
	k := &keeper{blobs: map[string][]byte{}, cuts: []int{400_000}}
	f := newFront(t, k.serve)
	var mu sync.Mutex
	var told []*track
	c, _ := newClient(t, Options{Transfer: func(x Transfer) Moving {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, &track{Transfer: x})
		return told[len(told)-1]
	}})
	if _, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob), opener(blob), nil); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || !told[0].IsPush || told[0].Size != 1<<20 || told[0].at != 1<<20 || told[0].ended == 0 {
		t.Errorf("told of the push %+v", told)
	}
}

// A track is a Moving that remembers.
type track struct {
	Transfer
	mu    sync.Mutex
	at    int64
	ended int
}

func (k *track) At(n int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.at = n
}

func (k *track) End() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended++
}

// How often something is tried again is said for each kind.
func TestRetryBudgets(t *testing.T) {
	blob := randomBytes(1000)
	for _, tt := range []struct {
		name                 string
		opt                  Options
		pushes, pulls, reads int
	}{
		{"default", Options{}, 6, 6, 6},
		{"pushes", Options{PushRetries: 8}, 9, 6, 6},
		{"pulls", Options{PullRetries: 9}, 6, 10, 6},
		{"streams", Options{StreamRetries: 7}, 6, 6, 8},
		{"fewer than by default", Options{PushRetries: 1, PullRetries: 1, StreamRetries: 1}, 6, 6, 6},
	} {
		f := newFront(t, nil)
		direct, _ := newClient(t, Options{})
		if _, err := direct.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob), opener(blob), nil); err != nil {
			t.Fatal(err)
		}
		f.clear()
		f.set(func(w http.ResponseWriter, r *http.Request) bool {
			switch {
			case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/"):
				w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
				if r.Header.Get("Range") == "" {
					_, _ = w.Write(blob[:1])
					_ = http.NewResponseController(w).Flush()
				}
				panic(http.ErrAbortHandler)
			case r.URL.Path != "/v2/":
				w.WriteHeader(http.StatusBadGateway)
				return true
			}
			return false
		})
		c, _ := newClient(t, tt.opt)
		repo := f.repo(t, "team/app")
		if _, err := c.FetchManifest(t.Context(), repo.Tag("x")); err == nil {
			t.Error("no error")
		}
		if err := c.PushManifest(t.Context(), repo.Tag("x"), dockerManifest, []byte("{}")); err == nil {
			t.Error("no error")
		}
		if r, err := c.OpenBlob(t.Context(), repo, descOf("", blob), 0); err == nil {
			if _, err := io.ReadAll(r); err == nil {
				t.Error("no error")
			}
			r.Close()
		}
		got := [3]int{f.count("PUT"), f.count("GET /v2/team/app/manifests"), f.count("GET /v2/team/app/blobs")}
		if got != [3]int{tt.pushes, tt.pulls, tt.reads} {
			t.Errorf("%s: tried %v times, want %d, %d, %d", tt.name, got, tt.pushes, tt.pulls, tt.reads)
		}
	}
}

func TestOldRegistry(t *testing.T) {
	for _, isV1 := range []bool{true, false} {
		f := newFront(t, func(w http.ResponseWriter, r *http.Request) bool {
			if isV1 && r.URL.Path == "/v1/_ping" {
				w.Header().Set("X-Docker-Registry-Version", "0.9.1")
				_, _ = w.Write([]byte("true"))
				return true
			}
			http.NotFound(w, r)
			return true
		})
		c, slept := newClient(t, Options{})
		_, err := c.Resolve(t.Context(), f.repo(t, "team/app").Tag("1"), nil)
		if errors.Is(err, ErrV1) != isV1 || errors.Is(err, errNoRegistry) == isV1 || len(slept.d) > 0 {
			t.Errorf("version 1 %t: %v", isV1, err)
		}
		err = c.CheckPushPermission(t.Context(), f.repo(t, "team/app"))
		if errors.Is(err, ErrV1) != isV1 {
			t.Errorf("version 1 %t: push: %v", isV1, err)
		}
	}
}

func TestIsImmutableTag(t *testing.T) {
	for _, tt := range []struct {
		status        int
		code, message string
		want          bool
	}{
		{400, "MANIFEST_INVALID", "manifest tag 1: The repository has enabled tag immutability", true},                                                        // Artifact Registry
		{400, "TAG_INVALID", "The image tag '1' already exists in the 'app' repository and cannot be overwritten because the repository is immutable.", true}, // ECR
		{400, "TAG_INVALID", "The image tag '1' already exists in the 'app' repository and cannot be overwritten because the tag is immutable.", true},        // ECR, with exceptions
		{400, "ImageTagAlreadyExistsException", "", true},                                                // ECR's own API
		{412, "PRECONDITION", "Failed to process request due to 'app:1' configured as immutable.", true}, // Harbor
		{403, "DENIED", "push access is missing", false},
		{500, "UNKNOWN", "immutable", false},
	} {
		e := &Error{Op: "push", Status: tt.status, Code: tt.code, Message: tt.message}
		if got := IsImmutableTag(fmt.Errorf("push: %w", e)); got != tt.want {
			t.Errorf("%s: %t", tt.message, got)
		}
	}
	if IsImmutableTag(nil) || IsImmutableTag(&Error{Op: "pull", Status: 409}) {
		t.Error("no push is taken for one")
	}
}

func TestPermissionIsNotAnswered(t *testing.T) {
	f := newFront(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return true
		}
		return false
	})
	c, _ := newClient(t, Options{})
	if err := c.CheckPushPermission(t.Context(), f.repo(t, "team/app")); err != nil {
		t.Error(err)
	}
}
