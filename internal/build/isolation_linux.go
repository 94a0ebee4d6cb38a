// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"hako/internal/ops"
	"hako/internal/sandbox"
)

// A room starts the sandbox when the first command comes, once.
type room struct {
	opt      *Options
	contexts *contexts
	network  *network
	logf     func(format string, args ...any)

	mu    sync.Mutex
	needs []string
	box   *sandbox.InPlace
	err   error
	moved bool // files of this container were moved away
}

// possible tells why no command can be run here; nil if it can.
func (r *room) possible() error {
	if r.opt.Isolation != "" && r.opt.Isolation != "auto" && r.opt.Isolation != "inplace" {
		return &NoSandboxError{Why: "--isolation=" + r.opt.Isolation + " is not available yet", Remedy: []string{"--isolation=auto"}}
	}
	if err := sandbox.Possible(r.work()); err != nil {
		return &NoSandboxError{
			Why:    err.Error(),
			Remedy: remedies(err),
		}
	}
	if !inContainer(r.opt.Env) && !r.opt.Force {
		return &NoSandboxError{
			Why:    "nothing shows that this is a container, and running in place would move this machine's own files",
			Remedy: []string{"run hako in a container", "--force, if this root is yours to lose"},
		}
	}
	if r.opt.Executor || r.opt.Isolation == "inplace" {
		return nil
	}
	if pid := sandbox.Unrelated(); pid != 0 {
		return &NoSandboxError{
			Why:    fmt.Sprintf("process %d also runs in this container, and running in place would move its files away", pid),
			Remedy: []string{"--isolation=inplace, if that process can wait", "start hako as the container's only program"},
		}
	}
	return nil
}

// remedies are the settings of a pod that help against an error of
// sandbox.Possible. Any one of them has to be enough.
func remedies(err error) []string {
	switch {
	case os.Geteuid() != 0:
		return []string{"securityContext.runAsUser: 0 (with default capabilities)"}
	case errors.Is(err, unix.EROFS):
		return []string{"securityContext.readOnlyRootFilesystem: false"}
	case errors.Is(err, unix.EPERM):
		return []string{"securityContext.capabilities: default ones (drop none)"}
	}
	return []string{"a work directory on the root file system: mount no volume there, or name another with --work-dir"}
}

// inContainer tells whether there is a sign of a container.
func inContainer(env Env) bool {
	for _, v := range []string{"container", "KUBERNETES_SERVICE_HOST"} {
		if env.Get(v) != "" {
			return true
		}
	}
	for _, p := range []string{"/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io/serviceaccount"} {
		if _, err := os.Lstat(p); err == nil {
			return true
		}
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) > 6 && f[4] == "/" && strings.Contains(l, " - overlay ") {
			return true
		}
	}
	return false
}

// work is hako's own directory, which stays in place.
func (r *room) work() string { return workDir(r.opt) }

// start returns the sandbox, made by the first caller.
func (r *room) start(ctx context.Context) (ops.Sandbox, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.box != nil || r.err != nil {
		return r.box, r.err
	}
	var sup io.Writer
	if r.opt.Supervisor != nil {
		sup = r.opt.Supervisor
	}
	r.box, r.err = sandbox.NewInPlace(context.WithoutCancel(ctx), sandbox.InPlaceOptions{
		WorkDir: r.work(), Hosts: r.network.hosts, ResolvConf: r.network.resolvConf, Supervisor: sup,
		Needs: r.needs, OnVolume: r.contexts.moved, Logf: r.logf,
	})
	return r.box, r.err
}

// need adds paths of the image at which volumes have to make room.
func (r *room) need(paths []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.needs = append(r.needs, paths...)
}

// putBack puts the container back; no command can be run after that.
func (r *room) putBack() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.box == nil {
		return nil
	}
	r.moved = r.moved || r.box.Moved()
	return r.box.PutBack()
}

// close puts the container back if that was not done, and cleans up.
func (r *room) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.box == nil {
		return nil
	}
	r.moved = r.moved || r.box.Moved()
	err := r.box.Close()
	r.box, r.err = nil, errors.New("the sandbox is closed")
	return err
}

// workDir returns where roots, blobs and indexes go.
func workDir(opt *Options) string {
	if opt.WorkDir != "" {
		return opt.WorkDir
	}
	if d := opt.Env.Get("KANIKO_DIR"); d != "" {
		return d
	}
	if opt.Executor || opt.Isolation == "inplace" || os.Geteuid() == 0 && inContainer(opt.Env) {
		return "/kaniko"
	}
	return cacheDir(opt.Env)
}

func cacheDir(env Env) string {
	if d := env.Get("XDG_CACHE_HOME"); d != "" {
		return filepath.Join(d, "hako")
	}
	if d := env.Get("HOME"); d != "" {
		return filepath.Join(d, ".cache", "hako")
	}
	return filepath.Join(os.TempDir(), "hako")
}
