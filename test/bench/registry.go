// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// registry is the reference registry, as a process of its own whose storage
// outlives it: what takes long to make is made once.
type registry struct {
	host string // host:port
	dir  string
	log  string
	cmd  *exec.Cmd
	keep map[string]bool // digests of the bases
}

const registryConfig = `version: 0.1
log:
  level: error
storage:
  filesystem:
    rootdirectory: %q
    maxthreads: 100
  delete:
    enabled: true
  maintenance:
    uploadpurging:
      enabled: false
http:
  addr: %s
`

// freeAddress is an address of the loopback interface that nobody listens on.
func freeAddress(ctx context.Context) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

// startRegistry starts the registry program on host, with its storage in dir
// and what belongs to this run in scratch.
func startRegistry(ctx context.Context, program, host, dir, scratch string) (*registry, error) {
	r := &registry{host: host, dir: dir, log: filepath.Join(scratch, "registry.log")}
	config := filepath.Join(scratch, "registry.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, registryConfig, dir, r.host), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(r.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Stopped by stop, after the last build, not when ctx ends.
	r.cmd = exec.CommandContext(context.WithoutCancel(ctx), program, "serve", config)
	r.cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	r.cmd.Stdout, r.cmd.Stderr = log, log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start registry: %w", err)
	}
	if err := r.ready(ctx); err != nil {
		return nil, errors.Join(err, r.stop())
	}
	return r, nil
}

func (r *registry) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.host+"/v2/", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			return nil
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(r.log)
			return fmt.Errorf("wait for registry: %w\n%s", err, log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (r *registry) stop() error {
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(10*time.Second, func() { _ = r.cmd.Process.Kill() })
	defer timer.Stop()
	_ = r.cmd.Wait()
	return nil
}

func (r *registry) root() string { return filepath.Join(r.dir, "docker", "registry", "v2") }

// blob is the file that holds a blob.
func (r *registry) blob(digest string) string {
	algorithm, hex, _ := strings.Cut(digest, ":")
	return filepath.Join(r.root(), "blobs", algorithm, hex[:2], hex, "data")
}

// remember marks everything there is as what forget leaves alone.
func (r *registry) remember() error {
	dirs, err := filepath.Glob(filepath.Join(r.root(), "blobs", "*", "*", "*"))
	r.keep = map[string]bool{}
	for _, d := range dirs {
		r.keep[d] = true
	}
	return err
}

// forget removes what a run has pushed.
func (r *registry) forget(repo string) error {
	errs := []error{os.RemoveAll(filepath.Join(r.root(), "repositories", repo))}
	dirs, err := filepath.Glob(filepath.Join(r.root(), "blobs", "*", "*", "*"))
	for _, d := range dirs {
		if !r.keep[d] {
			errs = append(errs, os.RemoveAll(d))
		}
	}
	return errors.Join(append(errs, err)...)
}

// A traffic is what went through the registry.
type traffic struct {
	down, up         int64 // bytes of blobs
	uploads, mounted int
}

// request matches a line of the access log: method, path, query, status, bytes.
var request = regexp.MustCompile(`"([A-Z]+) ([^" ?]+)\??([^" ]*) HTTP/[0-9.]+" (\d+) (\d+)`)

// mark is a place in the access log, for since.
func (r *registry) mark() int64 {
	info, err := os.Stat(r.log)
	if err != nil {
		return 0
	}
	return info.Size()
}

// since reads what the log says from mark on.
func (r *registry) since(mark int64) (traffic, error) {
	log, err := os.ReadFile(r.log)
	if err != nil {
		return traffic{}, err
	}
	var t traffic
	for line := range bytes.Lines(log[mark:]) {
		m := request.FindSubmatch(line)
		if m == nil {
			continue
		}
		r.count(&t, string(m[1]), string(m[2]), string(m[3]), string(m[4]), string(m[5]))
	}
	return t, nil
}

func (r *registry) count(t *traffic, method, path, query, status, size string) {
	digest := strings.NewReplacer("%3A", ":", "%3a", ":").Replace(query)
	switch {
	case !strings.Contains(path, "/blobs/") || status[0] != '2':
	case method == http.MethodGet:
		n, _ := strconv.ParseInt(size, 10, 64)
		t.down += n
	case method == http.MethodPut:
		_, digest, _ = strings.Cut("&"+digest, "&digest=")
		digest, _, _ = strings.Cut(digest, "&")
		if info, err := os.Stat(r.blob(digest)); err == nil {
			t.up += info.Size()
			t.uploads++
		}
	case method == http.MethodPost && status == "201" && strings.Contains(query, "mount="):
		t.mounted++
	}
}
