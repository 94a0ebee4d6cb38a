// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// A stalling registry stops in the middle of its largest blob when it is told to.
type stalling struct {
	next    http.Handler
	stalls  atomic.Bool
	reached chan struct{} // receives when it has stopped
}

func (s *stalling) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.stalls.Load() || r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
		s.next.ServeHTTP(w, r)
		return
	}
	rec := httptest.NewRecorder()
	s.next.ServeHTTP(rec, r)
	b := rec.Body.Bytes()
	w.Header().Set("Content-Length", rec.Header().Get("Content-Length"))
	w.WriteHeader(rec.Code)
	if len(b) < 1<<20 {
		_, _ = w.Write(b)
		return
	}
	_, _ = w.Write(b[:len(b)/2])
	_ = http.NewResponseController(w).Flush()
	select {
	case s.reached <- struct{}{}:
	default:
	}
	<-r.Context().Done()
}

// A place for programs that share a directory of base images.
type sharing struct {
	t    *testing.T
	dir  string
	host string
}

func (s *sharing) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "hako", args...)
	work, err := os.MkdirTemp(s.dir, "work")
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "HOME="+s.dir, "HAKO_WORK_DIR="+work, "SOURCE_DATE_EPOCH=1700000000", "HAKO_PROGRESS=plain")
	return cmd
}

func (s *sharing) run(args ...string) string {
	s.t.Helper()
	var out, log bytes.Buffer
	cmd := s.command(s.t.Context(), args...)
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		s.t.Errorf("hako %s: %v\n%s", strings.Join(args, " "), err, log.String())
	}
	if strings.Contains(log.String(), "base images:") {
		s.t.Errorf("hako %s warns:\n%s", strings.Join(args, " "), log.String())
	}
	return out.String()
}

// A warmer is killed in the middle of a layer. Then two builds and another
// warmer use the directory at once: all is right, and nothing is left behind.
func TestSharedBasesAfterKill(t *testing.T) {
	t.Parallel()
	reg := &stalling{next: registry.New(registry.Logger(log.New(io.Discard, "", 0))), reached: make(chan struct{}, 1)}
	srv := httptest.NewServer(reg)
	t.Cleanup(srv.Close)
	s := &sharing{t: t, dir: t.TempDir(), host: srv.Listener.Addr().String()}
	noise := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(noise)
	s.files(map[string]string{
		"base/noise": string(noise), "base/Dockerfile": "FROM scratch\nCOPY noise /\nCOPY Dockerfile /dir/\n",
		"app/Dockerfile": "FROM " + s.host + "/base:1 AS base\nFROM base\nCOPY x /dir/\nCOPY --from=base /noise /again\n", "app/x": "x",
	})
	s.run("build", "--push", "-t", s.host+"/base:1", filepath.Join(s.dir, "base"))
	bases := filepath.Join(s.dir, "bases")

	reg.stalls.Store(true)
	killed := s.command(t.Context(), "warm", "--cache-dir", bases, s.host+"/base:1")
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	<-reg.reached
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := killed.Wait(); err == nil {
		t.Error("the warmer ended well")
	}
	reg.stalls.Store(false)
	tmp := filepath.Join(bases, "hako", "tmp")
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) == 0 {
		t.Fatalf("the killed warmer has left %v, %v; this test is to see that it is removed", left, err)
	}
	old := time.Now().Add(-time.Hour)
	for _, e := range left {
		if err := os.Chtimes(filepath.Join(tmp, e.Name()), old, old); err != nil {
			t.Fatal(err)
		}
	}

	want := s.run("build", "--push", "-t", s.host+"/app:alone", filepath.Join(s.dir, "app"))
	_, want, _ = strings.Cut(want, "@")
	var wg sync.WaitGroup
	for _, tag := range []string{"one", "two"} {
		wg.Go(func() {
			got := s.run("build", "--push", "-t", s.host+"/app:"+tag, "--cache-dir", bases, filepath.Join(s.dir, "app"))
			if _, got, _ = strings.Cut(got, "@"); got != want {
				t.Errorf("%s: got %q, want %q", tag, got, want)
			}
		})
	}
	wg.Go(func() { s.run("warm", "--cache-dir", bases, s.host+"/base:1") })
	wg.Wait()
	if left, err := os.ReadDir(tmp); len(left) > 0 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
	// It is all there now: whoever would fetch the large layer would wait for ever.
	reg.stalls.Store(true)
	got := s.run("build", "--push", "-t", s.host+"/app:three", "--cache-dir", bases, filepath.Join(s.dir, "app"))
	if _, got, _ = strings.Cut(got, "@"); got != want {
		t.Errorf("three: got %q, want %q", got, want)
	}
}

func (s *sharing) files(files map[string]string) {
	s.t.Helper()
	for name, data := range files {
		p := filepath.Join(s.dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
}

// A counting registry is slow to give blobs, and counts what it gives.
type counting struct {
	next  http.Handler
	count atomic.Bool
	mu    sync.Mutex
	given map[string]int
}

func (c *counting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c.count.Load() && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
		c.mu.Lock()
		c.given[r.URL.Path]++
		c.mu.Unlock()
		time.Sleep(500 * time.Millisecond)
	}
	c.next.ServeHTTP(w, r)
}

// TestWarmersAtOnce: warmers that fill one directory at the same time fetch each
// blob once.
func TestWarmersAtOnce(t *testing.T) {
	t.Parallel()
	reg := &counting{next: registry.New(registry.Logger(log.New(io.Discard, "", 0))), given: map[string]int{}}
	srv := httptest.NewServer(reg)
	t.Cleanup(srv.Close)
	s := &sharing{t: t, dir: t.TempDir(), host: srv.Listener.Addr().String()}
	noise := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{6}).Read(noise)
	s.files(map[string]string{"base/noise": string(noise), "base/Dockerfile": "FROM scratch\nCOPY noise /\nCOPY Dockerfile /dir/\nCOPY Dockerfile /other/\n"})
	s.run("build", "--push", "-t", s.host+"/base:1", filepath.Join(s.dir, "base"))
	bases := filepath.Join(s.dir, "bases")
	reg.count.Store(true)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if out := s.run("warm", "--cache-dir", bases, s.host+"/base:1"); !strings.Contains(out, "/base:1@sha256:") {
				t.Errorf("a warmer said %q", out)
			}
		})
	}
	wg.Wait()
	if len(reg.given) != 4 {
		t.Errorf("%d blobs were given, want a config and 3 layers", len(reg.given))
	}
	for path, n := range reg.given {
		if n != 1 {
			t.Errorf("%s was given %d times", path, n)
		}
	}
	if left, err := os.ReadDir(filepath.Join(bases, "hako", "tmp")); len(left) > 0 || err != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
