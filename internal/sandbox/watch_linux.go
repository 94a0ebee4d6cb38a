// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// watched is what changes a directory's names, or what stat(2) tells of them.
	// A store through a shared mapping is no event, but the file had to be opened
	// for writing, and closing that is one: whoever opened it is gone when the
	// events are read. IN_MODIFY is there for truncate(2), which opens nothing.
	watched = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE |
		unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ONLYDIR
	// watchCost is about what a watch takes of a container's memory: the kernel
	// keeps the directory's inodes and names, of an overlay twice, and the mark.
	watchCost = 2560
	// watchShare is the part of the container's memory, and of the watches that
	// the user may have on the whole machine, that a build takes: one in so many.
	watchShare = 8
	// mostNames is how many names are kept in mind for one command, at some 100
	// bytes each. One that does something to more is not quick, and a walk no loss.
	mostNames = 20000
)

// A dirWatch has the kernel tell which names in the directories of a tree change, so
// that a look at these does for a look at all (inotify(7), which needs no
// privilege). It knows when it does not know: then all has to be looked at.
//
// Directories are watched, not files: what happens to a file through one of its
// names is an event of the directory of that name. Who follows the events has to
// look after the names that a file has elsewhere. A name that was made and is gone
// cannot be looked after: it may have been another name of a file that is still
// there. If anything was changed through it, or if it was a directory, in which
// nothing is watched, then the dirWatch does not know.
type dirWatch struct {
	file *os.File
	fd   int // of file, which must not be asked for it: that would make reads block
	dev  uint64
	most int // how many directories may be watched

	mu     sync.Mutex
	paths  map[int32]string          // watch descriptor → directory
	dirty  map[int32]map[string]bool // what changed there; "" for the directory itself
	made   map[madeName]fate
	moving map[uint32]fate // cookie → what was moved away
	names  int             // in dirty; what is in made is there, too
	lost   bool            // anything may have changed, and what does is not noted any more
	broken bool            // directories are missing
}

// A madeName is a name in a watched directory that did not exist before.
type madeName struct {
	wd   int32
	name string
}

// A fate is what happened to a new name.
type fate int

const (
	untouched fate = iota
	made           // it is there
	written        // it is there, and its file was changed through it
	gone           // it was there; who has its file open may still change that
)

// newDirWatch returns a watch of no directory yet, for the tree on the file system
// of root. An error only means that all has to be looked at.
func newDirWatch(root int, memory int64) (*dirWatch, error) {
	most, err := watchLimit(memory)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return nil, fmt.Errorf("watch /: %w", err)
	}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch /: %w", err)
	}
	w := &dirWatch{
		file: os.NewFile(uintptr(fd), "inotify"), fd: fd, dev: uint64(st.Dev), most: most, //nolint:unconvert // differs by architecture
		paths: make(map[int32]string),
	}
	w.forget()
	return w, nil
}

// watchLimit returns how many directories may be watched in a container with so
// much memory, 0 for no limit. The user's watches are counted for the whole
// machine: others must get theirs.
func watchLimit(memory int64) (int, error) {
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_user_watches")
	if err != nil {
		return 0, fmt.Errorf("watch /: %w", err)
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil {
		return 0, fmt.Errorf("watch /: %w", err)
	}
	n /= watchShare
	if memory > 0 {
		n = min(n, int(memory/watchShare/watchCost))
	}
	return n, nil
}

// add watches the open directory fd, which is at path. It has to be called before
// the directory is read.
func (w *dirWatch) add(fd int, path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken {
		return
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || uint64(st.Dev) != w.dev { //nolint:unconvert // differs by architecture
		w.broken = true // another file system, for which nothing was proved
		return
	}
	wd, err := unix.InotifyAddWatch(w.fd, "/proc/self/fd/"+strconv.Itoa(fd), watched)
	if err != nil {
		w.broken = true
		return
	}
	w.paths[int32(wd)] = path // of a directory that was moved, the new one
	w.broken = len(w.paths) > w.most
}

// whole tells whether all directories that were added are watched.
func (w *dirWatch) whole() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.broken
}

// during calls fn and takes the events in meanwhile: the kernel's queue is short.
// Names that were made before are no longer new: that was us, who know what they
// are.
func (w *dirWatch) during(fn func() error) error {
	w.drain()
	clear(w.made)
	var reader sync.WaitGroup
	_ = w.file.SetReadDeadline(time.Time{})
	reader.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := w.file.Read(buf)
			if err != nil {
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					w.lose()
				}
				return
			}
			w.took(buf[:n])
		}
	})
	defer reader.Wait()
	defer w.file.SetReadDeadline(time.Unix(1, 0)) //nolint:errcheck // it is one that has deadlines, see selftest_linux.go
	return fn()
}

func (w *dirWatch) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = true
}

// changed returns what may have changed since the last call: directories, with the
// names in them, among which "" says nothing more. ok is false if that is not known.
// It must not be called during during.
func (w *dirWatch) changed() (dirs map[string]map[string]bool, ok bool) {
	w.drain()
	w.mu.Lock()
	defer w.mu.Unlock()
	dirs = make(map[string]map[string]bool)
	for wd, names := range w.dirty {
		if p, ok := w.paths[wd]; ok {
			dirs[p] = names
		}
	}
	ok = !w.lost && !w.broken && len(w.moving) == 0
	w.lost = false
	w.forget()
	return dirs, ok
}

// forget gives the memory back that is kept for names.
func (w *dirWatch) forget() {
	w.dirty, w.made, w.moving = make(map[int32]map[string]bool), make(map[madeName]fate), make(map[uint32]fate)
	w.names = 0
}

// drain takes in what is in the queue.
func (w *dirWatch) drain() {
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(w.fd, buf)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return
		case err != nil || n == 0:
			w.lose()
			return
		default:
			w.took(buf[:n])
		}
	}
}

// took takes in the events in b.
func (w *dirWatch) took(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(b) >= unix.SizeofInotifyEvent {
		// struct inotify_event of inotify(7): wd, mask, cookie, len, and the name,
		// which zero bytes end.
		size := min(int(binary.NativeEndian.Uint32(b[12:])), len(b)-unix.SizeofInotifyEvent)
		name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], []byte{0})
		m := madeName{int32(binary.NativeEndian.Uint32(b)), string(name)}
		w.event(m, binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[8:]))
		b = b[unix.SizeofInotifyEvent+size:]
	}
}

// event takes in what happened to a name. Events come in the order in which
// things happened.
func (w *dirWatch) event(m madeName, mask, cookie uint32) {
	if mask&unix.IN_IGNORED != 0 {
		delete(w.paths, m.wd) // the directory is gone; descriptors are not given again
		return
	}
	if w.lost {
		return
	}
	w.note(m)
	was, isMade := w.made[m]
	switch {
	case mask&(unix.IN_Q_OVERFLOW|unix.IN_UNMOUNT) != 0:
		w.lost = true
	case mask&unix.IN_ISDIR != 0 && mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
		w.lost = true // what happens in it is not watched, or elsewhere than it was
	case mask&unix.IN_CREATE != 0:
		if was != gone {
			w.made[m] = made
		}
	case mask&(unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_CLOSE_WRITE) != 0 && isMade:
		w.lost = w.lost || was == gone
		w.made[m] = max(was, written)
	case mask&unix.IN_DELETE != 0 && isMade:
		w.lost = w.lost || was == written
		w.made[m] = gone
	case mask&unix.IN_MOVED_FROM != 0 && isMade:
		w.moving[cookie] = was
		w.made[m] = gone
	case mask&unix.IN_MOVED_TO != 0:
		w.lost = w.lost || isMade // it took that one's place
		if f, ok := w.moving[cookie]; ok {
			w.made[m] = f
			delete(w.moving, cookie)
		}
	}
}

// note keeps a name in mind, of which a command may touch any number.
func (w *dirWatch) note(m madeName) {
	names := w.dirty[m.wd]
	switch {
	case names[m.name]:
	case w.names == mostNames:
		w.forget()
		w.lost = true
	case names == nil:
		w.dirty[m.wd] = map[string]bool{m.name: true}
		w.names++
	default:
		names[m.name] = true
		w.names++
	}
}

func (w *dirWatch) close() error {
	if w == nil {
		return nil
	}
	return w.file.Close()
}

// trustsWatches proves, in dir, that the kernel tells of everything that can
// change a file, or a directory, on its file system.
func trustsWatches(dir string) error {
	d, err := os.MkdirTemp(dir, "selftest")
	if err != nil {
		return fmt.Errorf("test watches: %w", err)
	}
	defer os.RemoveAll(d)
	fd, err := unix.Open(d, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("test watches: %w", err)
	}
	defer unix.Close(fd)
	w, err := newDirWatch(fd, 0)
	if err != nil {
		return err
	}
	defer w.file.Close()
	if err := w.file.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("test watches: %w", err)
	}
	if w.add(fd, "dir"); !w.whole() {
		return errors.New("test watches: a directory cannot be watched")
	}
	for _, s := range changesIn(d) {
		if err := s.do(); err != nil {
			return fmt.Errorf("test watches: %s: %w", s.name, err)
		}
		if dirs, _ := w.changed(); len(dirs) == 0 {
			return fmt.Errorf("the kernel does not tell of %s", s.name)
		}
	}
	return nil
}

// A step is something that changes a file system.
type step struct {
	name string
	do   func() error
}

// changesIn returns every kind of change to the directory d, in their order.
func changesIn(d string) []step {
	in := func(name string) string { return filepath.Join(d, name) }
	f, old := in("f"), time.Unix(1, 0)
	return []step{
		{"a new file", func() error { return os.WriteFile(f, make([]byte, 4096), 0o600) }},
		{"a write", func() error { return writeByte(f) }},
		{"a store through a mapping", func() error {
			mapped, unmap, err := mapShared(f)
			if err == nil {
				mapped[1]++
				unmap()
			}
			return err
		}},
		{"chmod", func() error { return os.Chmod(f, 0o640) }},
		{"chown", func() error { return os.Chown(f, os.Getuid(), os.Getgid()) }},
		{"utimes", func() error { return os.Chtimes(f, old, old) }},
		{"truncate", func() error { return os.Truncate(f, 4000) }},
		{"link", func() error { return os.Link(f, in("l")) }},
		{"rename", func() error { return os.Rename(in("l"), in("m")) }},
		{"unlink", func() error { return os.Remove(in("m")) }},
		{"symlink", func() error { return os.Symlink("f", in("s")) }},
		{"mkfifo", func() error { return unix.Mkfifo(in("p"), 0o600) }},
		{"mkdir", func() error { return os.Mkdir(in("d"), 0o700) }},
		{"chmod of the directory", func() error { return os.Chmod(d, 0o750) }},
		{"rmdir", func() error { return os.Remove(in("d")) }},
	}
}
