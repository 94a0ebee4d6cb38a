// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tickWait bounds the wait for a file system's clock to move on: local
	// ones tick every 4 ms, others up to every second.
	tickWait     = 200 * time.Millisecond
	tickWaitLong = 1100 * time.Millisecond
)

// A selftest is what a build has found out about its file system, once.
type selftest struct {
	once  sync.Once
	trust bool
	err   error

	watches   sync.Once
	unwatched error
}

// trusted tells whether ctime shows every change on the file system of dir.
func (s *selftest) trusted(dir string, logf func(format string, args ...any)) (bool, error) {
	s.once.Do(func() {
		var why string
		s.trust, why, s.err = trustsCtime(dir)
		if s.err == nil && !s.trust {
			logf("this file system does not show every change (%s): file contents are compared after each RUN", why)
		}
	})
	return s.trust, s.err
}

// watchable returns why the kernel cannot be relied on to tell what changes on the
// file system of dir, nil if it can.
func (s *selftest) watchable(dir string) error {
	s.watches.Do(func() { s.unwatched = trustsWatches(dir) })
	return s.unwatched
}

// trustsCtime proves, in dir, that this file system moves a file's ctime for
// everything that can change it. It does not on tmpfs, where a store through a
// shared mapping whose page was read before goes unnoticed; there contents have
// to be compared. The reason is returned for people.
func trustsCtime(dir string) (bool, string, error) {
	d, err := os.MkdirTemp(dir, "selftest")
	if err != nil {
		return false, "", fmt.Errorf("test the file system: %w", err)
	}
	defer os.RemoveAll(d)
	p := filepath.Join(d, "f")
	if err := os.WriteFile(p, make([]byte, 4096), 0o600); err != nil {
		return false, "", fmt.Errorf("test the file system: %w", err)
	}
	mapped, unmap, err := mapShared(p)
	if err != nil {
		return false, "files cannot be mapped", nil
	}
	defer unmap()
	_ = mapped[0] // the page is present and clean now
	steps := []struct {
		name string
		do   func() error
	}{
		{"a write", func() error { return writeByte(p) }},
		{"a store through a mapping", func() error { mapped[1]++; return unix.Msync(mapped, unix.MS_SYNC) }},
		{"chmod", func() error { return os.Chmod(p, 0o640) }},
		{"utimes", func() error { return os.Chtimes(p, time.Unix(1, 0), time.Unix(1, 0)) }},
		{"truncate", func() error { return os.Truncate(p, 4000) }},
		{"link", func() error { return os.Link(p, p+"l") }},
		{"rename", func() error { return os.Rename(p+"l", p+"m") }},
	}
	for _, s := range steps {
		before, err := ctime(p)
		if err != nil {
			return false, "", err
		}
		if err := waitTick(d, before); err != nil {
			return false, err.Error(), nil
		}
		if err := s.do(); err != nil {
			return false, fmt.Sprintf("%s fails: %v", s.name, err), nil
		}
		after, err := ctime(p)
		if err != nil {
			return false, "", err
		}
		if after == before {
			return false, s.name + " does not move ctime", nil
		}
	}
	return true, "", nil
}

func mapShared(p string) ([]byte, func(), error) {
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, err
	}
	return b, func() { _ = unix.Munmap(b) }, nil
}

func writeByte(p string) error {
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte{1}, 7)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func ctime(p string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return 0, err
	}
	return unix.TimespecToNsec(st.Ctim), nil
}

// newCtime returns the ctime that a file in dir gets now.
func newCtime(dir string) (int64, error) {
	f, err := os.CreateTemp(dir, ".tick*") // others may do so beside us
	if err != nil {
		return 0, err
	}
	now, err := ctime(f.Name())
	return now, errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// waitTick returns when a new file in dir would get a ctime later than t, so that a
// change from now on is told from one before. The wait is bounded: if the
// clock was set back it would never end.
func waitTick(dir string, t int64) error {
	start := time.Now()
	for {
		now, err := newCtime(dir)
		if err != nil {
			return err
		}
		if now > t {
			return nil
		}
		waited := time.Since(start)
		if waited > tickWaitLong {
			return fmt.Errorf("the file system's clock stands still or was set back")
		}
		if waited > tickWait {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		time.Sleep(time.Millisecond)
	}
}
