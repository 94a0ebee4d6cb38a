// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/tree"
)

// runInstalled runs p in the root as it stands and finds the changes.
func (s *InPlace) runInstalled(ctx context.Context, base tree.FS, p *Process) (*Result, error) {
	live, err := tree.OpenDir(s.lot.at(""))
	if err != nil {
		return nil, err
	}
	if err := s.recordBefore(ctx); err != nil {
		return nil, errors.Join(err, live.Close())
	}
	clean := s.cleanShared()
	pl := &placer{s: s, root: live, masked: s.masked()}
	err = pl.place(ctx, p)
	var peak int64
	if err == nil {
		r := &runner{root: live, at: s.lot.at(""), null: s.null, memory: s.memory}
		err = s.watching(func() (err error) {
			peak, err = r.run(ctx, p)
			return err
		})
	}
	err = errors.Join(err, pl.remove(), clean())
	if err == nil {
		err = s.checkVolumes(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, live.Close())
	}
	return s.findChanges(ctx, live.WithXattrs(), base, peak)
}

// recordBefore makes sure that the record is fresh and that everything from now
// on gets a later ctime.
func (s *InPlace) recordBefore(ctx context.Context) error {
	trust, err := s.self.trusted(s.work, s.opt.Logf)
	if err != nil {
		return err
	}
	if err := s.recordRoot(ctx, trust); err != nil {
		return err
	}
	for m, v := range s.volumes {
		if v.record, err = s.volumeRecord(ctx, m, v.aside); err != nil {
			return err
		}
	}
	if trust {
		if err := waitTick(s.work, s.live.record.latest); err != nil {
			s.opt.Logf("%v: file contents are compared after each RUN", err)
			s.self.trust = false
			return s.live.lookAtAll()
		}
	}
	return nil
}

// recordRoot makes sure that the record of the root is fresh, and has the kernel
// tell what changes from now on if that can be had.
func (s *InPlace) recordRoot(ctx context.Context, trust bool) (err error) {
	defer func() { s.live.stale = err != nil }()
	switch {
	case s.live.record == nil:
		if trust && !s.opt.LookAtAll {
			s.live.watch = s.newWatch()
		}
		s.live.record, err = s.firstRecord(ctx)
	case s.live.stale:
		s.live.record, err = s.recordAfter(ctx)
	}
	if err == nil && s.live.watch != nil && !s.live.watch.whole() {
		err = s.live.endWatch() // more directories than may be watched
	}
	return err
}

// firstRecord returns the record of the root when it was just installed.
func (s *InPlace) firstRecord(ctx context.Context) (*record, error) {
	if s.live.watch != nil {
		s.live.clock, _ = newClock() // files are looked at without one
		if asOf, ok := s.unpackedAt(); ok {
			return takeBareRecord(ctx, s.lot.root, s.masked(), s.live.watch, s.live.image, asOf)
		}
	}
	return takeRecord(ctx, s.lot.root, s.masked(), s.live.watch)
}

// recordAfter returns the record of the root as it is now.
func (s *InPlace) recordAfter(ctx context.Context) (*record, error) {
	s.live.heedClock()
	if s.live.watch == nil {
		return takeRecordAfter(ctx, s.lot.root, s.masked(), s.live.record, nil)
	}
	return followRecord(ctx, s.lot.root, s.masked(), s.live.record, s.live.watch)
}

// heedClock makes sure that a bare record is believed only if ctimes go up.
func (l *installed) heedClock() {
	if l.record.image != nil && l.clock.wasSet() {
		l.record.asOf = 0
	}
}

// lookAtAll makes sure that every file is looked at after the next command, and that
// no ctime is believed.
func (l *installed) lookAtAll() error {
	l.record.asOf = 0
	return l.endWatch()
}

// newWatch returns a watch for the root, nil if there can be none. What lies on
// volumes is on file systems of which nothing is known.
func (s *InPlace) newWatch() *dirWatch {
	if len(s.parkedVolumes()) > 0 || s.self.watchable(s.work) != nil {
		return nil
	}
	w, err := newDirWatch(s.lot.root, s.memory.limit())
	if err != nil {
		return nil
	}
	return w
}

// watching calls fn, and follows what the kernel tells meanwhile if the root is
// watched.
func (s *InPlace) watching(fn func() error) error {
	if s.live.watch == nil {
		return fn()
	}
	return s.live.watch.during(fn)
}

// endWatch gives up the watch of the root.
func (l *installed) endWatch() error {
	err := l.watch.close()
	l.watch = nil
	return err
}

// end gives up what the kernel tells of the root, if there is one.
func (l *installed) end() error {
	if l == nil {
		return nil
	}
	err := errors.Join(l.endWatch(), l.clock.close())
	l.clock = nil
	return err
}

// findChanges compares the live root with the record and the image.
func (s *InPlace) findChanges(ctx context.Context, live *tree.Dir, base tree.FS, peak int64) (*Result, error) {
	start := time.Now()
	after, err := s.recordAfter(ctx)
	if err != nil {
		return nil, errors.Join(err, live.Close())
	}
	sc := &scan{live: live, base: base, hashAll: !s.self.trust}
	changed, err := sc.run(ctx, s.live.record, after)
	if err != nil {
		return nil, errors.Join(err, live.Close())
	}
	s.live.record = after
	return &Result{
		Changes: sc.changes(), Looked: after.looked, Changed: changed, Scan: time.Since(start), PeakRSS: peak,
		done: live.Close,
	}, nil
}

// cleanShared remembers what is in the shared memory file systems that commands
// see, and returns a function that removes what a command left there.
func (s *InPlace) cleanShared() func() error {
	dirs := []string{"dev/shm", "dev/mqueue"}
	had := make(map[string]map[string]bool)
	for _, d := range dirs {
		if !isMountPoint(s.lot.at(d)) {
			continue
		}
		names, err := os.ReadDir(s.lot.at(d))
		if err != nil {
			continue
		}
		had[d] = make(map[string]bool)
		for _, n := range names {
			had[d][n.Name()] = true
		}
	}
	return func() error {
		for d, names := range had {
			now, err := os.ReadDir(s.lot.at(d))
			if err != nil {
				return err
			}
			for _, n := range now {
				p := tree.Join(d, n.Name())
				if !names[n.Name()] && "/"+p != s.shm {
					if err := layer.RemoveAll(s.lot.at(p)); err != nil {
						return fmt.Errorf("clean /%s: %w", d, err)
					}
				}
			}
		}
		return nil
	}
}

func isMountPoint(p string) bool {
	var a, b unix.Stat_t
	if unix.Lstat(p, &a) != nil || unix.Lstat(filepath.Dir(p), &b) != nil {
		return false
	}
	return a.Dev != b.Dev
}
