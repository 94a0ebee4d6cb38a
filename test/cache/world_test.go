// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package cache tests builds with a cache against a registry that counts, and
// that fails in all the ways that registries do.
package cache

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/zstd"

	"hako/test/rig"
)

// bin is the program, which TestMain builds.
var bin string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "hako-cache-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "hako")
	if out, err := exec.Command("go", "build", "-o", bin, "hako/cmd/hako").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build hako: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// A front is a registry that counts what is asked of it and can be made to fail.
type front struct {
	http.Handler
	mu       sync.Mutex
	requests []string // "GET /v2/…"
	// fault, if set, may answer a request itself.
	fault func(w http.ResponseWriter, r *http.Request) bool
}

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r.Method+" "+r.URL.Path)
	fault := f.fault
	f.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	f.Handler.ServeHTTP(w, r)
}

// take returns the requests since the last call.
func (f *front) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.requests
	f.requests = nil
	return list
}

func (f *front) setFault(fault func(w http.ResponseWriter, r *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// A world is a registry and a build context.
type world struct {
	t    *testing.T
	reg  *front
	addr string
	dir  string
	args []string
	env  []string // besides PATH and HOME
}

func newWorld(t *testing.T) *world {
	t.Helper()
	rig.Require(t, rig.NeedRoot, rig.NeedBusybox)
	reg := &front{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	srv := httptest.NewServer(reg)
	t.Cleanup(srv.Close)
	w := &world{t: t, reg: reg, addr: srv.Listener.Addr().String(), dir: t.TempDir()}
	w.args = []string{"--cache", "-d", w.addr + "/app:1"}
	return w
}

// base pushes busybox as base:NAME.
func (w *world) base(name, extra string) {
	w.t.Helper()
	dir := w.t.TempDir()
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		w.t.Fatal(err)
	}
	for file, content := range map[string][]byte{
		"busybox": b, "extra": []byte(extra),
		"Dockerfile": []byte("FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nCOPY extra /extra\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	w.must(w.run(dir, "-d", w.addr+"/base:"+name))
}

// write puts files into the context; "" removes one.
func (w *world) write(files map[string]string) {
	w.t.Helper()
	for name, content := range files {
		p := filepath.Join(w.dir, name)
		if content == "" {
			if err := os.RemoveAll(p); err != nil {
				w.t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(strings.ReplaceAll(content, "REG", w.addr)), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
}

// A built is what a build said.
type built struct {
	err    error
	log    string
	digest string
	steps  []step
}

// A step is one line of --explain-cache.
type step struct {
	line   string // number of the Dockerfile's line
	hit    bool
	behind bool   // a hit that was not looked for
	why    string // of a miss
}

var explained = regexp.MustCompile(`(?m)^ \S*Dockerfile\S*?:(\d+)\s+(hit |MISS)  .{40,}?  (.*)$`)

// command is a build of dir with an empty work directory.
func (w *world) command(ctx context.Context, dir string, args ...string) *exec.Cmd {
	w.t.Helper()
	work := w.t.TempDir()
	cmd := exec.CommandContext(ctx, bin, append([]string{
		"build", "--isolation=namespace", "--progress=plain", "--explain-cache", "--work-dir=" + work,
		"--source-date-epoch=1700000000", "--rewrite-timestamp", "--skip-push-permission-check",
	}, append(args, dir)...)...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + work}, w.env...)
	return cmd
}

// run builds dir and reads what the build said.
func (w *world) run(dir string, args ...string) built {
	w.t.Helper()
	return finish(w.command(w.t.Context(), dir, args...))
}

// finish runs a build and reads what it said.
func finish(cmd *exec.Cmd) built {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	b := built{err: cmd.Run(), log: stderr.String()}
	if _, d, ok := strings.Cut(strings.TrimSpace(stdout.String()), "@"); ok {
		b.digest, _, _ = strings.Cut(d, "\n")
	}
	for _, m := range explained.FindAllStringSubmatch(b.log, -1) {
		s := step{line: m[1], hit: m[2] == "hit "}
		if s.hit {
			s.behind = strings.HasPrefix(m[3], "not needed")
		} else {
			s.why = m[3]
		}
		b.steps = append(b.steps, s)
	}
	return b
}

// build builds the context with the cache.
func (w *world) build(args ...string) built {
	w.t.Helper()
	return w.run(w.dir, append(slices.Clone(w.args), args...)...)
}

func (w *world) must(b built) built {
	w.t.Helper()
	if b.err != nil {
		w.t.Fatalf("build: %v\n%s", b.err, b.log)
	}
	return b
}

// misses returns the lines that were executed.
func (b *built) misses() []string {
	var lines []string
	for _, s := range b.steps {
		if !s.hit {
			lines = append(lines, s.line)
		}
	}
	return lines
}

// why returns the reasons of all misses.
func (b *built) why() string {
	var list []string
	for _, s := range b.steps {
		if !s.hit {
			list = append(list, s.why)
		}
	}
	return strings.Join(list, "\n")
}

// uncached builds the context without a cache.
func (w *world) uncached(args ...string) string {
	w.t.Helper()
	b := w.must(w.run(w.dir, append([]string{"-d", w.addr + "/uncached:1"}, args...)...))
	return b.digest
}

// unpacked returns what is in a document or a blob, as far as it can be read.
func unpacked(t *testing.T, raw []byte) string {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	plain, _ := io.ReadAll(z)
	g, err := gzip.NewReader(bytes.NewReader(raw))
	if err == nil {
		plain, _ = io.ReadAll(g)
	}
	return string(raw) + string(plain)
}

func decode(t *testing.T, r io.Reader, to any) {
	t.Helper()
	if err := json.NewDecoder(r).Decode(to); err != nil {
		t.Fatal(err)
	}
}

// atOnce has n builds at the same time keep what they make in one place, without a
// complaint, and wants all of it found there.
func (w *world) atOnce(n int, args ...string) {
	w.t.Helper()
	build := func(n int) built {
		one := &world{t: w.t, reg: w.reg, addr: w.addr, dir: w.t.TempDir()}
		one.write(map[string]string{"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": fmt.Sprint(n)})
		return one.run(one.dir, slices.Concat(args, []string{"--no-push", "-t", "x:1"})...)
	}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if b := build(i); b.err != nil || strings.Contains(b.log, "] cache ") {
				w.t.Errorf("build %d: %v\n%s", i, b.err, b.log)
			}
		})
	}
	wg.Wait()
	for i := range n {
		if b := build(i); len(b.misses()) > 0 {
			w.t.Errorf("build %d found nothing\n%s", i, b.log)
		}
	}
}
