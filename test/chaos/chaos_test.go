// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package chaos

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

const root = "../.."

// seeds are how many bad days there are for each registry.
const seeds = 3

// A day is a registry, hako and what is built.
type day struct {
	hako, upstream, dir string
}

// Pushes and pulls through a proxy that drops, delays, answers 429 and 503 and
// kills uploads in the middle end with the right image.
func TestBadDays(t *testing.T) {
	hako := buildHako(t)
	for kind, start := range map[string]func(*testing.T) string{"simple": startSimple, "distribution": startDistribution} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel() // most of the time is spent waiting
			upstream := start(t)
			var mu sync.Mutex
			dealt, uploads, downloads := map[fault]int{}, 0, 0
			t.Run("seed", func(t *testing.T) {
				for seed := range uint64(seeds) {
					t.Run(fmt.Sprint(seed), func(t *testing.T) {
						t.Parallel()
						d := &day{hako: hako, upstream: upstream, dir: t.TempDir()}
						for _, p := range d.run(t, seed) {
							mu.Lock()
							uploads, downloads = uploads+p.uploads, downloads+p.downloads
							for f, n := range p.dealt {
								dealt[f] += n
							}
							mu.Unlock()
						}
					})
				}
			})
			for _, f := range []fault{dropRequest, dropAnswer, delay, refuse429, refuse503, killUpload, cutDownload} {
				if dealt[f] == 0 {
					t.Errorf("%s: never happened", f)
				}
			}
			if downloads == 0 || kind == "distribution" && uploads == 0 {
				t.Error("nothing was resumed")
			}
			t.Logf("%v; %d uploads and %d downloads resumed", dealt, uploads, downloads)
		})
	}
}

func buildHako(t *testing.T) string {
	t.Helper()
	hako := filepath.Join(t.TempDir(), "hako")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", hako, "./cmd/hako")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return hako
}

// run builds an image without faults and with, on top of a base that comes
// without and with.
func (d *day) run(t *testing.T, seed uint64) []*proxy {
	t.Helper()
	r := rand.NewChaCha8([32]byte{byte(seed), byte(len(d.upstream))})
	var dockerfile strings.Builder
	dockerfile.WriteString("ARG BASE=scratch\nFROM $BASE\n")
	for i := range 4 {
		b := make([]byte, 600_000+i*500_000)
		_, _ = r.Read(b)
		d.write(t, fmt.Sprintf("f%d", i), b)
		fmt.Fprintf(&dockerfile, "COPY f%d /\n", i)
	}
	d.write(t, "Dockerfile", []byte(dockerfile.String()))
	// What is different makes layers that the registry does not have yet.
	d.write(t, "on", []byte("ARG BASE\nFROM $BASE\nCOPY f0 /f1\nCOPY f3 /again\n"))
	push, pull := newProxy(d.upstream, seed), newProxy(d.upstream, seed+100)
	repo := func(p *proxy, name string) string {
		host := d.upstream
		if p != nil {
			s := httptest.NewUnstartedServer(p)
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.Start()
			t.Cleanup(s.Close)
			host = s.Listener.Addr().String()
		}
		return fmt.Sprintf("%s/day%d/%s", host, seed, name)
	}
	got := d.build(t, "Dockerfile", "", repo(push, "app:got"), push)
	want := d.build(t, "Dockerfile", "", repo(nil, "same:want"), nil)
	if got != want {
		t.Errorf("pushed %s, want %s", got, want)
	}
	d.validate(t, repo(nil, "app:got"))
	gotOn := d.build(t, "on", repo(pull, "app:got"), repo(nil, "on:got"), pull)
	wantOn := d.build(t, "on", repo(nil, "app:got"), repo(nil, "on:want"), nil)
	if gotOn != wantOn {
		t.Errorf("with the pulled base: %s, want %s", gotOn, wantOn)
	}
	d.validate(t, repo(nil, "on:got"))
	return []*proxy{push, pull}
}

func (d *day) write(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.dir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// writeRandom writes what cannot be compressed.
func (d *day) writeRandom(t *testing.T, name string, size int) {
	t.Helper()
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size >> 20)}).Read(b)
	d.write(t, name, b)
}

// build builds with a work directory of its own and returns the digest.
func (d *day) build(t *testing.T, file, base, to string, p *proxy) string {
	t.Helper()
	args := []string{"build", "--push", "-t", to, "-f", file, "--push-retry=30", "--image-download-retry=30", "--work-dir", t.TempDir()}
	if base != "" {
		args = append(args, "--build-arg", "BASE="+base)
	}
	cmd := exec.CommandContext(t.Context(), d.hako, append(args, ".")...)
	cmd.Dir = d.dir
	cmd.Env = []string{"HOME=" + d.dir, "SOURCE_DATE_EPOCH=1700000000"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s\n%v", args, err, stderr.String(), p)
	}
	_, digest, ok := strings.Cut(strings.TrimSpace(stdout.String()), "@")
	if !ok {
		t.Fatalf("standard output: %q", stdout.String())
	}
	return digest
}

// validate lets another library read every byte of an image in the registry.
func (d *day) validate(t *testing.T, ref string) {
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

// startSimple starts a registry that keeps nothing of a broken upload.
func startSimple(t *testing.T) string {
	t.Helper()
	s := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

const distributionConfig = `version: 0.1
log:
  level: error
storage:
  filesystem:
    rootdirectory: %q
http:
  addr: %s
  secret: chaos
`

// startDistribution starts the reference registry, with which uploads resume.
func startDistribution(t *testing.T) string {
	t.Helper()
	program, err := filepath.Abs(filepath.Join(root, ".cache/bin/registry"))
	if _, serr := os.Stat(program); err != nil || serr != nil {
		const reason = "needs the reference registry: hack/tools registry"
		if os.Getenv("CI") == "true" {
			t.Fatal(reason)
		}
		t.Skip("skipped: " + reason)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	_ = l.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, distributionConfig, filepath.Join(dir, "data"), host), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), program, "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	for range 500 {
		if resp, err := http.Get("http://" + host + "/v2/"); err == nil {
			resp.Body.Close()
			return host
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the registry does not answer")
	return ""
}
