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
	roots  nsRoots
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
	s.roots = s.newRoots(ctx)
	s.checks.start(ctx)
	return s, nil
}

// Roots are where commands get their roots from.
type nsRoots interface {
	prefetch(layers []*layer.Layer)
	assembling(l *layer.Layer) <-chan struct{}
	// take returns a root that has layers, for one command, and whether it was
	// made for this.
	take(ctx context.Context, layers []*layer.Layer) (_ nsRoot, fresh bool, err error)
	// release gives up what nobody continues, and has it proved before.
	release(layers []*layer.Layer, live []*layer.Ref, prove proof)
	// finish has proved what commands left and nobody continued.
	finish(prove proof)
	close() error
}

// A proof compares layers with the root that live records.
type proof func(layers []*layer.Layer, live func(ctx context.Context) (*record, error))

// A nsRoot is a root for one command.
type nsRoot interface {
	mounted() *detached
	// before is called before anything is done in the root, scan after the command;
	// it fills in sc.
	before(ctx context.Context) error
	scan(ctx context.Context, sc *scan) (looked, changed int, err error)
	// keep takes the root back as one with l on top, drop deletes it.
	keep(l *layer.Layer)
	drop()
}

func (s *Namespace) newRoots(ctx context.Context) nsRoots {
	dir := filepath.Join(s.dir, "roots")
	if s.trial.Plain != "" {
		return newPlainRoots(ctx, dir, s.trial.OneID, s.opt.Logf)
	}
	r := newRoots(ctx, dir, s.stage, s.trial.UserNamespace)
	r.oneID = s.trial.OneID
	return r
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

// Release gives up the roots of refs that no live ref begins with, once it is
// proved that their layers are what commands have left there.
func (s *Namespace) Release(refs, live []*layer.Ref) {
	for _, r := range refs {
		if len(r.Layers) > 0 {
			s.roots.release(r.Layers, live, s.prove)
		}
	}
}

// Finish begins to prove that the layers of the commands are what they left. No
// command can be run after it.
func (s *Namespace) Finish() { s.roots.finish(s.prove) }

// prove compares, in the background, a root with the layers that stand for it.
func (s *Namespace) prove(layers []*layer.Layer, live func(ctx context.Context) (*record, error)) {
	s.checks.add(live, layers, allowances{clamp: s.opt.Clamp, oneID: s.trial.OneID, noDevices: s.trial.UserNamespace})
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
	root, fresh, err := s.roots.take(ctx, ref.Layers)
	if err != nil {
		return nil, err
	}
	r := &nsRun{s: s, p: p, base: base, root: root, mount: root.mounted()}
	waited := time.Since(began)
	res, err := r.run(ctx)
	if err != nil {
		root.drop()
		return nil, errors.Join(err, r.mount.close())
	}
	res.keep = root.keep
	res.lose = root.drop
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
	root  nsRoot
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
	if err := r.root.before(ctx); err != nil {
		return nil, err
	}
	peak, err := r.execute(ctx)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	sc := &scan{live: r.live.WithXattrs(), base: r.base, oneID: r.s.trial.OneID}
	looked, changed, err := r.root.scan(ctx, sc)
	if err != nil {
		return nil, err
	}
	return &Result{
		Changes: sc.changes(), Looked: looked, Changed: changed, Scan: time.Since(start), PeakRSS: peak,
		done: func() error { return errors.Join(r.live.Close(), r.mount.close()) },
	}, nil
}
