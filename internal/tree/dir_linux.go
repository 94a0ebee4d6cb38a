// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// resolveFlags make the kernel refuse every way out of the directory, and every
// link: a path of a tree has none in its middle (openat2(2)).
const resolveFlags = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

type dirHandle struct {
	f *os.File
	// noOpenat2 is set once the kernel, or a seccomp filter that does not
	// know the call, has refused openat2.
	noOpenat2 atomic.Bool
}

func newDirHandle(f *os.File) (*dirHandle, error) { return &dirHandle{f: f}, nil }

func (h *dirHandle) close() error { return h.f.Close() }

// isAbsence reports errors that mean "there is no such name in the tree".
// ELOOP and EXDEV are openat2's for a link or a way out; ENAMETOOLONG is left
// only for single components, which no file can have.
func isAbsence(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) ||
		errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENAMETOOLONG)
}

// with calls fn with the root's descriptor, which cannot be closed meanwhile.
func (h *dirHandle) with(fn func(fd int) error) error {
	rc, err := h.f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := rc.Control(func(fd uintptr) { ferr = fn(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// openDir opens the directory at p ("" is the root itself, opened anew).
func (h *dirHandle) openDir(root int, p string, flags int) (int, error) {
	flags |= unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if p == "" {
		return openat(root, ".", flags)
	}
	if !h.noOpenat2.Load() {
		fd, err := openat2(root, p, flags)
		switch {
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
			h.noOpenat2.Store(true)
		case errors.Is(err, unix.ENAMETOOLONG): // longer than PATH_MAX: step by step
		default:
			return fd, err
		}
	}
	return openSteps(root, p, flags)
}

// openSteps opens p one component at a time. O_NOFOLLOW with O_DIRECTORY makes
// a link at any of them fail with ENOTDIR.
func openSteps(root int, p string, flags int) (int, error) {
	cur := -1
	for p != "" {
		name, rest, _ := strings.Cut(p, "/")
		from, how := cur, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC
		if cur < 0 {
			from = root
		}
		if rest == "" {
			how = flags
		}
		next, err := openat(from, name, how)
		if cur >= 0 {
			_ = unix.Close(cur)
		}
		if err != nil {
			return -1, err
		}
		cur, p = next, rest
	}
	return cur, nil
}

func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func openat2(dir int, p string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags), Resolve: resolveFlags}
	for {
		fd, err := unix.Openat2(dir, p, &how)
		// EAGAIN: a rename or mount elsewhere came between (openat2(2)).
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// OpenDirectory opens the directory at p, for calls that take a descriptor.
func (d *Dir) OpenDirectory(p string) (*os.File, error) {
	if !validPath(p) {
		return nil, NotExist("open", p)
	}
	fd := -1
	err := d.h.with(func(root int) (err error) {
		fd, err = d.h.openDir(root, p, unix.O_RDONLY)
		return err
	})
	if err != nil {
		return nil, pathErr("open", p, err)
	}
	return os.NewFile(uintptr(fd), "/"+p), nil
}

// inParent calls fn with a descriptor of the directory that holds p.
func (d *Dir) inParent(op, p string, fn func(dir int, name string) error) error {
	if !validPath(p) {
		return NotExist(op, p)
	}
	err := d.h.with(func(root int) error {
		parent := Parent(p)
		if parent == "" {
			return fn(root, Base(p))
		}
		fd, err := d.h.openDir(root, parent, unix.O_PATH)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return fn(fd, Base(p))
	})
	return pathErr(op, p, err)
}

// Lstat implements [FS].
func (d *Dir) Lstat(p string) (Entry, error) {
	var e Entry
	err := d.inParent("lstat", p, func(dir int, name string) (err error) {
		if name == "" {
			name = "."
		}
		e, err = d.entry(dir, name, p)
		return err
	})
	return e, err
}

// entry returns the entry for name, of path p, in the directory dir.
func (d *Dir) entry(dir int, name, p string) (Entry, error) {
	var st unix.Stat_t
	if err := fstatat(dir, name, &st); err != nil {
		return Entry{}, err
	}
	e := Entry{
		Path: p, Mode: Mode(st.Mode), UID: st.Uid, GID: st.Gid,
		ModTime: time.Unix(st.Mtim.Unix()),
	}
	var err error
	switch {
	case e.Mode.IsRegular():
		e.Size = st.Size
	case e.Mode.IsSymlink():
		e.Link, err = readlinkat(dir, name, int(st.Size))
	case e.Mode.IsDevice():
		e.Major, e.Minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	}
	if err != nil {
		return Entry{}, err
	}
	if st.Nlink > 1 && !e.Mode.IsDir() {
		e.Node = NodeID{Dev: uint64(st.Dev), Ino: st.Ino}
	}
	if d.xattrs && (e.Mode.IsRegular() || e.Mode.IsDir()) {
		e.Xattrs, err = xattrsAt(dir, name, &st)
	}
	return e, err
}

func fstatat(dir int, name string, st *unix.Stat_t) error {
	for {
		err := unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func readlinkat(dir int, name string, size int) (string, error) {
	// One byte more than the target tells a complete answer from a cut one;
	// some filesystems report a size of 0.
	for n := max(size+1, 128); ; n *= 2 {
		buf := make([]byte, n)
		got, err := unix.Readlinkat(dir, name, buf)
		if errors.Is(err, unix.EINVAL) {
			return "", unix.ENOENT // was a link a moment ago
		}
		if err != nil {
			return "", err
		}
		if got < n {
			return string(buf[:got]), nil
		}
	}
}

// ReadDir implements [FS]. Names that vanish while they are read are left out.
func (d *Dir) ReadDir(p string) ([]Entry, error) {
	if !validPath(p) {
		return nil, NotExist("readdir", p)
	}
	var fd int
	err := d.h.with(func(root int) (err error) {
		fd, err = d.h.openDir(root, p, unix.O_RDONLY)
		return err
	})
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		if _, lerr := d.Lstat(p); lerr == nil {
			return nil, &fs.PathError{Op: "readdir", Path: "/" + p, Err: unix.ENOTDIR}
		}
	}
	if err != nil {
		return nil, pathErr("readdir", p, err)
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, pathErr("readdir", p, err)
	}
	slices.Sort(names)
	entries := make([]Entry, 0, len(names))
	for _, name := range names {
		e, err := d.entry(fd, name, Join(p, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, pathErr("readdir", Join(p, name), err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// Open implements [FS]. What it returns is an *os.File.
func (d *Dir) Open(p string) (io.ReadCloser, error) {
	var f *os.File
	err := d.inParent("open", p, func(dir int, name string) error {
		if name == "" {
			return ErrNotRegular
		}
		// Asked before, since opening a device can do something.
		var st unix.Stat_t
		if err := fstatat(dir, name, &st); err != nil {
			return err
		}
		if !Mode(st.Mode).IsRegular() {
			return ErrNotRegular
		}
		fd, err := openRegular(dir, name)
		if err == nil {
			f = os.NewFile(uintptr(fd), "/"+p)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openRegular opens a file that was regular a moment ago; O_NONBLOCK is for the
// case that it has become a FIFO.
func openRegular(dir int, name string) (int, error) {
	fd, err := openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return -1, ErrNotRegular
	}
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && !Mode(st.Mode).IsRegular() {
		err = ErrNotRegular
	}
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// xattrsAt returns the extended attributes of name, a regular file or directory
// that st describes.
func xattrsAt(dir int, name string, st *unix.Stat_t) (map[string]string, error) {
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := openat(dir, name, flags)
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil, nil // see WithXattrs
	}
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil, unix.ENOENT // no longer what it was
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return nil, err
	}
	if now.Dev != st.Dev || now.Ino != st.Ino {
		return nil, unix.ENOENT
	}
	return fxattrs(fd)
}

func fxattrs(fd int) (map[string]string, error) {
	list, err := sized(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	if errors.Is(err, unix.ENOTSUP) || len(list) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m map[string]string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		v, err := sized(func(b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
		switch {
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP),
			errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
			continue // gone, or listed to all and readable by some (trusted.*)
		case err != nil:
			return nil, err
		}
		if m == nil {
			m = make(map[string]string)
		}
		m[name] = string(v)
	}
	return m, nil
}

// sized calls get with buffers that grow until the answer fits. The largest
// that the kernel gives is XATTR_SIZE_MAX, 64 KiB.
func sized(get func([]byte) (int, error)) ([]byte, error) {
	var small [256]byte
	buf := small[:]
	for {
		n, err := get(buf)
		if errors.Is(err, unix.ERANGE) && len(buf) <= 64<<10 {
			buf = make([]byte, len(buf)*4)
			continue
		}
		if err != nil {
			return nil, err
		}
		return slices.Clone(buf[:n]), nil
	}
}
