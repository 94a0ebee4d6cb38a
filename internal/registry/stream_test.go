// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A growing is a blob of which the first half is there, the rest when it is
// finished.
type growing struct {
	blob []byte
	desc ocispecs.Descriptor
	fail error // instead of the rest
	once sync.Once
	all  chan struct{}
	// waiting are readers for whom there is nothing yet.
	waiting atomic.Int32
}

func newGrowing(blob []byte) *growing {
	return &growing{blob: blob, desc: descOf("", blob), all: make(chan struct{})}
}

func (g *growing) finish() { g.once.Do(func() { close(g.all) }) }

func (g *growing) Open(ctx context.Context) io.ReadCloser {
	half := len(g.blob) / 2
	return io.NopCloser(io.MultiReader(bytes.NewReader(g.blob[:half]), &rest{ctx, g, bytes.NewReader(g.blob[half:])}))
}

func (g *growing) Descriptor() (ocispecs.Descriptor, bool) {
	select {
	case <-g.all:
		return g.desc, g.fail == nil
	default:
		return ocispecs.Descriptor{}, false
	}
}

type rest struct {
	ctx context.Context //nolint:containedctx // io.Reader takes none
	g   *growing
	r   io.Reader
}

func (r *rest) Read(p []byte) (int, error) {
	r.g.waiting.Add(1)
	defer r.g.waiting.Add(-1)
	select {
	case <-r.g.all:
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
	if r.g.fail != nil {
		return 0, r.g.fail
	}
	return r.r.Read(p)
}

// start streams a blob and returns what waits for the end.
func (g *growing) start(t *testing.T, c *Client, f *front) (wait func()) {
	t.Helper()
	repo := f.repo(t, "team/app")
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.StreamBlob(t.Context(), repo, g)
	}()
	t.Cleanup(func() { g.finish(); <-done })
	return func() {
		t.Helper()
		select {
		case <-done:
		case <-time.After(30 * time.Second):
			t.Fatal("the stream does not end")
		}
	}
}

// await waits for a request.
func (f *front) await(t *testing.T, prefix string) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); f.count(prefix) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not come", prefix)
		}
	}
}

// An arrival is closed when so many bytes of a PATCH came to a front.
type arrival struct {
	n    int
	once sync.Once
	done chan struct{}
}

func (a *arrival) serve(_ http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodPatch {
		r.Body = &arriving{ReadCloser: r.Body, a: a}
	}
	return false
}

type arriving struct {
	io.ReadCloser
	a *arrival
	n int
}

func (r *arriving) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.n += n; r.n >= r.a.n {
		r.a.once.Do(func() { close(r.a.done) })
	}
	return n, err
}

func (a *arrival) wait(t *testing.T) {
	t.Helper()
	select {
	case <-a.done:
	case <-time.After(30 * time.Second):
		t.Fatal("nothing arrives")
	}
}

// What there is of a blob is sent before there is more, all of it is sent once,
// and PushBlob counts it as sent.
func TestStreamBlob(t *testing.T) {
	blob := randomBytes(3 << 20)
	g := newGrowing(blob)
	// net/http keeps the last 64 KiB back.
	a := &arrival{n: len(blob)/2 - 128<<10, done: make(chan struct{})}
	f := newFront(t, a.serve)
	var sent atomic.Int64
	var told []*track
	c, _ := newClient(t, Options{Sent: func(n int64) { sent.Add(n) }, Transfer: func(x Transfer) Moving {
		told = append(told, &track{Transfer: x})
		return told[len(told)-1]
	}})
	wait := g.start(t, c, f)
	a.wait(t)
	g.finish()
	open := func(context.Context, int64) (io.ReadCloser, error) { return nil, errors.New("it is sent twice") }
	for i, want := range []PushResult{Uploaded, Exists} {
		if got, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), g.desc, open, nil); err != nil || got != want {
			t.Errorf("push %d: %v, %v", i, got, err)
		}
	}
	wait()
	for method, want := range map[string]int{"HEAD": 0, "POST": 1, "PATCH": 1, "PUT": 1, "DELETE": 0} {
		if n := f.count(method + " "); n != want {
			t.Errorf("%d times %s, want %d", n, method, want)
		}
	}
	if sent.Load() != int64(len(blob)) {
		t.Errorf("counted %d bytes, want %d", sent.Load(), len(blob))
	}
	if x := told[0]; x.at != int64(len(blob)) || x.Blob != g.desc.Digest || x.ended == 0 {
		t.Errorf("told of %+v", x)
	}
	other, _ := newClient(t, Options{})
	if got, err := other.PushBlob(t.Context(), f.repo(t, "team/app"), g.desc, nil, nil); err != nil || got != Exists {
		t.Errorf("another client: %v, %v", got, err)
	}
}

// Whatever goes wrong with a stream, the blob is pushed as if there had been
// none, with the errors that there are then.
func TestStreamBlobFalls(t *testing.T) {
	blob := randomBytes(3 << 20)
	answer := func(status int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(status)
			return true
		}
	}
	// inMiddle answers when half of the body is there.
	inMiddle := func(status int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			return answer(status)(w, r)
		}
	}
	tests := []struct {
		name   string
		method string // whose first request goes wrong
		fault  func(w http.ResponseWriter, r *http.Request) bool
		puts   int
		whole  bool // only when the blob is finished
		gone   bool // there is no upload to cancel
	}{
		{name: "no upload", method: "POST", fault: answer(http.StatusServiceUnavailable), puts: 1, gone: true},
		{name: "reset in mid-body", method: "PATCH", whole: true, puts: 1, fault: func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			return reset(w, r)
		}},
		{name: "500", method: "PATCH", fault: answer(http.StatusInternalServerError), puts: 1},
		{name: "500 in mid-body", method: "PATCH", fault: inMiddle(http.StatusInternalServerError), puts: 1},
		{name: "413", method: "PATCH", fault: answer(http.StatusRequestEntityTooLarge), puts: 1},
		{name: "413 in mid-body", method: "PATCH", fault: inMiddle(http.StatusRequestEntityTooLarge), puts: 1},
		{name: "no PATCH", method: "PATCH", fault: answer(http.StatusMethodNotAllowed), puts: 1},
		{name: "no length", method: "PATCH", fault: answer(http.StatusLengthRequired), puts: 1},
		{name: "401 in mid-body", method: "PATCH", fault: inMiddle(http.StatusUnauthorized), puts: 1},
		{name: "403", method: "PATCH", fault: answer(http.StatusForbidden), puts: 1},
		{name: "no Location", method: "PATCH", fault: inMiddle(http.StatusAccepted), puts: 1},
		{name: "answered before all was there", method: "PATCH", puts: 1, fault: func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Location", r.URL.Path)
			return inMiddle(http.StatusAccepted)(w, r)
		}},
		{name: "bytes were lost", method: "PATCH", whole: true, puts: 1, fault: func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Location", r.URL.Path)
			w.Header().Set("Range", "0-1000")
			w.WriteHeader(http.StatusAccepted)
			return true
		}},
		{name: "bytes were lost, and nobody says so", method: "PATCH", whole: true, puts: 2, fault: func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Location", r.URL.Path)
			w.WriteHeader(http.StatusAccepted)
			return true
		}},
		{name: "404 at the end", method: "PUT", whole: true, fault: answer(http.StatusNotFound), puts: 2},
		{name: "500 at the end", method: "PUT", whole: true, fault: answer(http.StatusInternalServerError), puts: 2},
		{name: "stored as something else", method: "PUT", whole: true, puts: 2, fault: func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("0", 64))
			w.WriteHeader(http.StatusCreated)
			return true
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newGrowing(blob)
			var failed atomic.Bool
			f := newFront(t, func(w http.ResponseWriter, r *http.Request) bool {
				return r.Method == tt.method && !failed.Swap(true) && tt.fault(w, r)
			})
			c, _ := newClient(t, Options{})
			wait := g.start(t, c, f)
			if tt.whole {
				f.await(t, "PATCH")
			} else {
				wait()
				for end := time.Now().Add(10 * time.Second); g.waiting.Load() > 0; time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Fatal("somebody still reads")
					}
				}
			}
			g.finish()
			got, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), g.desc, opener(blob), nil)
			if err != nil || got != Uploaded {
				t.Errorf("%v, %v", got, err)
			}
			wait()
			if n := f.count("PUT "); n != tt.puts {
				t.Errorf("%d PUTs, want %d: %v", n, tt.puts, f.log)
			}
			if n := f.count("HEAD "); n != 1 {
				t.Errorf("asked %d times whether it is there, want once", n)
			}
			if n := f.count("DELETE "); (n == 1) == tt.gone {
				t.Errorf("%d uploads canceled", n)
			}
			// It is not tried again.
			next := newGrowing(append([]byte("next"), blob...))
			next.start(t, c, f)()
			if n := f.count("PATCH "); tt.method != "POST" && n != 1 {
				t.Errorf("%d PATCHes", n)
			}
		})
	}
}

// What a registry has although its answer did not come is there, and was sent.
func TestStreamBlobAnswerLost(t *testing.T) {
	blob := randomBytes(1 << 20)
	g := newGrowing(blob)
	f := newFront(t, nil)
	inner := f.Config.Handler
	f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			inner.ServeHTTP(discardAnswer{http.Header{}}, r)
			reset(w, r)
		}
		inner.ServeHTTP(w, r)
	})
	c, _ := newClient(t, Options{})
	g.start(t, c, f)
	f.await(t, "PATCH")
	g.finish()
	if got, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), g.desc, nil, nil); err != nil || got != Uploaded {
		t.Errorf("%v, %v", got, err)
	}
}

type discardAnswer struct{ h http.Header }

func (d discardAnswer) Header() http.Header         { return d.h }
func (d discardAnswer) Write(p []byte) (int, error) { return len(p), nil }
func (d discardAnswer) WriteHeader(int)             {}

// A blob that is not finished, and a build that ends, leave no upload behind.
func TestStreamBlobGivenUp(t *testing.T) {
	for _, canceled := range []bool{false, true} {
		g := newGrowing(randomBytes(1 << 20))
		g.fail = errors.New("the disk is full")
		a := &arrival{n: 1 << 18, done: make(chan struct{})}
		f := newFront(t, a.serve)
		c, _ := newClient(t, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.StreamBlob(ctx, f.repo(t, "team/app"), g)
		}()
		a.wait(t)
		if canceled {
			cancel()
		} else {
			g.finish()
		}
		<-done
		if f.count("DELETE /v2/team/app/blobs/uploads/") != 1 || f.count("PUT") != 0 {
			t.Errorf("canceled %t: asked %v", canceled, f.log)
		}
	}
}

// A registry that does not answer holds up nobody who gives up.
func TestStreamBlobCancelIsShort(t *testing.T) {
	began := make(chan struct{})
	f := newFront(t, func(_ http.ResponseWriter, r *http.Request) bool {
		switch r.Method {
		case http.MethodPatch:
			close(began)
		case http.MethodDelete:
			<-r.Context().Done()
			return true
		}
		return false
	})
	c, _ := newClient(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	var start time.Time
	go func() { <-began; start = time.Now(); cancel() }()
	c.StreamBlob(ctx, f.repo(t, "team/app"), newGrowing(randomBytes(1<<20)))
	if d := time.Since(start); d > 5*cancelTimeout {
		t.Errorf("it took %v", d)
	}
}

// A refusal is reported as it is without a stream.
func TestStreamBlobDenied(t *testing.T) {
	blob := randomBytes(1 << 20)
	var texts [2]string
	for i := range texts {
		f := newFront(t, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead {
				return false
			}
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errors":[{"code":"DENIED","message":"push access is missing"}]}`)
			return true
		})
		c, _ := newClient(t, Options{})
		g := newGrowing(blob)
		if i == 1 {
			g.start(t, c, f)()
		}
		_, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), g.desc, opener(blob), nil)
		if !errors.Is(err, ErrDenied) {
			t.Fatal(err)
		}
		texts[i] = strings.ReplaceAll(err.Error(), f.host(), "HOST")
	}
	if texts[0] != texts[1] {
		t.Errorf("%q, want %q", texts[1], texts[0])
	}
}

// What is finished is PushBlob's.
func TestStreamBlobFinished(t *testing.T) {
	g := newGrowing(randomBytes(1000))
	g.finish()
	f := newFront(t, nil)
	c, _ := newClient(t, Options{})
	c.StreamBlob(t.Context(), f.repo(t, "team/app"), g)
	if n := f.count(""); n != 0 {
		t.Errorf("%d requests: %v", n, f.log)
	}
}

// A token that runs out during one request is renewed for the next.
func TestStreamBlobRenewsToken(t *testing.T) {
	blob := randomBytes(1 << 20)
	s := &tokenService{uses: 2}
	f := newFront(t, s.serve(nil))
	c, _ := newClient(t, Options{Keychain: config(t, f.host(), "ci", "hunter22")})
	g := newGrowing(blob)
	g.start(t, c, f)
	f.await(t, "PATCH")
	g.finish()
	if got, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), g.desc, nil, nil); err != nil || got != Uploaded {
		t.Errorf("%v, %v; asked %v", got, err, f.log)
	}
}
