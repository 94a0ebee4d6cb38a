// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
)

// BaseHost stands for the rig's registry in Dockerfiles and options of cases;
// the real address, whose port changes from run to run, is put in its place.
const BaseHost = "base.test"

// A Rig is everything that one test run has started. It is safe for
// concurrent use once Start has returned.
type Rig struct {
	Cached bool // see Options
	// Registry is the host:port of the in-process registry.
	Registry string
	// HakoBin is the hako binary under test, built statically.
	HakoBin string
	// Dir holds the rig's scratch files and goes with Close.
	Dir string

	repo     string // checkout
	server   *httptest.Server
	buildkit *buildkitd
	socket   *sshSocket
	servers  []*server

	podmanOnce sync.Once
	plainOnce  sync.Once
	plainErr   error
	podman     *Podman
	podmanErr  error
}

// Options say which parts a test run needs.
type Options struct {
	BuildKit bool // start buildkitd
	Hako     bool // build hako
	Cached   bool // build with hako twice, the second time from a cache
}

// Start builds what is missing, starts the registry and, if asked, buildkitd,
// and pushes the base images.
func Start(ctx context.Context, opts Options) (_ *Rig, err error) {
	repo, err := repository()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "hako-rig-")
	if err != nil {
		return nil, fmt.Errorf("make scratch directory: %w", err)
	}
	r := &Rig{Dir: dir, repo: repo, Cached: opts.Cached}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	git, err := gitRepositories(ctx, dir)
	if err != nil {
		return nil, err
	}
	apt, err := aptRepository()
	if err != nil {
		return nil, err
	}
	r.server = httptest.NewServer(fileServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))), git, apt))
	r.Registry = strings.TrimPrefix(r.server.URL, "http://")
	if err := r.pushBases(ctx); err != nil {
		return nil, err
	}
	if r.socket, err = listenSSH(ctx, filepath.Join(dir, "agent.sock")); err != nil {
		return nil, err
	}
	if opts.Hako {
		if r.HakoBin, err = r.buildHako(ctx); err != nil {
			return nil, err
		}
	}
	if opts.BuildKit {
		if r.buildkit, err = r.startBuildkitd(ctx, r.Dir); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Close ends what Start began and removes its files.
func (r *Rig) Close() error {
	var errs []error
	if r.buildkit != nil {
		errs = append(errs, r.buildkit.stop())
	}
	if r.podman != nil {
		errs = append(errs, r.podman.close())
	}
	for _, s := range r.servers {
		errs = append(errs, s.stop())
	}
	if r.socket != nil {
		errs = append(errs, r.socket.Close())
	}
	errs = append(errs, unmountBelow(filepath.Join(r.Dir, "plain")))
	if r.server != nil {
		r.server.Close()
	}
	return errors.Join(append(errs, os.RemoveAll(r.Dir))...)
}

// Cache returns a path under the repository's .cache, where things live that
// are dear to make and the same every time.
func (r *Rig) Cache(elem ...string) string {
	return filepath.Join(append([]string{r.repo, ".cache"}, elem...)...)
}

// Address puts the registry's address in the place of BaseHost.
func (r *Rig) Address(s string) string {
	return strings.ReplaceAll(s, BaseHost+"/", r.Registry+"/")
}

// repository finds the checkout that the running test belongs to.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find repository: %w", err)
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(data), "module hako\n") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find repository: no go.mod of module hako above the working directory")
		}
		dir = parent
	}
}

// buildHako compiles the binary under test. Go's test cache cannot know that a
// test depends on a program built at run time, so every source is looked at
// here: a look through package os is what the cache records.
func (r *Rig) buildHako(ctx context.Context) (string, error) {
	if bin := os.Getenv("HAKO_BIN"); bin != "" {
		return bin, nil
	}
	for _, dir := range []string{"cmd", "internal"} {
		if err := statSources(filepath.Join(r.repo, dir)); err != nil {
			return "", err
		}
	}
	bin := filepath.Join(r.Dir, "hako")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, "./cmd/hako")
	cmd.Dir = r.repo
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build hako: %w\n%s", err, out)
	}
	return bin, nil
}

func statSources(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if filepath.Ext(path) == ".go" {
			_, err = os.Stat(path)
		}
		return err
	})
}

// tool returns a program of the tools module, built into .cache/bin if it is
// not there for the module's present versions, or one of the directory that
// RIG_TOOLS names.
func (r *Rig) tool(ctx context.Context, name string) (string, error) {
	if dir := os.Getenv("RIG_TOOLS"); dir != "" {
		return filepath.Join(dir, name), nil
	}
	script := filepath.Join(r.repo, "hack", "tools")
	out, err := exec.CommandContext(ctx, script, name).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build tool %s: %w\n%s", name, err, out)
	}
	return r.Cache("bin", name), nil
}
