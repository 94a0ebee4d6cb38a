// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hako/test/rig"
)

// A counter stands before the rig's registry and counts what is downloaded.
type counter struct {
	*httptest.Server
	mu    sync.Mutex
	blobs []string
	// hold, if set, is called before a blob of a repository is served.
	hold func(path string)
}

func (w *world) counter(t *testing.T) *counter {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: w.Registry})
	c := &counter{}
	c.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:") {
			c.mu.Lock()
			c.blobs = append(c.blobs, r.URL.Path)
			hold := c.hold
			c.mu.Unlock()
			if hold != nil {
				hold(r.URL.Path)
			}
		}
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *counter) host() string {
	_, port, _ := strings.Cut(c.Listener.Addr().String(), ":")
	return "localhost:" + port
}

// take returns the blobs that were asked for since the last time.
func (c *counter) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.blobs
	c.blobs = nil
	return list
}

// at returns a Dockerfile's text with base images from the counter.
func (w *world) at(c *counter, text string) string {
	return strings.ReplaceAll(w.Address(text), w.Registry, c.host())
}

// build runs a container and returns the digest of what it built.
func (w *world) build(t *testing.T, s rig.PodSpec, out string) (digest, log string) {
	t.Helper()
	s.Command = append(s.Command, "--digest-file=/result/digest", "--rewrite-timestamp")
	id, before := w.create(t, s)
	res, err := w.pod.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit != 0 {
		t.Fatalf("exit status %d\n%s", res.Exit, res.Stderr)
	}
	w.asFound(t, id, before)
	return read(t, out, "digest"), res.Stderr
}

const basesDockerfile = `FROM base.test/busybox AS build
RUN echo made > /made
FROM base.test/usrmerge
COPY a.txt /etc/
COPY --from=build /made /made
RUN cat /made /etc/a.txt > /both
`

// Base images that were warmed, in a volume that is mounted read-only where
// kaniko looks for it: a build with RUN downloads no blob, and gives the image
// that one without the volume gives.
func TestBasesReadOnly(t *testing.T) {
	w := start(t, false)
	c := w.counter(t)
	bctx := w.files(t, map[string]string{"Dockerfile": w.at(c, basesDockerfile), "a.txt": "a\n"})
	image, cache := w.scratch(t), t.TempDir()

	warm, _ := w.spec(t, image, bctx, true)
	warm.Mounts = append(warm.Mounts, rig.Mount{Source: cache, Target: "/cache"})
	warm.Command = []string{"/kaniko/executor", "warm", "--dockerfile=/workspace/Dockerfile", "--progress=plain"}
	id, before := w.create(t, warm)
	res, err := w.pod.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit != 0 || strings.Count(res.Stdout, "@sha256:") != 2 {
		t.Fatalf("exit status %d\n%s%s", res.Exit, res.Stdout, res.Stderr)
	}
	w.asFound(t, id, before)
	if len(c.take()) < 4 {
		t.Error("warming downloaded nothing; does the counter count?")
	}

	s, out := w.spec(t, image, bctx, true)
	s.Mounts = append(s.Mounts, rig.Mount{Source: cache, Target: "/cache", ReadOnly: true})
	got, log := w.build(t, s, out)
	if blobs := c.take(); len(blobs) > 0 {
		t.Errorf("downloaded %q", blobs)
	}
	if strings.Contains(log, "base images") {
		t.Errorf("there is talk of base images:\n%s", log)
	}
	s, out = w.spec(t, image, bctx, true)
	if want, _ := w.build(t, s, out); got != want {
		t.Errorf("the image is %s, and %s without the directory", got, want)
	}
	if len(c.take()) == 0 {
		t.Error("a build without the directory downloaded nothing")
	}
}

// While a command runs in place, the next base image is downloaded into a
// volume. That is not the command's doing; what the command writes there is.
func TestBasesFilledDuringRun(t *testing.T) {
	w := start(t, false)
	c := w.counter(t)
	running, served := make(chan struct{}), make(chan struct{})
	var once, begun sync.Once
	var asked atomic.Int32
	c.hold = func(path string) {
		if strings.HasPrefix(path, "/v2/usrmerge/") && asked.Add(1) > 1 { // the first is the config
			select {
			case <-running:
			case <-time.After(20 * time.Second):
			}
			once.Do(func() { close(served) })
		}
	}
	signal := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		begun.Do(func() { close(running) })
		select {
		case <-served:
		case <-time.After(30 * time.Second):
			t.Error("no base image was pulled while the command ran; this test is about that")
		}
	}))
	t.Cleanup(signal.Close)
	text := w.at(c, strings.Replace(basesDockerfile, "echo made", "wget -q -O- "+signal.URL+" && sleep 2 && echo made", 1))
	cache := t.TempDir()
	s, out := w.spec(t, w.scratch(t), w.files(t, map[string]string{"Dockerfile": text, "a.txt": "a\n"}), true, "--cache-dir=/bases")
	s.Mounts = append(s.Mounts, rig.Mount{Source: cache, Target: "/bases"})
	w.build(t, s, out)

	// Beside hako's own directory the volume is watched as any other.
	s, _ = w.spec(t, w.scratch(t), w.files(t, map[string]string{"Dockerfile": w.at(c, "FROM base.test/busybox\nRUN echo x > /bases/x\n")}), true, "--cache-dir=/bases")
	s.Mounts = append(s.Mounts, rig.Mount{Source: cache, Target: "/bases"})
	id, _ := w.create(t, s)
	res, err := w.pod.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit == 0 || !strings.Contains(res.Stderr, "wrote to /bases/x") {
		t.Errorf("exit status %d\n%s", res.Exit, res.Stderr)
	}
}

// A disk that is full costs a line, and nothing else.
func TestBasesFullDisk(t *testing.T) {
	w := start(t, false)
	s, out := w.spec(t, w.scratch(t), w.files(t, map[string]string{"Dockerfile": basesDockerfile, "a.txt": "a\n"}), true, "--cache-dir=/full", "--cache-dir-size=1g")
	s.Args = append(s.Args, "--tmpfs=/full:rw,size=64k")
	_, log := w.build(t, s, out)
	if n := strings.Count(log, "] base images: nothing more is kept in /full: no space left on device"); n == 0 {
		t.Errorf("no line about it:\n%s", log)
	}
}
