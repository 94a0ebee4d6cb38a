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
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// notes collects what a client tells.
type notes struct {
	mu    sync.Mutex
	lines []string
}

func (n *notes) add(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, text)
}

// answering answers everything but the ping with a status.
func answering(status int) faultFunc {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" {
			return false
		}
		w.WriteHeader(status)
		return true
	}
}

// A mirrored is a registry with an image, and mirrors of it.
type mirrored struct {
	*front
	mirrors []*front
}

func newMirrored(t *testing.T, faults ...faultFunc) *mirrored {
	m := &mirrored{front: newFront(t, nil)}
	direct, _ := newClient(t, Options{})
	pushImage(t, direct, m.repo(t, "team/app"), "1", "amd64", "")
	for _, fault := range faults {
		f := newFront(t, nil)
		pushImage(t, direct, f.repo(t, "hub/team/app"), "1", "amd64", "")
		f.set(fault)
		f.clear()
		m.mirrors = append(m.mirrors, f)
	}
	m.clear()
	return m
}

func (f *front) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log, f.seen = nil, nil
}

// options has all mirrors in their order.
func (m *mirrored) options(n *notes) Options {
	var p Places
	for _, f := range m.mirrors {
		p.Mirrors = append(p.Mirrors, Mirror{Host: f.host(), Prefix: "hub"})
	}
	return Options{Mirrors: map[string]Places{m.host(): p}, Note: n.add}
}

// pull resolves the image and reads its layer, and returns that.
func (m *mirrored) pull(t *testing.T, c *Client) ([]byte, error) {
	t.Helper()
	img, err := c.Resolve(t.Context(), m.repo(t, "team/app").Tag("1"), nil)
	if err != nil {
		return nil, err
	}
	if img.Repo.Name() != m.repo(t, "team/app").Name() {
		t.Errorf("the image is now called %s", img.Repo.Name())
	}
	r, err := BlobSource{Client: c, Repo: img.Repo, Descriptor: img.Manifest.Layers[0], Mirrored: true}.Open(t.Context(), 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestMirrors(t *testing.T) {
	absent, denied, broken := answering(http.StatusNotFound), answering(http.StatusUnauthorized), answering(http.StatusServiceUnavailable)
	for _, tt := range []struct {
		name   string
		faults []faultFunc
		want   int // who serves: an index, or -1 for the registry itself
		told   []string
	}{
		{"the first", []faultFunc{nil, nil}, 0, []string{"comes from"}},
		{"not there", []faultFunc{absent, nil}, 1, []string{"0: not found (404); asking 1", "comes from 1"}},
		{"not allowed", []faultFunc{denied}, -1, []string{"0: denied (401); asking self"}},
		{"not well", []faultFunc{broken, absent}, -1, []string{"0: service unavailable (503); asking 1", "1: not found (404); asking self"}},
		{"no answer", []faultFunc{reset}, -1, []string{"0: EOF; asking self"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, n := newMirrored(t, tt.faults...), &notes{}
			c, slept := newClient(t, m.options(n))
			b, err := m.pull(t, c)
			if err != nil || string(b) != "layer for amd64" {
				t.Fatalf("%q, %v", b, err)
			}
			served := m.front
			if tt.want >= 0 {
				served = m.mirrors[tt.want]
			}
			if served.count("GET /v2/") < 4 { // ping, manifest, config, layer
				t.Errorf("asked %d things", served.count("GET /v2/"))
			}
			if tt.want >= 0 && len(m.log) > 0 {
				t.Errorf("the registry itself was asked: %v", m.log)
			}
			if len(slept.d) > 0 {
				t.Error("a mirror was tried again where there was another place")
			}
			text := strings.ReplaceAll(strings.Join(n.lines, "\n"), m.host(), "self")
			for i, f := range m.mirrors {
				text = strings.ReplaceAll(text, f.host()+"/hub", fmt.Sprint(i))
			}
			for _, line := range tt.told {
				if !strings.Contains(text, line) {
					t.Errorf("not told: %q; but\n%s", line, text)
				}
			}
			if len(n.lines) > 3 {
				t.Errorf("told too often:\n%s", text)
			}
		})
	}
}

// A mirror that is not reached is asked once, not for every layer.
func TestMirrorDown(t *testing.T) {
	m, n := newMirrored(t, reset), &notes{}
	c, _ := newClient(t, m.options(n))
	if _, err := m.pull(t, c); err != nil {
		t.Fatal(err)
	}
	if got := m.mirrors[0].count(""); got != 1 {
		t.Errorf("asked %d times", got)
	}
	if len(n.lines) != 1 {
		t.Errorf("told %q", n.lines)
	}
}

// Without fallback the last mirror's error counts, and it is tried again as a
// registry is.
func TestMirrorNoFallback(t *testing.T) {
	m, n := newMirrored(t, answering(http.StatusNotFound), answering(http.StatusServiceUnavailable)), &notes{}
	opt := m.options(n)
	p := opt.Mirrors[m.host()]
	p.NoFallback = true
	opt.Mirrors[m.host()] = p
	c, slept := newClient(t, opt)
	_, err := m.pull(t, c)
	want := fmt.Sprintf("pull %s/team/app:1: manifest: %s: service unavailable (503)", m.host(), m.mirrors[1].host())
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	var e *Error
	if !errors.As(err, &e) || e.Registry != m.mirrors[1].host() || e.Repository != "hub/team/app" {
		t.Errorf("%+v", e)
	}
	if len(slept.d) != 5 || len(m.log) > 0 {
		t.Errorf("slept %v; the registry itself was asked: %v", slept.d, m.log)
	}
	m.mirrors[1].set(reset)
	if _, err := m.pull(t, c); err == nil {
		t.Error("pulled from nowhere")
	}
}

// What is pushed, or read because it was pushed, is the registry's own.
func TestMirrorsAreForImages(t *testing.T) {
	m, n := newMirrored(t, nil), &notes{}
	c, _ := newClient(t, m.options(n))
	repo := m.repo(t, "team/app")
	pushImage(t, c, repo, "2", "amd64", "")
	man, err := c.FetchManifest(t.Context(), repo.Tag("2"))
	if err != nil {
		t.Fatal(err)
	}
	d := descOf("", []byte("layer for amd64"))
	if _, err := c.FetchBlob(t.Context(), repo, d); err != nil || len(man.Raw) == 0 {
		t.Error(err)
	}
	if err := c.CheckPushPermission(t.Context(), repo); err != nil {
		t.Error(err)
	}
	if len(m.mirrors[0].log) > 0 || len(n.lines) > 0 {
		t.Errorf("the mirror was asked: %v, %q", m.mirrors[0].log, n.lines)
	}
}

// A layer that a mirror breaks off comes to its end from elsewhere.
func TestMirrorBreaksOff(t *testing.T) {
	blob := randomBytes(3 << 20)
	m, n := newMirrored(t, nil), &notes{}
	direct, _ := newClient(t, Options{})
	d := descOf("", blob)
	for _, repo := range []name.Repository{m.repo(t, "team/app"), m.mirrors[0].repo(t, "hub/team/app")} {
		if _, err := direct.PushBlob(t.Context(), repo, d, opener(blob), nil); err != nil {
			t.Fatal(err)
		}
	}
	m.clear()
	served := 0
	m.mirrors[0].set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		if served++; served > 1 {
			return reset(w, r)
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		_, _ = w.Write(blob[:1<<20])
		return reset(w, r)
	})
	c, _ := newClient(t, m.options(n))
	r, err := BlobSource{Client: c, Repo: m.repo(t, "team/app"), Descriptor: d, Mirrored: true}.Open(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, blob) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if from := m.seen[len(m.seen)-1].Header.Get("Range"); from != fmt.Sprintf("bytes=%d-%d", 1<<20, len(blob)-1) {
		t.Errorf("went on with the range %q", from)
	}
}

// byHost knows a password for each of some hosts.
type byHost map[string]string

func (k byHost) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if p := k[r.RegistryStr()]; p != "" {
		return &authn.Basic{Username: "u", Password: p}, nil
	}
	return authn.Anonymous, nil
}

// A mirror gets its own password and headers, and nobody else gets them.
func TestMirrorSecrets(t *testing.T) {
	m, n := newMirrored(t, answering(http.StatusNotFound)), &notes{}
	basic := func(want string, inner faultFunc) faultFunc {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if _, p, _ := r.BasicAuth(); p != want {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			return inner != nil && inner(w, r)
		}
	}
	m.set(basic("own-password", nil))
	m.mirrors[0].set(basic("mirror-password", answering(http.StatusNotFound)))
	opt := m.options(n)
	opt.Mirrors[m.host()].Mirrors[0].Header = http.Header{"X-Key": {"mirror-key"}}
	opt.Keychain = byHost{m.host(): "own-password", m.mirrors[0].host(): "mirror-password"}
	c, _ := newClient(t, opt)
	if _, err := m.pull(t, c); err != nil {
		t.Fatal(err)
	}
	for _, r := range m.seen {
		if _, p, _ := r.BasicAuth(); p == "mirror-password" || r.Header.Get("X-Key") != "" {
			t.Errorf("the registry got the mirror's secrets: %v", r.Header)
		}
	}
	for _, r := range m.mirrors[0].seen {
		if _, p, _ := r.BasicAuth(); p == "own-password" || r.Header.Get("X-Key") != "mirror-key" {
			t.Errorf("the mirror got %v", r.Header)
		}
	}
}

// A mirror of hosts.toml: below a path, with a namespace, not for tags.
func TestMirrorOfHostsFile(t *testing.T) {
	m, n := newMirrored(t), &notes{}
	var asked []string
	f := newFront(t, nil)
	direct, _ := newClient(t, Options{})
	pushImage(t, direct, f.repo(t, "team/app"), "1", "amd64", "")
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		asked = append(asked, r.URL.String())
		rest, ok := strings.CutPrefix(r.URL.Path, "/cache/hub/")
		if !ok || rest == "" {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		r.URL.Path = "/v2/" + rest
		return false
	})
	dir := HostsDir{Name: "x", Open: openMap(map[string]string{"hosts.toml": fmt.Sprintf(`
server = "http://%s"
[host."http://%s/cache/hub"]
  capabilities = ["pull"]
  override_path = true
`, m.host(), f.host())})}
	places, _, err := dir.Read()
	if err != nil {
		t.Fatal(err)
	}
	c, _ := newClient(t, Options{Mirrors: map[string]Places{"": places}, Note: n.add})
	img, err := c.Resolve(t.Context(), m.repo(t, "team/app").Tag("1"), nil)
	if err != nil || len(asked) == 0 || m.count("GET /v2/team/app/manifests/1") != 1 {
		t.Fatalf("%v; asked %v, %v", err, asked, m.log)
	}
	for _, a := range asked {
		if strings.HasSuffix(a, "/manifests/1") {
			t.Error("the mirror was asked for a tag")
		}
	}
	want := "/cache/hub/team/app/blobs/" + img.Manifest.Config.Digest.String() + "?ns=" + strings.ReplaceAll(m.host(), ":", "%3A")
	if !slices.Contains(asked, want) {
		t.Errorf("not asked: %s; but %v", want, asked)
	}
	if img.Origin.Name() != img.Repo.Name() {
		t.Errorf("origin %s", img.Origin)
	}
}

func TestMirrorTLS(t *testing.T) {
	caPEM, cert := newCA(t)
	f, base := newTLSFront(t, cert, nil)
	repo, err := name.NewRepository("a.example.com/team/app")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		mirror Mirror
		served string
	}{
		{"its own authority", Mirror{Host: "b.example.com", TLS: &HostTLS{CAs: caPEM}}, "b.example.com"},
		{"not verified", Mirror{Host: "b.example.com", TLS: &HostTLS{SkipVerify: true}}, "b.example.com"},
		{"the registry's authority", Mirror{Host: "b.example.com"}, ""},
	} {
		opt := base
		opt.Mirrors = map[string]Places{"a.example.com": {Mirrors: []Mirror{tt.mirror}}}
		c, _ := newClient(t, opt)
		f.clear()
		_, err := c.Resolve(t.Context(), repo.Tag("absent"), nil)
		// The registry itself is asked after the mirror, and not trusted.
		if err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", tt.name, err)
		}
		asked := ""
		for _, r := range f.seen {
			asked = r.Host
		}
		if asked != tt.served {
			t.Errorf("%s: %q was asked, want %q", tt.name, asked, tt.served)
		}
	}
}

func TestMirrorOrigin(t *testing.T) {
	m, n := newMirrored(t, nil), &notes{}
	c, _ := newClient(t, m.options(n))
	img, err := c.Resolve(t.Context(), m.repo(t, "team/app").Tag("1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m.mirrors[0].host()+"/hub/team/app", img.Origin.Name()); diff != "" {
		t.Error(diff)
	}
	if img.Digest != digest.FromBytes(img.Raw) {
		t.Error("another image")
	}
}

func TestMirrorIsNone(t *testing.T) {
	_, err := New(Options{Mirrors: map[string]Places{"a.example.com": {Mirrors: []Mirror{{Host: "not a host"}}}}})
	if err == nil || !strings.HasPrefix(err.Error(), "mirror of a.example.com: ") {
		t.Error(err)
	}
}

// A blob that arrived although its answer did not was sent by us.
func TestPushBlobAnswerLost(t *testing.T) {
	lost := false
	f := newFront(t, nil)
	inner := f.Config.Handler
	f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && !lost {
			lost = true
			inner.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		inner.ServeHTTP(w, r)
	})
	c, _ := newClient(t, Options{})
	blob := randomBytes(1000)
	res, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob), opener(blob), nil)
	if err != nil || res != Uploaded || f.count("PUT") != 1 {
		t.Errorf("%v, %v, %d PUTs", res, err, f.count("PUT"))
	}
}
