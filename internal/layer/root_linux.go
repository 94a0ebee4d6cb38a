// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// maxDirs bounds the open directories that a Root remembers.
const maxDirs = 48

// A Root is a directory on disk that layers are unpacked into. Paths are
// resolved by the kernel with the Root as their root (openat2 with
// RESOLVE_IN_ROOT), so neither an absolute link nor ".." nor a magic link of
// /proc leads out of it, and no mount point below it is entered. It is not safe
// for concurrent use.
type Root struct {
	fd    int
	dirs  map[string]int // resolved directories, open with O_PATH
	times map[string]time.Time
	buf   []byte
	// openat2 is false where the kernel or its seccomp filter lacks the call.
	openat2  bool
	uid, gid uint32 // what is made here belongs to, as a rule
	// NoDevice tells what to do with a device node that the kernel refuses
	// to make (no CAP_MKNOD): nil makes that an error.
	NoDevice func(p string) error
	// Adapt, if set, returns what is made of an entry in its place: this place may
	// not be able to hold all of it.
	Adapt func(e *tree.Entry) (*tree.Entry, error)
	// Skip, if set, tells which paths are left alone.
	Skip func(p string) bool
	pace flusher
	// CrossMounts allows entering mount points below the root.
	CrossMounts bool
}

// OpenRoot opens the directory at path as a Root.
func OpenRoot(path string) (*Root, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	r := &Root{fd: fd, dirs: make(map[string]int), times: make(map[string]time.Time), buf: make([]byte, 256<<10), openat2: true}
	r.uid, r.gid = uint32(os.Geteuid()), uint32(os.Getegid())
	probe, err := unix.Openat2(fd, ".", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveFlags})
	if err != nil {
		r.openat2 = false
	} else {
		unix.Close(probe)
	}
	return r, nil
}

const resolveFlags = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// FlushEvery makes the disk begin to write whenever n more bytes were written;
// without it that is the kernel's choice.
func (r *Root) FlushEvery(n int64) error {
	fd, err := unix.Openat(r.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the file system: %w", err)
	}
	r.pace.every, r.pace.fd = n, fd
	return nil
}

// Close sets the directories' times and gives up the Root.
func (r *Root) Close() error {
	r.pace.wait()
	if r.pace.every != 0 {
		_ = unix.Close(r.pace.fd)
	}
	err := r.setTimes()
	r.flush()
	return errors.Join(err, unix.Close(r.fd))
}

// flush forgets open directories, which any removal may have made wrong.
func (r *Root) flush() {
	for p, fd := range r.dirs {
		unix.Close(fd)
		delete(r.dirs, p)
	}
}

// forgetTimes drops the times of p and of what is below it, which was removed:
// they must not go to what a link in its place leads to.
func (r *Root) forgetTimes(p string) {
	for q := range r.times {
		if tree.Within(q, p) {
			delete(r.times, q)
		}
	}
}

// setTimes gives directories their recorded times; it comes last, because every
// entry made in a directory changes its mtime.
func (r *Root) setTimes() error {
	for p, t := range r.times {
		fd, err := r.open(p)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // deleted or replaced by a later layer
		}
		if err != nil {
			return fmt.Errorf("set times of /%s: %w", p, err)
		}
		// An O_PATH descriptor cannot be changed itself; "." below it can.
		err = utimes(fd, ".", t)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("set times of /%s: %w", p, err)
		}
	}
	clear(r.times)
	return nil
}

// open resolves the directory p inside the root.
func (r *Root) open(p string) (int, error) {
	if p == "" {
		return unix.Openat(r.fd, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if r.openat2 {
		resolve := uint64(resolveFlags)
		if r.CrossMounts {
			resolve &^= unix.RESOLVE_NO_XDEV
		}
		for {
			fd, err := unix.Openat2(r.fd, p, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolve})
			// EAGAIN: a rename elsewhere on the machine raced with the walk.
			if err != unix.EAGAIN && err != unix.EINTR {
				return fd, err
			}
		}
	}
	dup, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	root := os.NewFile(uintptr(dup), "/")
	defer root.Close()
	f, err := securejoin.OpenatInRoot(root, p)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	return unix.Openat(int(f.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// dir returns the open directory p, made with its parents if make is set. The
// descriptor belongs to the Root.
func (r *Root) dir(p string, make bool) (int, error) {
	if fd, ok := r.dirs[p]; ok {
		return fd, nil
	}
	fd, err := r.open(p)
	if err == unix.ENOENT && make && p != "" {
		if err = r.makeDir(p, 0); err == nil {
			fd, err = r.open(p)
		}
	}
	if err != nil {
		return -1, err
	}
	if len(r.dirs) >= maxDirs {
		r.flush()
	}
	r.dirs[p] = fd
	return fd, nil
}

// makeDir makes a directory that a tar has no entry for, 0755 0:0 as
// containerd does, also where a dangling link points.
func (r *Root) makeDir(p string, depth int) error {
	if depth > 40 {
		return unix.ELOOP
	}
	up, err := r.open(tree.Parent(p))
	if err == unix.ENOENT {
		if err = r.makeDir(tree.Parent(p), depth+1); err == nil {
			up, err = r.open(tree.Parent(p))
		}
	}
	if err != nil {
		return err
	}
	defer unix.Close(up)
	err = unix.Mkdirat(up, tree.Base(p), 0o755)
	if err == nil {
		// The umask takes bits away, and a setgid parent adds one.
		return unix.Fchmodat(up, tree.Base(p), 0o755, 0)
	}
	if err != unix.EEXIST {
		return err
	}
	n, lerr := unix.Readlinkat(up, tree.Base(p), r.buf[:4096])
	if lerr != nil {
		return nil // made meanwhile, or not a directory: opening it tells
	}
	to := string(r.buf[:n])
	if !strings.HasPrefix(to, "/") {
		to = tree.Parent(p) + "/" + to
	}
	return r.makeDir(tree.Clean(to), depth+1)
}

// Apply unpacks layer l; with spool its compressed blob is kept in the store if it
// has to be fetched.
func (r *Root) Apply(ctx context.Context, l *Layer, spool bool) error {
	if changes := l.Changes(); changes != nil {
		return r.applyChanges(ctx, l, changes)
	}
	return l.unpack(ctx, r, spool)
}

// Put makes one entry, with its parents if they are missing; content is read for
// regular files only.
func (r *Root) Put(e *tree.Entry, content io.Reader) error { return r.put(e, content) }

// Link makes the hard link p to the file at target.
func (r *Root) Link(p, target string) error { return r.link(p, target) }

// applyChanges makes what the layer was made of, from where it was made of, and
// holds it against the layer: a file that is not what went into the layer is an
// error.
func (r *Root) applyChanges(ctx context.Context, l *Layer, changes func(func(tree.Change, error) bool)) error {
	idx, err := l.index(ctx)
	if err != nil {
		return err
	}
	for c, err := range changes {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := r.applyChange(idx, &c); err != nil {
			return fmt.Errorf("apply /%s: %w", c.Path, err)
		}
	}
	return r.setTimes()
}

func (r *Root) applyChange(idx *index, c *tree.Change) error {
	switch {
	case c.Path == "":
		return nil
	case c.Deleted:
		return r.remove(c.Path, false, nil)
	case c.LinkTo != "":
		return r.link(c.Path, c.LinkTo)
	case !c.Touched && c.Mode.IsDir():
		// Only a parent: it exists, and keeps its time.
		if r.Skip == nil || !r.Skip(c.Path) {
			r.times[c.Path] = c.ModTime
		}
		return nil
	case !c.Mode.IsRegular() || c.Size == 0:
		return r.put(&c.Entry, strings.NewReader(""))
	}
	rec, ok, err := idx.get(c.Path)
	if err != nil || !ok {
		return errors.Join(err, errBadIndex)
	}
	rc, err := c.Open()
	if err != nil {
		return err
	}
	defer rc.Close()
	sum := sha256.New()
	if err := r.put(&c.Entry, io.TeeReader(io.LimitReader(rc, c.Size), sum)); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, sum); got != rec.Digest {
		return fmt.Errorf("its content is not the one in the layer: %w", ErrChanged)
	}
	return nil
}

// put implements target.
func (r *Root) put(e *tree.Entry, content io.Reader) error {
	if r.Skip != nil && r.Skip(e.Path) {
		return nil
	}
	if r.Adapt != nil {
		var err error
		if e, err = r.Adapt(e); err != nil {
			return err
		}
	}
	if e.Path == "" {
		if !e.Mode.IsDir() {
			return errors.New("the root is no directory")
		}
		return r.attributes(r.fd, ".", e)
	}
	up, err := r.dir(tree.Parent(e.Path), true)
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	name := tree.Base(e.Path)
	err = r.make(up, name, e, content)
	if err != unix.EEXIST {
		return err
	}
	if e.Mode.IsDir() {
		var st unix.Stat_t
		if err := unix.Fstatat(up, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return r.attributes(up, name, e)
		}
	}
	if err := removeAll(up, name); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	// Not resolved again: what was removed may be the link that led here.
	defer r.flush()
	r.forgetTimes(e.Path)
	return r.make(up, name, e, content)
}

// make creates the entry; unix.EEXIST, bare, if the name is taken.
func (r *Root) make(up int, name string, e *tree.Entry, content io.Reader) error {
	var err error
	switch e.Mode.Type() {
	case tree.ModeDir:
		err = unix.Mkdirat(up, name, 0o700)
	case tree.ModeRegular:
		return r.regular(up, name, e, content)
	case tree.ModeSymlink:
		err = unix.Symlinkat(e.Link, up, name)
	case tree.ModeChar, tree.ModeBlock:
		err = unix.Mknodat(up, name, uint32(e.Mode), int(unix.Mkdev(e.Major, e.Minor)))
		if err == unix.EPERM && r.NoDevice != nil {
			return r.NoDevice(e.Path)
		}
	case tree.ModeFIFO:
		err = unix.Mknodat(up, name, uint32(e.Mode), 0)
	default:
		return fmt.Errorf("unknown file type %o", e.Mode.Type())
	}
	if err != nil {
		return err
	}
	return r.attributes(up, name, e)
}

func (r *Root) regular(up int, name string, e *tree.Entry, content io.Reader) error {
	// Most files are made with the mode and owner that they shall have, so that
	// neither has to be set. What is to be another's is nobody's business before.
	mode := uint32(e.Mode.Perm()) & 0o777
	if e.UID != r.uid || e.GID != r.gid {
		mode &= 0o700
	}
	fd, err := unix.Openat(up, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	n, err := r.copy(fd, content)
	if err == nil && n != e.Size {
		err = fmt.Errorf("%d bytes instead of %d: %w", n, e.Size, ErrChanged)
	}
	if err == nil {
		err = fdAttributes(fd, e)
	}
	if err == nil {
		err = futimes(fd, e.ModTime)
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return err
}

func (r *Root) copy(fd int, content io.Reader) (int64, error) {
	var total int64
	for {
		n, err := content.Read(r.buf)
		for b := r.buf[:n]; len(b) > 0; {
			k, werr := unix.Write(fd, b)
			if werr == unix.EINTR {
				continue
			}
			if werr != nil {
				return total, werr
			}
			total += int64(k)
			b = b[k:]
			r.pace.wrote(k)
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// link implements target.
func (r *Root) link(p, to string) error {
	if r.Skip != nil && r.Skip(p) {
		return nil
	}
	if _, err := r.dir(tree.Parent(to), false); err != nil {
		return err
	}
	up, err := r.dir(tree.Parent(p), true)
	if err != nil {
		return err
	}
	// Opening the second directory may have flushed the first.
	from, err := r.dir(tree.Parent(to), false)
	if err != nil {
		return err
	}
	err = unix.Linkat(from, tree.Base(to), up, tree.Base(p), 0)
	if err != unix.EEXIST {
		return err
	}
	if same, err := sameFile(from, tree.Base(to), up, tree.Base(p)); same || err != nil {
		return err
	}
	if err := removeAll(up, tree.Base(p)); err != nil {
		return err
	}
	defer r.flush()
	r.forgetTimes(p)
	return unix.Linkat(from, tree.Base(to), up, tree.Base(p), 0)
}

func sameFile(d1 int, n1 string, d2 int, n2 string) (bool, error) {
	var a, b unix.Stat_t
	err := errors.Join(unix.Fstatat(d1, n1, &a, unix.AT_SYMLINK_NOFOLLOW), unix.Fstatat(d2, n2, &b, unix.AT_SYMLINK_NOFOLLOW))
	return a.Dev == b.Dev && a.Ino == b.Ino, err
}

// remove implements target.
func (r *Root) remove(p string, childrenOnly bool, keep func(string) bool) error {
	if r.Skip != nil && r.Skip(p) {
		return nil
	}
	defer r.flush()
	if childrenOnly {
		// Like every name in a layer that has no entry itself, the directory may
		// be reached through links, and is made if it is not there.
		fd, err := r.dir(p, true)
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			return nil
		}
		if err != nil {
			return err
		}
		return removeExcept(fd, ".", p, keep)
	}
	up, err := r.dir(tree.Parent(p), true)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
		return nil
	}
	if err != nil {
		return err
	}
	if keep == nil || !keep(p) {
		r.forgetTimes(p)
		return removeAll(up, tree.Base(p))
	}
	return removeExcept(up, tree.Base(p), p, keep)
}
