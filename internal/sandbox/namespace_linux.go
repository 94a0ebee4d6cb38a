// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/tree"
)

// NamespaceOptions say where and how commands get namespaces of their own.
type NamespaceOptions struct {
	// WorkDir is hako's own directory; other builds may use it too.
	WorkDir string
	// ResolvConf is this machine's file.
	ResolvConf []byte
	// Clamp is the latest time of files in layers; nil for none.
	Clamp *time.Time
	// Supervisor is told what to remove; may be nil.
	Supervisor *Supervisor
	// Logf tells people what is going on.
	Logf func(format string, args ...any)
}

// Namespace runs commands in roots of their own. All of it is safe for
// concurrent use.
type Namespace struct {
	opt    NamespaceOptions
	trial  *Trial
	claim  *claim
	dir    string // of this build
	stage  string
	roots  *roots
	filter []unix.SockFilter
	memory *memory
	checks checks

	mu    sync.Mutex
	binds map[bindKey]*bindSource
	n     int
}

// NewNamespace prepares to run commands; t is what was found out by trying.
func NewNamespace(ctx context.Context, t *Trial, opt NamespaceOptions) (*Namespace, error) {
	if opt.Logf == nil {
		opt.Logf = func(string, ...any) {}
	}
	base := filepath.Join(opt.WorkDir, "work", "ns")
	if err := os.MkdirAll(base, 0o711); err != nil {
		return nil, fmt.Errorf("make the work directory: %w", err)
	}
	if err := opt.Supervisor.tell(tellSweep, base); err != nil {
		return nil, err
	}
	sweep(base)
	c, err := claimDir(base)
	if err != nil {
		return nil, err
	}
	dir := c.dir
	s := &Namespace{opt: opt, trial: t, claim: c, dir: dir, stage: filepath.Join(dir, "stage"), binds: make(map[bindKey]*bindSource), memory: openMemory()}
	for _, d := range []string{s.stage, filepath.Join(dir, "roots"), filepath.Join(dir, "mounts"), s.caches()} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, errors.Join(fmt.Errorf("make the work directory: %w", err), s.Close())
		}
	}
	if s.filter, err = seccompFilter(defaultCaps()); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.roots = newRoots(ctx, filepath.Join(dir, "roots"), s.stage, t.UserNamespace)
	s.roots.oneID = t.OneID
	s.checks.start(ctx)
	return s, nil
}

func (s *Namespace) caches() string { return filepath.Join(s.opt.WorkDir, "work", "caches") }

// A claim is a directory that belongs to one process for as long as that lives. It
// never exists without a lock of the same name beside it.
type claim struct {
	dir  string
	lock *os.File
}

const lockSuffix = ".lock"

// claimDir makes a directory for one build.
func claimDir(base string) (*claim, error) {
	for {
		f, err := os.CreateTemp(base, "b*"+lockSuffix)
		if err != nil {
			return nil, fmt.Errorf("make the work directory: %w", err)
		}
		c := &claim{dir: strings.TrimSuffix(f.Name(), lockSuffix), lock: f}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			// A sweep may have been faster: then the name is gone.
			var mine, there unix.Stat_t
			if unix.Fstat(int(f.Fd()), &mine) == nil && unix.Stat(f.Name(), &there) == nil && mine.Ino == there.Ino {
				// Users that commands run as go through it.
				if err = os.Mkdir(c.dir, 0o711); err == nil {
					err = os.Chmod(c.dir, 0o711)
				}
				if err != nil {
					return nil, errors.Join(fmt.Errorf("make the work directory: %w", err), c.release())
				}
				return c, nil
			}
		}
		if cerr := f.Close(); cerr != nil || err != nil && err != unix.EWOULDBLOCK {
			return nil, fmt.Errorf("lock the work directory: %w", errors.Join(err, cerr))
		}
	}
}

// release removes the directory.
func (c *claim) release() error {
	return errors.Join(layer.RemoveAll(c.dir), os.Remove(c.lock.Name()), c.lock.Close())
}

// sweep removes what killed builds have left: directories that nobody holds the
// lock of.
func sweep(base string) {
	locks, _ := filepath.Glob(filepath.Join(base, "b*"+lockSuffix))
	for _, l := range locks {
		f, err := os.OpenFile(l, os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // another sweep has it
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			_ = f.Close()
			continue
		}
		c := &claim{dir: strings.TrimSuffix(l, lockSuffix), lock: f}
		_ = c.release()
	}
}

// Prefetch begins to unpack the root of ref, which a Run will need.
func (s *Namespace) Prefetch(ref *layer.Ref) { s.roots.prefetch(ref.Layers) }

// Assembling returns a channel that is closed when the root that l is being
// unpacked for is there; nil if there is none.
func (s *Namespace) Assembling(l *layer.Layer) <-chan struct{} { return s.roots.assembling(l) }

// Finish begins to prove that the layers of the commands are what they left. No
// command can be run after it.
func (s *Namespace) Finish() {
	for _, st := range s.roots.leaves() {
		s.checks.add(func(ctx context.Context) (*record, error) { return s.roots.record(ctx, st) }, st.layers, allowances{
			clamp: s.opt.Clamp, oneID: s.trial.OneID, noDevices: s.trial.UserNamespace,
		})
	}
}

// Verified waits for the proof.
func (s *Namespace) Verified() error { return s.checks.wait() }

// Close removes everything that the build's commands needed.
func (s *Namespace) Close() error {
	var errs []error
	if s.roots != nil {
		s.checks.stop()
		errs = append(errs, s.roots.close())
	}
	s.memory.close()
	errs = append(errs, s.claim.release())
	return errors.Join(errs...)
}

// Run runs p in the root that ref describes and returns what it changed.
func (s *Namespace) Run(ctx context.Context, ref *layer.Ref, p *Process) (*Result, error) {
	base, err := ref.Tree(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	st, fresh, err := s.roots.get(ctx, ref.Layers)
	if err != nil {
		return nil, err
	}
	r := &nsRun{s: s, p: p, base: base, stack: st, upper: s.roots.name()}
	waited := time.Since(began)
	if r.mount, err = s.roots.mount(st, r.upper); err != nil {
		return nil, err
	}
	res, err := r.run(ctx)
	if err != nil {
		err = errors.Join(err, r.mount.close())
		s.roots.remove(r.upper)
		return nil, err
	}
	res.keep = func(l *layer.Layer) { s.roots.keep(st, r.upper, l) }
	if fresh {
		res.Layers, res.Waited = len(ref.Layers), waited
		for _, l := range ref.Layers {
			res.Bytes += l.Descriptor().Size
		}
	}
	return res, nil
}

// A nsRun is one command in its root.
type nsRun struct {
	s     *Namespace
	p     *Process
	base  tree.FS
	stack *stack
	upper string
	mount *detached
	live  *tree.Dir
}

// run runs the command and finds the changes.
func (r *nsRun) run(ctx context.Context) (_ *Result, err error) {
	f, err := openPath(r.mount.path())
	if err != nil {
		return nil, err
	}
	if r.live, err = tree.NewDir(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.live.Close())
		}
	}()
	peak, err := r.execute(ctx)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	sc := &upperScan{scan: &scan{live: r.live.WithXattrs(), base: r.base}, marks: "trusted.overlay.", oneID: r.s.trial.OneID}
	if r.s.trial.UserNamespace {
		sc.marks = "user.overlay."
	}
	done, err := sc.openLowers(r.s.roots.dir, r.stack.dirs)
	if err != nil {
		return nil, err
	}
	defer done()
	fd, err := unix.Open(filepath.Join(r.s.roots.dir, r.upper), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("look at the changes: %w", err)
	}
	defer unix.Close(fd)
	changed, err := sc.runUpper(ctx, fd)
	if err != nil {
		return nil, err
	}
	return &Result{
		Changes: sc.changes(), Looked: sc.names, Changed: changed, Scan: time.Since(start), PeakRSS: peak,
		done: func() error { return errors.Join(r.live.Close(), r.mount.close()) },
	}, nil
}
