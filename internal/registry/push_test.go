// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestPushBlob(t *testing.T) {
	f := newFront(t, nil)
	repo := f.repo(t, "team/app")
	for _, size := range []int{0, 1, 1 << 20} {
		blob := randomBytes(size)
		var sent atomic.Int64
		c, _ := newClient(t, Options{Sent: func(n int64) { sent.Add(n) }})
		for i, want := range []PushResult{Uploaded, Exists} {
			got, err := c.PushBlob(t.Context(), repo, descOf("", blob), opener(blob), nil)
			if err != nil || got != want {
				t.Errorf("size %d, push %d: %v, %v", size, i, got, err)
			}
		}
		if sent.Load() != int64(size) {
			t.Errorf("size %d: counted %d", size, sent.Load())
		}
		other, _ := newClient(t, Options{})
		if got, err := other.PushBlob(t.Context(), repo, descOf("", blob), nil, nil); err != nil || got != Exists {
			t.Errorf("another client: %v, %v", got, err)
		}
	}
}

func TestPushBlobShared(t *testing.T) {
	f := newFront(t, nil)
	c, _ := newClient(t, Options{})
	blob := randomBytes(1 << 20)
	var uploaded atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			res, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob), opener(blob), nil)
			if err != nil {
				t.Error(err)
			}
			if res == Uploaded {
				uploaded.Add(1)
			}
		})
	}
	wg.Wait()
	if uploaded.Load() != 1 || f.count("PUT") != 1 {
		t.Errorf("uploaded %d times, %d PUTs", uploaded.Load(), f.count("PUT"))
	}
}

func TestPushBlobFaults(t *testing.T) {
	blob := randomBytes(3 << 20)
	desc := descOf("", blob)
	tests := []struct {
		name   string
		fault  func(n int, w http.ResponseWriter, r *http.Request) bool // for PUTs
		open   Opener
		want   string
		wantIs error
		puts   int
	}{
		{name: "reset in mid-body", puts: 3, fault: func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 2 {
				return false
			}
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			return reset(w, r)
		}},
		{name: "unavailable", puts: 2, fault: func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n > 1 {
				return false
			}
			w.WriteHeader(http.StatusBadGateway)
			return true
		}},
		{name: "unavailable for good", puts: 6, want: "service unavailable (503)", fault: func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}},
		{name: "refused early", puts: 1, want: "blob sha256:", wantIs: ErrDenied, fault: func(n int, w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusForbidden)
			return true
		}},
		{name: "stored as something else", puts: 1, wantIs: ErrWrongContent, fault: func(n int, w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
			w.WriteHeader(http.StatusCreated)
			return true
		}},
		{name: "source too short", puts: -1, wantIs: ErrWrongContent, open: opener(blob[:len(blob)-1])},
		{name: "source too long", puts: -1, wantIs: ErrWrongContent, open: opener(append(blob[:len(blob):len(blob)], 1))},
		{name: "source with other bytes", puts: 1, want: "400", open: opener(append([]byte{^blob[0]}, blob[1:]...))},
		{name: "source cannot be opened", puts: 0, want: "open: no such thing", open: func(context.Context, int64) (io.ReadCloser, error) {
			return nil, errors.New("no such thing")
		}},
		{name: "source fails", puts: -1, want: "disk on fire", open: func(context.Context, int64) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(strings.NewReader("abc"), failingReader{})), nil
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			f := newFront(t, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPut {
					return false
				}
				n++
				return tt.fault != nil && tt.fault(n, w, r)
			})
			c, slept := newClient(t, Options{})
			open := tt.open
			if open == nil {
				open = opener(blob)
			}
			res, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), desc, open, nil)
			if puts := f.count("PUT"); tt.puts >= 0 && puts != tt.puts {
				t.Errorf("%d PUTs, want %d", puts, tt.puts)
			}
			if tt.want == "" && tt.wantIs == nil {
				if err != nil || res != Uploaded {
					t.Errorf("%v, %v", res, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || tt.wantIs != nil && !errors.Is(err, tt.wantIs) {
				t.Errorf("err = %v, want %q, %v", err, tt.want, tt.wantIs)
			}
			if tt.puts < 2 && len(slept.d) > 0 {
				t.Error("retried what cannot change")
			}
		})
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("disk on fire") }

func TestMount(t *testing.T) {
	blob := []byte("blob")
	var mounts []string
	s := &tokenService{uses: 1000, deny: "team/secret"}
	f := newFront(t, s.serve(func(w http.ResponseWriter, r *http.Request) bool {
		from := r.URL.Query().Get("from")
		if r.Method != http.MethodPost || from == "" {
			return false
		}
		mounts = append(mounts, from)
		if from != "team/base" {
			return false // an upload instead
		}
		w.Header().Set("Docker-Content-Digest", r.URL.Query().Get("mount"))
		w.WriteHeader(http.StatusCreated)
		return true
	}))
	elsewhere, _ := name.NewRepository("elsewhere.example.com/team/base")
	tests := []struct {
		name   string
		from   []name.Repository
		want   PushResult
		mounts []string
	}{
		{"mounted", []name.Repository{f.repo(t, "team/base")}, Mounted, []string{"team/base"}},
		{"second", []name.Repository{f.repo(t, "team/other"), f.repo(t, "team/base")}, Mounted, []string{"team/other", "team/base"}},
		{"not there", []name.Repository{f.repo(t, "team/other")}, Uploaded, []string{"team/other"}},
		{"no right to read it", []name.Repository{f.repo(t, "team/secret")}, Uploaded, nil},
		{"another registry, itself", []name.Repository{elsewhere, f.repo(t, "team/app")}, Uploaded, nil},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mounts = nil
			b := append(blob, byte(i))
			c, _ := newClient(t, Options{Keychain: config(t, f.host(), "ci", "hunter22")})
			res, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", b), opener(b), tt.from)
			if err != nil || res != tt.want {
				t.Errorf("%v, %v", res, err)
			}
			if diff := cmp.Diff(tt.mounts, mounts); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A registry behind a proxy names itself wrongly, or elsewhere.
func TestUploadLocation(t *testing.T) {
	blob := []byte("blob")
	evil := newFront(t, nil)
	target := ""
	f := newFront(t, withBasic(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		w.Header().Set("Location", strings.ReplaceAll(target, "HOST", r.Host))
		w.WriteHeader(http.StatusAccepted)
		return true
	}, "ci", "hunter22"))
	for _, tt := range []struct{ target, want string }{
		{"/v2/team/app/blobs/uploads/1?state=a%20b", ""},
		{"http://HOST/v2/team/app/blobs/uploads/2", ""},
		{evil.URL + "/v2/team/app/blobs/uploads/3", ""},
		{"", "no Location"},
		{"gopher://x/", "refused"},
	} {
		target = tt.target
		c, _ := newClient(t, Options{Keychain: config(t, f.host(), "ci", "hunter22")})
		blob = append(blob, 'x')
		_, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob), opener(blob), nil)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v", tt.target, err)
		}
	}
	for _, r := range evil.seen {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials were sent to another host")
		}
	}
	if len(evil.seen) == 0 {
		t.Error("upload to another host was not tried")
	}
	for _, r := range f.seen {
		if r.Method == http.MethodPut && r.URL.Path == "/v2/team/app/blobs/uploads/1" && r.URL.Query().Get("state") != "a b" {
			t.Errorf("query of the Location lost: %s", r.URL)
		}
	}
}

func TestPushManifest(t *testing.T) {
	raw := []byte(`{"schemaVersion":2}`)
	f := newFront(t, nil)
	repo := f.repo(t, "team/app")
	c, _ := newClient(t, Options{})
	mt := ocispecs.MediaTypeImageManifest
	if err := c.PushManifest(t.Context(), repo.Tag("v1"), mt, raw); err != nil {
		t.Fatal(err)
	}
	if err := c.PushManifest(t.Context(), repo.Digest(descOf("", raw).Digest.String()), mt, raw); err != nil {
		t.Error(err)
	}
	if err := c.PushManifest(t.Context(), repo.Digest(descOf("", []byte("x")).Digest.String()), mt, raw); !errors.Is(err, ErrWrongContent) {
		t.Errorf("other digest: %v", err)
	}
	put := func(status int, body, dgst string) {
		f.set(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut {
				return false
			}
			if dgst != "" {
				w.Header().Set("Docker-Content-Digest", dgst)
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
			return true
		})
	}
	put(http.StatusCreated, "", "sha256:"+strings.Repeat("0", 64))
	if err := c.PushManifest(t.Context(), repo.Tag("v2"), mt, raw); !errors.Is(err, ErrWrongContent) {
		t.Errorf("stored as something else: %v", err)
	}
	put(http.StatusForbidden, `{"errors":[{"code":"DENIED","message":"push access is missing"}]}`, "")
	want := "push " + f.host() + "/team/app:v2: denied (403): push access is missing"
	if err := c.PushManifest(t.Context(), repo.Tag("v2"), mt, raw); err == nil || err.Error() != want || !errors.Is(err, ErrDenied) {
		t.Errorf("denied: %v", err)
	}
}

func TestPushManifestImmutableTag(t *testing.T) {
	raw, other := manifestBytes("a"), manifestBytes("b")
	f := newFront(t, nil)
	repo := f.repo(t, "team/app")
	c, _ := newClient(t, Options{})
	if err := c.PushManifest(t.Context(), repo.Tag("v1"), ocispecs.MediaTypeImageManifest, raw); err != nil {
		t.Fatal(err)
	}
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"errors":[{"code":"TAG_INVALID","message":"The image tag 'v1' already exists and cannot be overwritten because the repository is immutable."}]}`)
		return true
	})
	if err := c.PushManifest(t.Context(), repo.Tag("v1"), ocispecs.MediaTypeImageManifest, raw); err != nil {
		t.Errorf("same content: %v", err)
	}
	if err := c.PushManifest(t.Context(), repo.Tag("v1"), ocispecs.MediaTypeImageManifest, other); err == nil {
		t.Error("other content: no error")
	}
}

func manifestBytes(note string) []byte {
	return []byte(`{"schemaVersion":2,"mediaType":"` + ocispecs.MediaTypeImageManifest + `","config":{},"layers":[],"annotations":{"note":"` + note + `"}}`)
}

func TestLostBlobIsPushedAgain(t *testing.T) {
	f := newFront(t, nil)
	c, _ := newClient(t, Options{})
	repo := f.repo(t, "team/app")
	blob := []byte("blob")
	if _, err := c.PushBlob(t.Context(), repo, descOf("", blob), opener(blob), nil); err != nil {
		t.Fatal(err)
	}
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown"}]}`)
		return true
	})
	if err := c.PushManifest(t.Context(), repo.Tag("x"), "", manifestBytes("")); err == nil {
		t.Fatal("no error")
	}
	f.Config.Handler = newFront(t, nil).handler() // a registry that has lost everything
	if res, err := c.PushBlob(t.Context(), repo, descOf("", blob), opener(blob), nil); err != nil || res != Uploaded {
		t.Errorf("%v, %v", res, err)
	}
}

func TestCheckPushPermissionLeavesNothing(t *testing.T) {
	f := newFront(t, nil)
	c, _ := newClient(t, Options{})
	if err := c.CheckPushPermission(t.Context(), f.repo(t, "team/app")); err != nil {
		t.Fatal(err)
	}
	if f.count("DELETE /v2/team/app/blobs/uploads/") != 1 {
		t.Errorf("asked %v", f.log)
	}
}

func TestCancel(t *testing.T) {
	started := make(chan struct{})
	var once sync.Once
	f := newFront(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			once.Do(func() { close(started) })
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			return true
		}
		return false
	})
	c, _ := newClient(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	blob := randomBytes(1 << 20)
	_, err := c.PushBlob(ctx, f.repo(t, "team/app"), descOf("", blob), opener(blob), nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
}

func TestRedactor(t *testing.T) {
	long := strings.Repeat("longtoken", 1000)
	r := redactor{secrets: []string{"hunter22", long}}
	tests := []struct{ in, want string }{
		{"got " + long + ", what is that?", "got [redacted], what is that?"},
		{"see https://s3.example.com/x?X-Amz-Signature=abc&y=z for more", "see https://s3.example.com/x?[redacted] for more"},
		{"https://user:pass@example.com/x", "https://[redacted]@example.com/x"},
		{"the password hunter22 is wrong\x1b[31m\n\tsorry", "the password [redacted] is wrong[31m  sorry"},
		{strings.Repeat("é", 5000), strings.Repeat("é", 300) + "…"},
	}
	for _, tt := range tests {
		if got := r.text(tt.in); got != tt.want {
			t.Errorf("text(%q) = %q, want %q", clip(tt.in), got, tt.want)
		}
	}
}

// net/http closes a body that it no longer wants while it is being read; that
// is not the blob's fault, and the request may be sent again.
func TestSizedReaderClosed(t *testing.T) {
	for _, closed := range []bool{false, true} {
		var blamed error
		s := &sizedReader{r: io.NopCloser(failingReader{}), left: 10, sent: func(int64) {}, fail: func(err error) { blamed = err }}
		if closed {
			s.Close()
		}
		if _, err := s.Read(make([]byte, 4)); err == nil || (blamed == nil) != closed {
			t.Errorf("closed %t: %v, blamed %v", closed, err, blamed)
		}
	}
}
