// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package namespace

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// A front stands before the reference registry and counts what it is asked. Fault
// may answer a request of unknown length itself.
type front struct {
	host  string
	fault func(w http.ResponseWriter, r *http.Request) bool

	mu    sync.Mutex
	asked map[string]int // by method, for blobs
}

func newFront(t *testing.T, upstream string, fault func(w http.ResponseWriter, r *http.Request) bool) *front {
	t.Helper()
	f := &front{fault: fault, asked: map[string]int{}}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: upstream})
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		what := r.Method
		switch {
		case r.Method == http.MethodPost && r.URL.Query().Has("mount"):
			what = "mount"
		case r.Method == http.MethodPut && r.ContentLength > 16<<20:
			what = "large PUT"
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			f.mu.Lock()
			f.asked[what]++
			f.mu.Unlock()
		}
		if r.ContentLength < 0 && f.fault != nil && f.fault(w, r) {
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	f.host = s.Listener.Addr().String()
	return f
}

func (f *front) count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[what]
}

const size = 24 << 20

// command is a build that pushes.
func (w *world) pushing(t *testing.T, dockerfile string, args ...string) *exec.Cmd {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Dockerfile")
	if err := os.WriteFile(file, []byte(w.rig.Address(dockerfile)), 0o644); err != nil {
		t.Fatal(err)
	}
	args = append([]string{
		"build", "--isolation=namespace", "--progress=plain", "--push", "--insecure-registry=" + w.rig.Registry,
		"--work-dir=" + t.TempDir(), "-f", file,
	}, args...)
	return exec.CommandContext(t.Context(), w.rig.HakoBin, append(args, w.dir)...)
}

// A large layer of a command whose times are not fixed is sent while it is
// compressed: once, to one repository of a registry. All others are sent when
// they are finished.
func TestStream(t *testing.T) {
	w := start(t, "FROM scratch\n")
	upstream, err := w.rig.Distribution(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	large := make([]byte, size)
	_, _ = rand.Read(large)
	if err := os.WriteFile(filepath.Join(w.dir, "large"), large, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "secret"), []byte("it must not get out"), 0o600); err != nil {
		t.Fatal(err)
	}
	const write = "head -c 25165824 /dev/urandom > /large"
	run := "FROM base.test/busybox\nRUN " + write + "\n"
	answer := func(status int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			w.WriteHeader(status)
			return true
		}
	}
	for i, tt := range []struct {
		name, dockerfile string
		args             []string // T is a new tag, and taken for one if there is none
		fault            func(w http.ResponseWriter, r *http.Request) bool
		patches, puts    int // of layers; puts whole
		deletes          int
		fails            bool
	}{
		{name: "large", dockerfile: run, patches: 1},
		{name: "zstd", dockerfile: run, args: []string{"--compression=zstd"}, patches: 1},
		{name: "several tags and repositories", dockerfile: run, args: []string{"-t=T", "-t=Tb", "-t=T/c", "-t=T/d:1"}, patches: 1},
		{name: "two layers", dockerfile: run + "RUN " + write + "\n", patches: 2},
		{name: "a later step fails", dockerfile: run + "RUN false\n", patches: 1, fails: true},
		{name: "not in the image", dockerfile: run + "FROM base.test/busybox\nCOPY --from=0 /etc/passwd /x\n"},
		{name: "small", dockerfile: "FROM base.test/busybox\nRUN head -c 1000000 /dev/urandom > /small\n"},
		{name: "COPY", dockerfile: "FROM scratch\nCOPY large /\n", puts: 1},
		{name: "times are fixed", dockerfile: run, args: []string{"--source-date-epoch=" + epoch}, puts: 1},
		{name: "reproducible", dockerfile: run, args: []string{"--reproducible"}, puts: 1},
		{name: "not early", dockerfile: run, args: []string{"--push-early=false"}, puts: 1},
		{name: "one layer", dockerfile: run, args: []string{"--single-snapshot"}, puts: 1},
		{
			name: "with a secret", puts: 1, args: []string{"--secret=id=s,src=" + filepath.Join(w.dir, "secret")},
			dockerfile: "FROM base.test/busybox\nRUN --mount=type=secret,id=s " + write + "\n",
		},
		{name: "500", dockerfile: run, fault: answer(500), patches: 1, puts: 1, deletes: 1},
		{name: "413", dockerfile: run, fault: answer(413), patches: 1, puts: 1, deletes: 1},
		{name: "401", dockerfile: run, fault: answer(401), patches: 1, puts: 1, deletes: 1},
		{name: "reset", dockerfile: run + "RUN " + write + "\n", patches: 1, puts: 2, deletes: 1, fault: func(_ http.ResponseWriter, r *http.Request) bool {
			_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
			panic(http.ErrAbortHandler)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFront(t, upstream, tt.fault)
			tag := fmt.Sprintf("%s/app%d", f.host, i)
			args := []string{"--skip-push-permission-check"}
			for _, a := range tt.args {
				args = append(args, strings.ReplaceAll(a, "=T", "="+tag))
			}
			if !strings.Contains(strings.Join(tt.args, " "), "=T") {
				args = append(args, "-t="+tag)
			}
			out, err := w.pushing(t, tt.dockerfile, args...).CombinedOutput()
			if (err != nil) != tt.fails {
				t.Fatalf("%v\n%s", err, out)
			}
			for what, want := range map[string]int{"PATCH": tt.patches, "large PUT": tt.puts, "DELETE": tt.deletes} {
				if what == "DELETE" && tt.fails {
					continue // it is chance whether the upload had ended when the build did; none may be left
				}
				if n := f.count(what); n != want {
					t.Errorf("%d times %s, want %d: %v\n%s", n, what, want, f.asked, out)
				}
			}
			if !tt.fails && tt.name != "zstd" { // which that library does not read
				validImage(t, strings.Replace(tag, f.host, upstream, 1))
			}
			w.noUploads(t)
		})
	}
}

// validImage lets another library read every byte of an image.
func validImage(t *testing.T, ref string) {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(tag)
	if err == nil {
		err = validate.Image(img)
	}
	if err != nil {
		t.Errorf("%s: %v", ref, err)
	}
}

// noUploads looks for bytes of uploads that the registry still keeps.
func (w *world) noUploads(t *testing.T) {
	t.Helper()
	var left []string
	for range 50 { // it may be about to notice
		left, _ = filepath.Glob(filepath.Join(w.rig.Dir, "distribution-*/data/docker/registry/v2/repositories/*/_uploads/*/data"))
		if len(left) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("uploads left: %q", left)
}

// A build that is stopped while it sends a layer leaves no upload, and does not
// wait for the registry.
func TestStreamStopped(t *testing.T) {
	w := start(t, "FROM scratch\n")
	upstream, err := w.rig.Distribution(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	began := make(chan struct{})
	var once sync.Once
	f := newFront(t, upstream, func(_ http.ResponseWriter, _ *http.Request) bool {
		once.Do(func() { close(began) })
		return false
	})
	cmd := w.pushing(t, "FROM base.test/busybox\nRUN head -c 209715200 /dev/urandom > /large\n", "--skip-push-permission-check", "-t="+f.host+"/stopped")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-began:
	case err := <-ended:
		t.Fatalf("%v\n%s", err, out.String())
	}
	stopped := time.Now()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := <-ended; err == nil || time.Since(stopped) > 5*time.Second {
		t.Errorf("%v after %v\n%s", err, time.Since(stopped), out.String())
	}
	if f.count("PATCH") != 1 || f.count("DELETE") == 0 || f.count("PUT")+f.count("large PUT") > 0 {
		t.Errorf("asked %v\n%s", f.asked, out.String())
	}
	w.noUploads(t)
}
