// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hako/test/rig"
)

// An expiring registry takes the password of its vault, which changes when a RUN
// says so. No layer gets through before that: it is sent with the password of
// before, and then with one that was asked for while the RUN's root stood in /.
type expiring struct {
	mu       sync.Mutex
	n        int    // of the password
	asked    int    // times that the helper asked
	during   int    // times that it did between the RUN's two requests
	sees     string // what the helper saw of / then
	inRun    bool
	expired  chan struct{} // closed by the RUN
	renewed  chan struct{} // closed by the first question after that
	registry http.Handler
}

func newExpiring(w *world) *expiring {
	return &expiring{
		n: 1, expired: make(chan struct{}), renewed: make(chan struct{}),
		registry: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: w.Registry}),
	}
}

const patience = time.Minute // for what never comes

// ServeHTTP implements http.Handler.
func (e *expiring) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/vault":
		e.mu.Lock()
		defer e.mu.Unlock()
		e.asked++
		if e.inRun {
			if e.during++; e.during == 1 {
				e.sees = r.URL.Query().Get("sees")
				close(e.renewed)
			}
		}
		fmt.Fprintf(rw, `{"Username":"u","Secret":"planted-%d"}`, e.n)
		return
	case "/run/expire":
		e.mu.Lock()
		e.n, e.inRun = 2, true
		close(e.expired)
		e.mu.Unlock()
		select {
		case <-e.renewed:
		case <-time.After(patience):
		}
		e.mu.Lock()
		e.inRun = false
		e.mu.Unlock()
		fmt.Fprint(rw, "ok")
		return
	}
	if r.Method == http.MethodPatch || r.Method == http.MethodPut || r.Method == http.MethodPost {
		select {
		case <-e.expired:
		case <-time.After(patience):
		}
	}
	e.mu.Lock()
	want := fmt.Sprint("planted-", e.n)
	e.mu.Unlock()
	if _, p, ok := r.BasicAuth(); !ok || p != want {
		rw.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		rw.WriteHeader(http.StatusUnauthorized)
		return
	}
	e.registry.ServeHTTP(rw, r)
}

// TestHelperWhileParked renews a password by a helper program in the middle of a
// push, while an image's root stands in /. The helper runs in the container's
// own tree, wherever it lies itself: in that tree, or on a volume that stayed.
func TestHelperWhileParked(t *testing.T) {
	w := start(t, false)
	image, err := w.pod.BusyboxHako(t.Context(), "/kaniko/executor")
	if err != nil {
		t.Fatal(err)
	}
	for _, onVolume := range []bool{true, false} {
		t.Run(fmt.Sprintf("on a volume %t", onVolume), func(t *testing.T) { w.helperWhileParked(t, image, onVolume) })
	}
}

func (w *world) helperWhileParked(t *testing.T, image string, onVolume bool) {
	e := newExpiring(w)
	srv := httptest.NewServer(e)
	t.Cleanup(srv.Close)
	front := "localhost:" + srv.URL[strings.LastIndex(srv.URL, ":")+1:]
	bctx := w.files(t, map[string]string{"a.txt": "a\n", "Dockerfile": fmt.Sprintf(`FROM base.test/busybox
COPY a.txt /
RUN touch /of-the-image; wget -q -O /said %s/run/expire
`, srv.URL)})
	home := w.files(t, map[string]string{
		".docker/config.json": fmt.Sprintf(`{"credHelpers":{%q:"vault"}}`, front),
		// What is in /: the container's own files are known by a marker.
		"bin/docker-credential-vault": fmt.Sprintf("#!/bin/sh\nread server\nsees=none\n[ -e /own ] && sees=own\n[ -e /of-the-image ] && sees=image\nexec wget -q -O - \"%s/vault?sees=$sees\"\n", srv.URL),
		"own":                         "the container's\n",
	})
	program := filepath.Join(home, "bin", "docker-credential-vault")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	s, _ := w.spec(t, image, bctx, true)
	s.Mounts = append(s.Mounts, rig.Mount{Source: home, Target: "/outside", ReadOnly: true})
	s.Env = append(s.Env, "HOME=/outside", "PATH=/helpers:/outside/bin:/bin")
	// The shell puts the marker, and the helper, into the container's own tree.
	setup := "echo own > /own; "
	if !onVolume {
		setup += "mkdir /helpers && cp /outside/bin/docker-credential-vault /helpers/; "
	}
	s.Command = []string{"/bin/sh", "-c", setup + `exec /kaniko/executor --context=dir:///workspace --skip-push-permission-check --isolation=inplace ` +
		`--verbosity=trace --progress=plain --insecure-registry=` + front + ` --destination=` + front + `/renewed:1`}
	id, before := w.create(t, s)
	res, err := w.pod.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit != 0 {
		t.Fatalf("exit status %d\n%s", res.Exit, res.Stderr)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.during == 0 || e.sees != "own" {
		t.Errorf("the helper was asked %d times, %d of them while the RUN went on, and saw %q in /", e.asked, e.during, e.sees)
	}
	if strings.Contains(res.Stdout+res.Stderr, "planted-") {
		t.Error("a password was shown")
	}
	got := w.contents(t, w.Registry+"/renewed:1")
	if got["said"] != "ok" || got["a.txt"] != "a\n" {
		t.Errorf("the image has %q", got)
	}
	after := w.snapshot(t, id)
	for _, l := range append(difference(before, after), difference(after, before)...) {
		if !strings.Contains(l, "/own ") && !strings.Contains(l, "/helpers") && !strings.HasPrefix(l, "/ ") {
			t.Error("the container's files: " + l)
		}
	}
}
