// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// A Root is a directory on disk that layers are unpacked into. Paths are
// resolved by the kernel with the Root as their root (openat2 with
// RESOLVE_IN_ROOT), so neither an absolute link nor ".." nor a magic link of
// /proc leads out of it, and no mount point below it is entered. It is not safe
// for concurrent use.
type Root struct {
	fd    int
	dirs  map[string]*directory
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
	crew *crew // while a layer is applied, and if that helps
	// CrossMounts allows entering mount points below the root.
	CrossMounts bool
}

// OpenRoot opens the directory at path as a Root.
func OpenRoot(path string) (*Root, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	r := &Root{fd: fd, dirs: make(map[string]*directory), times: make(map[string]time.Time), buf: make([]byte, 256<<10), openat2: true}
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

// Apply unpacks layer l; with spool its compressed blob is kept in the store if it
// has to be fetched.
func (r *Root) Apply(ctx context.Context, l *Layer, spool bool) error {
	changes := l.Changes()
	if changes != nil {
		r.hire("apply")
		defer r.dismiss()
		return r.applyChanges(ctx, l, changes)
	}
	r.hire("unpack")
	defer r.dismiss()
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
	err = r.applyEach(ctx, idx, changes)
	// What went wrong with an earlier file counts.
	if late := r.settle(); late != nil {
		return late
	}
	if err != nil {
		return err
	}
	return r.setTimes()
}

func (r *Root) applyEach(ctx context.Context, idx *index, changes func(func(tree.Change, error) bool)) error {
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
	return nil
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
	return r.put(&c.Entry, &checked{r: io.LimitReader(rc, c.Size), sum: sha256.New(), want: rec.Digest})
}

// A checked is the content of a file that has to be what went into a layer: its
// end is an error if it is not.
type checked struct {
	r    io.Reader
	sum  hash.Hash
	want digest.Digest
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	_, _ = c.sum.Write(p[:n])
	if err == io.EOF && digest.NewDigest(digest.SHA256, c.sum) != c.want {
		err = fmt.Errorf("its content is not the one in the layer: %w", ErrChanged)
	}
	return n, err
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
	if err := r.look(); err != nil {
		return err
	}
	if e.Path == "" {
		if !e.Mode.IsDir() {
			return errors.New("the root is no directory")
		}
		if err := r.settle(); err != nil {
			return err
		}
		return r.attributes(r.fd, ".", e)
	}
	up, err := r.dir(tree.Parent(e.Path), true)
	if err != nil {
		return fmt.Errorf("parent: %w", err)
	}
	up.users++
	defer up.leave()
	if r.crew.isAt(e.Path, false) {
		if err := r.settle(); err != nil {
			return err
		}
	}
	if done, err := r.hand(up, e, content); done {
		return err
	}
	name := tree.Base(e.Path)
	err = r.make(up.fd, name, e, content)
	if err != unix.EEXIST {
		return err
	}
	return r.replace(up.fd, name, e, content)
}

// replace makes the entry where something else is, of which a directory can stay.
func (r *Root) replace(up int, name string, e *tree.Entry, content io.Reader) error {
	var st unix.Stat_t
	stays := e.Mode.IsDir() && unix.Fstatat(up, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	if !stays || r.crew.isIn(e.Path) {
		if err := r.settle(); err != nil {
			return err
		}
	}
	if stays {
		return r.attributes(up, name, e)
	}
	return r.overwrite(up, name, e, content)
}

func (r *Root) overwrite(up int, name string, e *tree.Entry, content io.Reader) error {
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
		return r.regular(up, name, e, func(fd int) (int64, error) { return r.copy(fd, content) })
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

// regular makes a file; fill writes its content. It may be called by several
// goroutines.
func (r *Root) regular(up int, name string, e *tree.Entry, fill func(fd int) (int64, error)) error {
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
	n, err := fill(fd)
	if err == nil {
		err = sizeError(n, e.Size)
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

func sizeError(got, want int64) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("%d bytes instead of %d: %w", got, want, ErrChanged)
}

func (r *Root) copy(fd int, content io.Reader) (int64, error) {
	var total int64
	for {
		n, err := content.Read(r.buf)
		k, werr := r.write(fd, r.buf[:n])
		total += k
		if werr != nil {
			return total, werr
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

func (r *Root) write(fd int, b []byte) (int64, error) {
	var total int64
	for len(b) > 0 {
		k, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return total, err
		}
		total += int64(k)
		b = b[k:]
		r.pace.wrote(k)
	}
	return total, nil
}

// link implements target.
func (r *Root) link(p, to string) error {
	if r.Skip != nil && r.Skip(p) {
		return nil
	}
	if err := r.look(); err != nil {
		return err
	}
	if r.crew.isAt(p, false) || r.crew.isAt(to, false) {
		if err := r.settle(); err != nil {
			return err
		}
	}
	from, err := r.dir(tree.Parent(to), false)
	if err != nil {
		return err
	}
	from.users++
	defer from.leave()
	up, err := r.dir(tree.Parent(p), true)
	if err != nil {
		return err
	}
	up.users++
	defer up.leave()
	err = unix.Linkat(from.fd, tree.Base(to), up.fd, tree.Base(p), 0)
	if err != unix.EEXIST {
		return err
	}
	if same, err := sameFile(from.fd, tree.Base(to), up.fd, tree.Base(p)); same || err != nil {
		return err
	}
	if err := r.settle(); err != nil {
		return err
	}
	if err := removeAll(up.fd, tree.Base(p)); err != nil {
		return err
	}
	defer r.flush()
	r.forgetTimes(p)
	return unix.Linkat(from.fd, tree.Base(to), up.fd, tree.Base(p), 0)
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
	if err := r.settle(); err != nil {
		return err
	}
	defer r.flush()
	if childrenOnly {
		// Like every name in a layer that has no entry itself, the directory may
		// be reached through links, and is made if it is not there.
		d, err := r.dir(p, true)
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			return nil
		}
		if err != nil {
			return err
		}
		return removeExcept(d.fd, ".", p, keep)
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
		return removeAll(up.fd, tree.Base(p))
	}
	return removeExcept(up.fd, tree.Base(p), p, keep)
}
