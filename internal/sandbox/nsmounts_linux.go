// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/tree"
)

// A nsPlacer makes RUN's mounts: real ones, of directories and files that it
// prepares.
type nsPlacer struct {
	s      *Namespace
	cwd    string
	root   tree.FS
	mounts []confinedMount
	files  []*os.File // descriptors that the mounts name, from firstFD+1 on
	undo   []func() error
}

func (p *nsPlacer) close() error {
	var errs []error
	for _, f := range p.files {
		errs = append(errs, f.Close())
	}
	for _, f := range slices.Backward(p.undo) {
		errs = append(errs, f())
	}
	p.files, p.undo = nil, nil
	return errors.Join(errs...)
}

func (p *nsPlacer) place(ctx context.Context, proc *Process) error {
	mounts := lastOfEach(proc.Mounts)
	for i := range mounts {
		m := &mounts[i]
		dest := absolute(m.Dest, p.cwd)
		if dest == "" {
			return errors.New("the root cannot be mounted over")
		}
		if err := p.mount(ctx, dest, m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Dest, err)
		}
	}
	return nil
}

func (p *nsPlacer) mount(ctx context.Context, dest string, m *Mount) error {
	if p.s.trial.UserNamespace && m.Tree != nil {
		here := *m
		here.Tree = withoutDevices{m.Tree}
		m = &here
	}
	if p.s.trial.OneID {
		if err := ownerNotMapped(m); err != nil {
			return err
		}
		if m.Tree != nil {
			m.Tree = ownedByRoot{m.Tree}
		}
	}
	var flags uint64
	if m.ReadOnly {
		flags = rdOnly
	}
	switch m.Type {
	case Bind:
		return p.bind(dest, m, flags)
	case Cache:
		return p.cache(ctx, dest, m, flags)
	case Tmpfs:
		at, err := tree.Resolve(p.root, dest, true)
		if err != nil {
			return err
		}
		opt := []string{fmt.Sprintf("mode=%o", tmpfsMode(p.root, at))}
		if m.Size > 0 {
			opt = append(opt, fmt.Sprintf("size=%d", m.Size))
		}
		p.mounts = append(p.mounts, confinedMount{Type: "tmpfs", Dest: dest, Options: opt, Flags: flags | noSuid})
		return nil
	case Secret:
		p.mounts = append(p.mounts, confinedMount{
			Dest: dest, Data: append([]byte{}, m.Data...), Mode: uint32(m.Mode), UID: m.UID, GID: m.GID,
			Flags: noSuid | noDev | noExec | rdOnly,
		})
		return nil
	case SSH:
		return p.ssh(ctx, dest, m)
	}
	return fmt.Errorf("unknown mount type %d", m.Type)
}

// ownerNotMapped refuses a mount whose owner is to be another than the one there is.
func ownerNotMapped(m *Mount) error {
	uid, gid := m.UID, m.GID
	if m.Type == Cache && m.Tree != nil {
		e, err := m.Tree.Lstat(tree.Clean(m.Selector))
		if err != nil {
			return fmt.Errorf("look at what the cache begins with: %w", err)
		}
		uid, gid = e.UID, e.GID
	}
	if uid == 0 && gid == 0 {
		return nil
	}
	return NotMapped(fmt.Sprintf("RUN --mount=type=%s of the owner %d:%d", m.Type, uid, gid))
}

// withoutDevices shows a tree where the kernel makes no device nodes.
type withoutDevices struct{ tree.FS }

func (t withoutDevices) ReadDir(p string) ([]tree.Entry, error) {
	list, err := t.FS.ReadDir(p)
	return slices.DeleteFunc(slices.Clone(list), func(e tree.Entry) bool { return e.Mode.IsDevice() }), err
}

// ownedByRoot shows a tree where a single id is mapped, so that no file can have
// another owner.
type ownedByRoot struct{ tree.FS }

func (t ownedByRoot) Lstat(p string) (tree.Entry, error) {
	e, err := t.FS.Lstat(p)
	e.UID, e.GID = 0, 0
	return e, err
}

func (t ownedByRoot) ReadDir(p string) ([]tree.Entry, error) {
	list, err := t.FS.ReadDir(p)
	list = slices.Clone(list)
	for i := range list {
		list[i].UID, list[i].GID = 0, 0
	}
	return list, err
}

// show attaches the file or directory at path.
func (p *nsPlacer) show(dest, path string, file bool, flags uint64) error {
	d, err := detachDir(path)
	if err != nil {
		return err
	}
	if err := d.own.Close(); err != nil {
		return errors.Join(err, d.child.Close())
	}
	p.files = append(p.files, d.child)
	p.mounts = append(p.mounts, confinedMount{FD: firstFD + len(p.files), Dest: dest, File: file, Flags: flags})
	return nil
}

// scratch returns a new name for a directory or file that only this build has.
func (s *Namespace) scratch() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	return filepath.Join(s.dir, "mounts", fmt.Sprint(s.n))
}

// A bindKey is what a bind mount shows.
type bindKey struct {
	fsys tree.FS
	sel  string
}

// A bindSource is that on disk, for all commands that only read it.
type bindSource struct {
	done chan struct{}
	path string
	file bool
	err  error
}

func (p *nsPlacer) bind(dest string, m *Mount, flags uint64) error {
	if m.Tree == nil {
		path := p.s.scratch()
		p.undo = append(p.undo, func() error { return layer.RemoveAll(path) })
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		return p.show(dest, path, false, flags)
	}
	sel, err := tree.Resolve(m.Tree, m.Selector, true)
	if err != nil {
		return err
	}
	if !m.ReadOnly {
		// What is written to it goes away with it.
		src := p.s.copySource(m, sel)
		p.undo = append(p.undo, func() error { return layer.RemoveAll(src.path) })
		if src.err != nil {
			return src.err
		}
		return p.show(dest, src.path, src.file, flags)
	}
	src := p.s.sharedSource(m, sel)
	if src.err != nil {
		return src.err
	}
	return p.show(dest, src.path, src.file, flags)
}

// sharedSource returns the one copy for readers, made by the first.
func (s *Namespace) sharedSource(m *Mount, sel string) *bindSource {
	key := bindKey{m.Tree, sel}
	s.mu.Lock()
	src := s.binds[key]
	if src != nil {
		s.mu.Unlock()
		<-src.done
		return src
	}
	src = &bindSource{done: make(chan struct{})}
	s.binds[key] = src
	s.mu.Unlock()
	made := s.copySource(m, sel)
	src.path, src.file, src.err = made.path, made.file, made.err
	close(src.done)
	return src
}

func (s *Namespace) copySource(m *Mount, sel string) *bindSource {
	src := &bindSource{path: s.scratch()}
	e, err := m.Tree.Lstat(sel)
	switch {
	case errors.Is(err, os.ErrNotExist):
		src.err = fmt.Errorf("source /%s: not found", tree.Clean(m.Selector))
	case err != nil:
		src.err = fmt.Errorf("source /%s: %w", tree.Clean(m.Selector), err)
	case e.Mode.IsDir():
		if src.err = os.Mkdir(src.path, 0o755); src.err == nil {
			src.err = materialize(m.Tree, sel, src.path)
		}
	default:
		src.file = true
		src.err = materializeFile(m.Tree, sel, src.path)
	}
	return src
}

// cache shows the directory of a cache mount, which all builds with this work
// directory share.
func (p *nsPlacer) cache(ctx context.Context, dest string, m *Mount, flags uint64) error {
	sum := sha256.Sum256([]byte(m.CacheID))
	dir := filepath.Join(p.s.caches(), hex.EncodeToString(sum[:]))
	lock, dir, err := p.lockCache(ctx, dir, m)
	if err != nil {
		return err
	}
	p.undo = append(p.undo, lock.Close)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		if err := newCache(dir, m); err != nil {
			return err
		}
	}
	if !m.Private && !m.Locked {
		// Made by one, used by all.
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH); err != nil {
			return err
		}
	}
	return p.show(dest, dir, false, flags)
}

// lockCache locks a cache's directory for making it, and for as long as the
// command runs if it wants no others there. It returns the directory to use.
func (p *nsPlacer) lockCache(ctx context.Context, dir string, m *Mount) (*os.File, string, error) {
	for n := 1; ; n++ {
		at := dir
		if m.Private && n > 1 {
			at = fmt.Sprintf("%s.%d", dir, n)
		}
		f, err := os.OpenFile(at+".lock", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, "", fmt.Errorf("lock the cache: %w", err)
		}
		for {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			if err == nil {
				return f, at, nil
			}
			if err == unix.EWOULDBLOCK && m.Private {
				break // somebody has it: the next one
			}
			// Shared by others already, and so made: that is as good.
			if err == unix.EWOULDBLOCK && !m.Locked {
				if _, serr := os.Lstat(at); serr == nil && unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
					return f, at, nil
				}
			}
			if err != unix.EWOULDBLOCK && err != unix.EINTR {
				return nil, "", errors.Join(fmt.Errorf("lock the cache: %w", err), f.Close())
			}
			select {
			case <-ctx.Done():
				return nil, "", errors.Join(context.Cause(ctx), f.Close())
			case <-time.After(20 * time.Millisecond):
			}
		}
		if err := f.Close(); err != nil {
			return nil, "", err
		}
	}
}

// ssh serves a socket that leads to the agent.
func (p *nsPlacer) ssh(ctx context.Context, dest string, m *Mount) error {
	path := p.s.scratch()
	// The name of a socket is limited to 107 bytes, our directory is not.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", short)
	if err != nil {
		return err
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	relay := &relay{dial: m.Dial}
	relay.wg.Go(func() { relay.serve(ctx, ln) })
	p.undo = append(p.undo, func() error {
		err := ln.Close()
		relay.stop()
		return errors.Join(err, os.Remove(path))
	})
	if err := errors.Join(os.Chown(path, int(m.UID), int(m.GID)), os.Chmod(path, m.Mode.FileMode().Perm())); err != nil {
		return err
	}
	return p.show(dest, path, true, 0)
}
