// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// Of a root that was just unpacked from an image's layers all is known but what the
// file system has added: inodes, and ctimes. To look at 100,000 files for these
// takes longer than all that most commands do, and in a small container the kernel
// has to read every inode from disk again, twice with an overlay. So the first
// record of such a root looks at directories only, which it has to open anyway to
// have them watched; of files it has bare nodes, with name and type.
//
// A file that the kernel tells of is looked at, and what it was before is what the
// image says. If the image has other names for it, which have to be looked at too, all
// is looked at then. A file with a ctime of before the command is as it was, so that its node
// is bare no more; one with a later ctime has changed. That is so unless somebody
// set the clock: then every file is compared with the image.

// takeBareRecord is takeRecord without a look at files, which are those of image. All
// were made until asOf, a time of the file system's clock, and nothing may change
// before that is over.
func takeBareRecord(ctx context.Context, fd int, masked map[string]bool, wt *dirWatch, image tree.FS, asOf int64) (*record, error) {
	w := newWalker(ctx, masked)
	w.watch, w.bare = wt, true
	r, err := w.walk(fd, &dirRecord{})
	if err != nil {
		return nil, err
	}
	r.image, r.asOf = image, asOf
	r.latest = max(r.latest, asOf)
	return r, nil
}

// leave makes n, of which name and type are known, a bare node, or a directory that
// is looked at when it is opened. It returns false if n has to be looked at now.
func (w *walker) leave(path string, n *node) bool {
	switch {
	case n.mode == unix.DT_UNKNOWN<<12 || w.holders[path] && w.masked[tree.Join(path, n.name)]:
		return false
	case n.isDir():
		n.kids = &dirRecord{}
	default:
		n.bare = true
	}
	return true
}

// opened fills in what is known of n, a directory, now that it is open as fd.
func (w *walker) opened(fd int, n *node) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at %s: %w", n.name, err)
	}
	kids := n.kids
	*n = newNode(n.name, &st)
	n.kids = kids
	w.saw(n.ctime)
	return nil
}

// learn tells old, what a directory was before, what its bare nodes stand for: that
// is what nodes, which is the directory now, has in their places, unless it has
// changed since. What is left bare has changed.
func (w *walker) learn(old *dirRecord, nodes []node) {
	if w.asOf == 0 {
		return
	}
	j := 0
	for i := range old.nodes {
		o := &old.nodes[i]
		for j < len(nodes) && nodes[j].name < o.name {
			j++
		}
		if o.bare && j < len(nodes) && nodes[j].name == o.name && nodes[j].ctime <= w.asOf && !nodes[j].isDir() {
			*o = nodes[j]
		}
	}
}

// unpackedTime returns the time that the file at path, n now, was unpacked with, if
// the file system can hold that.
func (s *scan) unpackedTime(path string, n *node) (int64, bool) {
	e, err := s.base.Lstat(path)
	if err != nil || !holdsTime(e.ModTime.Unix()) || n.mtime%1e9 == 0 {
		return 0, false // the seconds have to do
	}
	return e.ModTime.UnixNano(), true
}

// unpackedAt returns a time of the clock of the root's file system before which all
// that is in the root was made. It is false where bare nodes would not do: if files
// may have other times than the image's layers say, as those that were copied from
// elsewhere have, or if the clock is not known.
func (s *InPlace) unpackedAt() (int64, bool) {
	if s.live.clock == nil {
		return 0, false
	}
	for _, l := range s.live.layers {
		if !l.IsForeign() {
			return 0, false
		}
	}
	var root, work unix.Stat_t
	if unix.Fstat(s.lot.root, &root) != nil || unix.Stat(s.work, &work) != nil || root.Dev != work.Dev {
		return 0, false
	}
	t, err := newCtime(s.work)
	return t, err == nil
}

// A clock knows whether the system's time was set, which ctimes go by, since it
// was made.
type clock struct{ fd int }

// newClock returns a clock. The kernel tells by a timer that nobody waits for
// (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
func newClock() (*clock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	const never = 1 << 33 // the year 2242
	at := unix.ItimerSpec{Value: unix.Timespec{Sec: never}}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &at, nil); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set a timer: %w", err)
	}
	return &clock{fd: fd}, nil
}

// wasSet tells whether the time was set since the last call, or may have been.
func (c *clock) wasSet() bool {
	if c == nil {
		return true
	}
	var b [8]byte
	_, err := unix.Read(c.fd, b[:])
	return err != unix.EAGAIN
}

func (c *clock) close() error {
	if c == nil {
		return nil
	}
	return unix.Close(c.fd)
}
