// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/tree"
)

// A placer puts RUN's mounts into the installed root. Nothing can be mounted in
// a pod, so a mount is put in place as files: what the image has at the path is
// moved aside, and comes back when the command is over.
type placer struct {
	s      *InPlace
	root   *tree.Dir
	masked map[string]bool
	undo   []func() error
	n      int
}

func (p *placer) onUndo(f func() error) { p.undo = append(p.undo, f) }

// remove takes everything out again, last first.
func (p *placer) remove() error {
	var errs []error
	for _, f := range slices.Backward(p.undo) {
		errs = append(errs, f())
	}
	p.undo = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove mounts: %w", err)
	}
	return nil
}

// place makes all of the process's mounts, parents first, and the files that
// every container gets.
func (p *placer) place(ctx context.Context, proc *Process) error {
	if err := p.network(proc); err != nil {
		return fmt.Errorf("place /etc/hosts and /etc/resolv.conf: %w", err)
	}
	mounts := lastOfEach(proc.Mounts)
	for i := range mounts {
		if err := p.mount(ctx, &mounts[i], proc.Cwd); err != nil {
			return fmt.Errorf("mount %s: %w", mounts[i].Dest, err)
		}
	}
	return nil
}

// lastOfEach sorts mounts so that parents come first; of several at one path the
// last wins, as in BuildKit (executor/oci/mounts.go).
func lastOfEach(mounts []Mount) []Mount {
	var out []Mount
	for i, m := range mounts {
		later := slices.ContainsFunc(mounts[i+1:], func(o Mount) bool { return tree.Clean(o.Dest) == tree.Clean(m.Dest) })
		if !later {
			out = append(out, m)
		}
	}
	slices.SortStableFunc(out, func(a, b Mount) int { return tree.ComparePaths(tree.Clean(a.Dest), tree.Clean(b.Dest)) })
	return out
}

// network gives the process the container's own name resolution.
func (p *placer) network(proc *Process) error {
	hosts := slices.Clone(p.s.opt.Hosts)
	for _, h := range proc.ExtraHosts {
		hosts = fmt.Appendf(hosts, "%s\t%s\n", h.IP, h.Host)
	}
	if err := p.systemFile("etc/hosts", hosts); err != nil {
		return err
	}
	return p.systemFile("etc/resolv.conf", p.s.opt.ResolvConf)
}

// systemFile shows data at path for the time of the process. Where the runtime
// has a file mounted, that file is used, and given its content back.
func (p *placer) systemFile(path string, data []byte) error {
	q, err := tree.Resolve(p.root, path, true)
	if err != nil {
		return err
	}
	if p.masked[q] {
		file := p.s.lot.at(q)
		was, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		p.onUndo(func() error { return putContent(file, was) })
		return putContent(file, data)
	}
	return p.at(q, func(dest string) error { return os.WriteFile(dest, data, 0o644) })
}

// putContent makes path, which cannot be replaced, hold data.
func putContent(path string, data []byte) error {
	now, err := os.ReadFile(path)
	if err == nil && string(now) == string(data) {
		return nil
	}
	return os.WriteFile(path, data, 0o644)
}

func (p *placer) mount(ctx context.Context, m *Mount, cwd string) error {
	dest := m.Dest
	if !strings.HasPrefix(dest, "/") {
		dest = "/" + tree.Join(tree.Clean(cwd), dest)
	}
	q, err := tree.Resolve(p.root, dest, true)
	if err != nil {
		return err
	}
	if q == "" {
		return errors.New("the root cannot be mounted over")
	}
	for up := q; up != ""; up = tree.Parent(up) {
		if !p.masked[up] {
			continue
		}
		if m.Type == Tmpfs && up == q && (q == "dev/shm" || q == "tmp") {
			return nil // it is one, and is emptied after each command
		}
		if topOf(q) != "dev" || up == q {
			return &UnsupportedError{
				What: "RUN --mount", Why: fmt.Sprintf("its target /%s lies in /%s, which this container has mounted", q, up),
				Remedy: "use another target",
			}
		}
	}
	switch m.Type {
	case Bind:
		return p.bind(q, m)
	case Cache:
		return p.cache(q, m)
	case Tmpfs:
		mode := tmpfsMode(p.root, q)
		return p.at(q, func(dest string) error { return errors.Join(os.Mkdir(dest, 0o755), unix.Chmod(dest, mode)) })
	case Secret:
		return p.secret(q, m)
	case SSH:
		return p.ssh(ctx, q, m)
	}
	return fmt.Errorf("unknown mount type %d", m.Type)
}

// hold opens the directory at path until the end and returns a name for it. What
// is put into it is found again there, wherever a command moves the directory
// and whatever it puts in its place.
func (p *placer) hold(path string) (string, error) {
	f, err := p.root.OpenDirectory(path)
	if err != nil {
		return "", err
	}
	p.onUndo(f.Close)
	return below(int(f.Fd()), ""), nil
}

// tmpfsMode is the mode of a tmpfs at path: that of the directory it hides, as
// runc has it, else the kernel's default.
func tmpfsMode(root tree.FS, path string) uint32 {
	if e, err := root.Lstat(path); err == nil && e.Mode.IsDir() {
		return uint32(e.Mode.Perm())
	}
	return 0o1777
}

// at clears path, calls make for it, and undoes both in the end. make's result
// may be anything; it is deleted.
func (p *placer) at(path string, make func(dest string) error) error {
	if err := p.parents(tree.Parent(path)); err != nil {
		return err
	}
	dir, err := p.hold(tree.Parent(path))
	if err != nil {
		return err
	}
	dest := filepath.Join(dir, tree.Base(path))
	restoreTimes, err := keepTimes(dir)
	if err != nil {
		return err
	}
	if err := p.aside(dir, path); err != nil {
		return err
	}
	p.onUndo(func() error {
		keep, err := keepTimes(dir)
		return errors.Join(err, layer.RemoveAll(dest), keep())
	})
	if err := errors.Join(make(dest), restoreTimes()); err != nil {
		return err
	}
	return p.mustStay(dest, path)
}

// mustStay makes it an error if the command moves or links what was placed at path
// to where the layer would have it. A mount cannot be moved (EBUSY).
func (p *placer) mustStay(dest, path string) error {
	fd, err := unix.Open(dest, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /%s: %w", path, err)
	}
	p.onUndo(func() error {
		defer unix.Close(fd)
		var placed, there unix.Stat_t
		if err := unix.Fstat(fd, &placed); err != nil || placed.Nlink == 0 {
			return err // removed, which is undone
		}
		err := unix.Lstat(dest, &there)
		stays := err == nil && there.Ino == placed.Ino && there.Dev == placed.Dev
		if stays && (placed.Mode&unix.S_IFMT == unix.S_IFDIR || placed.Nlink == 1) {
			return nil
		}
		return fmt.Errorf("the command moved or linked /%s, which is no part of the image: docker build has a mount there, which is busy (EBUSY)", path)
	})
	return nil
}

// aside moves what is at path, in the held directory dir, away until the end.
func (p *placer) aside(dir, path string) error {
	dest := filepath.Join(dir, tree.Base(path))
	if _, err := os.Lstat(dest); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	p.n++
	away := filepath.Join(p.s.work, "aside", fmt.Sprint(p.n))
	if err := os.Rename(dest, away); err != nil {
		return fmt.Errorf("move /%s aside: %w", path, err)
	}
	p.onUndo(func() error {
		keep, err := keepTimes(dir)
		if err == nil {
			err = errors.Join(layer.RemoveAll(dest), os.Rename(away, dest))
		}
		if errors.Is(err, os.ErrNotExist) { // the command removed the directory
			return layer.RemoveAll(away)
		}
		return errors.Join(err, keep())
	})
	return nil
}

// parents makes the missing parents of a mount's target; they are removed in the end
// if the command put nothing into them (BuildKit executor/stubs.go).
func (p *placer) parents(dir string) error {
	var missing []string
	for q := dir; q != ""; q = tree.Parent(q) {
		if _, err := p.root.Lstat(q); err == nil {
			break
		}
		missing = append(missing, q)
	}
	for _, q := range slices.Backward(missing) {
		dir, err := p.hold(tree.Parent(q))
		if err != nil {
			return err
		}
		restoreTimes, err := keepTimes(dir)
		if err != nil {
			return err
		}
		d := filepath.Join(dir, tree.Base(q))
		if err := errors.Join(os.Mkdir(d, 0o755), os.Chmod(d, 0o755), restoreTimes()); err != nil {
			return err
		}
		p.onUndo(func() error {
			keep, err := keepTimes(dir)
			if rerr := unix.Rmdir(d); rerr != nil && rerr != unix.ENOTEMPTY && rerr != unix.ENOENT && rerr != unix.ENOTDIR {
				return errors.Join(err, rerr)
			}
			return errors.Join(err, keep())
		})
	}
	return nil
}

// keepTimes returns a function that gives the directory its present times again.
func keepTimes(dir string) (func() error, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return func() error { return nil }, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	ts := []unix.Timespec{st.Atim, st.Mtim}
	return func() error {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir, ts, 0); err != nil && err != unix.ENOENT {
			return &os.PathError{Op: "utimes", Path: dir, Err: err}
		}
		return nil
	}, nil
}

func (p *placer) bind(q string, m *Mount) error {
	if m.Tree == nil {
		return p.at(q, func(dest string) error { return os.Mkdir(dest, 0o755) })
	}
	sel, err := tree.Resolve(m.Tree, m.Selector, true)
	if err != nil {
		return err
	}
	e, err := m.Tree.Lstat(sel)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = errors.New("not found")
		}
		return fmt.Errorf("source /%s: %w", tree.Clean(m.Selector), err)
	}
	fill := func(dest string) error {
		if !e.Mode.IsDir() {
			return materializeFile(m.Tree, sel, dest)
		}
		if err := os.Mkdir(dest, 0o755); err != nil {
			return err
		}
		return materialize(m.Tree, sel, dest)
	}
	if topOf(q) != "dev" {
		return p.at(q, fill)
	}
	// The runtime may have mounted /dev without the right to execute what is in
	// it, and a heredoc script (/dev/pipes/EOF) has to be executed.
	file, err := p.outside()
	if err != nil {
		return err
	}
	if err := fill(file); err != nil {
		return err
	}
	return p.at(q, func(dest string) error { return os.Symlink(file, dest) })
}

// outside returns a path for a file outside of the root that every user can
// reach, and that goes away in the end.
func (p *placer) outside() (string, error) {
	dir := filepath.Join(p.s.work, "aside")
	if err := errors.Join(os.Chmod(p.s.work, 0o711), os.Chmod(dir, 0o711)); err != nil {
		return "", err
	}
	p.n++
	path := filepath.Join(dir, fmt.Sprint(p.n))
	p.onUndo(func() error { return layer.RemoveAll(path) })
	return path, nil
}

// cache moves the cache's directory to the target, and back in the end.
func (p *placer) cache(q string, m *Mount) error {
	sum := sha256.Sum256([]byte(m.CacheID))
	dir := filepath.Join(p.s.work, "caches", hex.EncodeToString(sum[:]))
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		if err := newCache(dir, m); err != nil {
			return err
		}
	}
	return p.at(q, func(dest string) error {
		if m.ReadOnly {
			return copyDir(dir, dest)
		}
		if err := os.Rename(dir, dest); err != nil {
			return err
		}
		p.onUndo(func() error {
			if err := os.Rename(dest, dir); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		})
		return nil
	})
}

// copyDir makes dest a private copy of dir, for what must not be written to.
func copyDir(dir, dest string) error {
	d, err := tree.OpenDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := os.Mkdir(dest, 0o755); err != nil {
		return err
	}
	return materialize(d.WithXattrs(), "", dest)
}

// newCache makes a cache's directory; it appears whole or not at all.
func newCache(dir string, m *Mount) error {
	tmp := dir + ".new"
	if err := layer.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return err
	}
	if m.Tree != nil {
		sel, err := tree.Resolve(m.Tree, m.Selector, true)
		if err == nil {
			err = materialize(m.Tree, sel, tmp)
		}
		if err != nil {
			return fmt.Errorf("fill the cache: %w", err)
		}
	}
	return os.Rename(tmp, dir)
}

// private returns a directory on tmpfs, for what must not touch a disk; users
// other than root can reach files in it whose names they know.
func (p *placer) private() (string, error) {
	if p.s.shm != "" {
		return p.s.shm, nil
	}
	base := "/dev/shm"
	var fs unix.Statfs_t
	if unix.Statfs(p.s.lot.at(base), &fs) != nil || fs.Type != unix.TMPFS_MAGIC {
		base = p.s.work
		if err := os.Chmod(base, 0o711); err != nil {
			return "", err
		}
	}
	dir, err := os.MkdirTemp(base, ".hako-")
	if err != nil {
		return "", err
	}
	p.s.shm = dir
	return dir, errors.Join(os.Chmod(dir, 0o711), p.s.lot.journal.extra(dir))
}

// secret lays the secret's bytes on tmpfs and a link to them at the target.
func (p *placer) secret(q string, m *Mount) error {
	dir, err := p.private()
	if err != nil {
		return err
	}
	p.n++
	file := filepath.Join(dir, fmt.Sprint(p.n))
	p.onUndo(func() error {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
	if err := os.WriteFile(file, m.Data, 0o600); err != nil {
		return err
	}
	if err := errors.Join(os.Chown(file, int(m.UID), int(m.GID)), os.Chmod(file, m.Mode.FileMode().Perm())); err != nil {
		return err
	}
	return p.at(q, func(dest string) error { return os.Symlink(file, dest) })
}

// ssh serves a socket at the target that leads to the agent.
func (p *placer) ssh(ctx context.Context, q string, m *Mount) error {
	dir, err := p.private()
	if err != nil {
		return err
	}
	p.n++
	sock := filepath.Join(dir, fmt.Sprintf("%d.sock", p.n))
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", sock)
	if err != nil {
		return err
	}
	relay := &relay{dial: m.Dial}
	relay.wg.Go(func() { relay.serve(ctx, ln) })
	p.onUndo(func() error {
		err := ln.Close()
		relay.stop()
		return err
	})
	if err := errors.Join(os.Chown(sock, int(m.UID), int(m.GID)), os.Chmod(sock, m.Mode.FileMode().Perm())); err != nil {
		return err
	}
	return p.at(q, func(dest string) error { return os.Symlink(sock, dest) })
}

// A relay connects clients of a socket with an agent. stop ends all connections.
type relay struct {
	dial func(ctx context.Context) (net.Conn, error)
	wg   sync.WaitGroup
	mu   sync.Mutex
	open []net.Conn
	over bool
}

func (r *relay) serve(ctx context.Context, ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.connect(ctx, c) })
	}
}

func (r *relay) keep(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		r.open = append(r.open, c)
	}
	return !r.over
}

func (r *relay) connect(ctx context.Context, c net.Conn) {
	defer c.Close()
	a, err := r.dial(ctx)
	if err != nil {
		return
	}
	defer a.Close()
	if !r.keep(c) || !r.keep(a) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(a, c)
		a.Close()
	}()
	_, _ = io.Copy(c, a)
	c.Close()
	<-done
}

func (r *relay) stop() {
	r.mu.Lock()
	r.over = true
	for _, c := range r.open {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.wg.Wait()
}
