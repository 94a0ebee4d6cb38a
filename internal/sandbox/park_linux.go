// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/tree"
)

// Parking: what stands in the container's / is renamed into the work directory,
// so that an image's tree can be put in its place, also by renames.
//
// What the kernel allows in a pod (no mount, no unshare), and what follows:
//
//   - A directory that was made in the container, with mounts in it or not, is
//     renamed whole; mounts travel along.
//   - A mount point itself is EBUSY. It stays, and so does every directory
//     that leads to it and could not be moved.
//   - A directory that came with the container's image is EXDEV on overlayfs.
//     It is made anew in the parking place and moved entry by entry, which the
//     kernel turns into copies of the files' contents.
//
// The journal says how far things are, so that another process can put
// everything back when this one is killed. Nothing is synced: what must survive
// is a process, not the machine.

// A lot is the parking place of one container.
type lot struct {
	root    int // the container's /, open
	work    string
	journal *journal
	// keep are the top-level names that never move: the work directory's and
	// our image's own.
	keep map[string]bool
	// links finds the other names of files that lose their links when they are
	// copied up.
	links map[[2]uint64]string
}

const (
	parkedName = "parked"
	trashName  = "trash"
	// reserveSize bytes are kept on the disk while something is parked: a command
	// may fill it, and putting things back takes a few new directories and lines
	// of the journal.
	reserveSize = 256 << 10
)

// at names p, a path relative to the container's root, for calls that take no
// descriptor. The kernel begins at what root has open (proc(5)): nothing is
// looked up from /, which is an image's.
func (l *lot) at(p string) string { return below(l.root, p) }

// below names p below the open directory fd, wherever that directory is by then.
func below(fd int, p string) string {
	return filepath.Join("/proc/self/fd", strconv.Itoa(fd), p)
}

func (l *lot) reserve() string { return filepath.Join(l.work, "reserve") }

func (l *lot) parked() string { return filepath.Join(l.work, parkedName) }

// park moves everything that can be moved out of /.
func (l *lot) park() error {
	if err := os.MkdirAll(l.parked(), 0o700); err != nil {
		return fmt.Errorf("park: %w", err)
	}
	if err := os.WriteFile(l.reserve(), make([]byte, reserveSize), 0o600); err != nil {
		return fmt.Errorf("park: %w", err)
	}
	attrs, err := readAttrs(l.root, ".")
	if err != nil {
		return fmt.Errorf("park: %w", err)
	}
	if err := l.journal.phase(phaseParking); err != nil {
		return err
	}
	if err := l.journal.stay("", attrs); err != nil {
		return err
	}
	dst, err := unix.Open(l.parked(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("park: %w", err)
	}
	defer unix.Close(dst)
	names, err := readNames(l.root, ".")
	if err != nil {
		return fmt.Errorf("park: %w", err)
	}
	l.links = make(map[[2]uint64]string)
	for _, n := range names {
		if l.keep[n] {
			continue
		}
		if _, err := l.move(l.root, dst, n, n); err != nil {
			return fmt.Errorf("park /%s: %w", n, err)
		}
	}
	return l.journal.phase(phaseParked)
}

// move parks one name; it returns whether something of it has to stay.
func (l *lot) move(src, dst int, name, path string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if !isDir && st.Nlink > 1 {
		if done, err := l.moveLink(src, dst, name, path, &st); done || err != nil {
			return false, err
		}
	}
	err := unix.Renameat(src, name, dst, name)
	switch {
	case err == nil:
		return false, nil
	case err == unix.EBUSY:
		return true, l.journal.stayMount(path)
	case err == unix.EXDEV && isDir:
		return l.split(src, dst, name, path)
	}
	return false, err
}

// moveLink parks a further name of a file that was parked before: on overlayfs
// a file of the image's layers is copied when it is renamed, and that copy has
// one name, so the others are made links to it again.
func (l *lot) moveLink(src, dst int, name, path string, st *unix.Stat_t) (bool, error) {
	id := [2]uint64{uint64(st.Dev), st.Ino} //nolint:unconvert // differs by architecture
	first, ok := l.links[id]
	if !ok {
		l.links[id] = filepath.Join(l.parked(), path)
		return false, nil
	}
	if err := unix.Linkat(unix.AT_FDCWD, first, dst, name, 0); err != nil {
		return false, err
	}
	// Still linked together? Then a rename within one file would have been a
	// no-op; removing the old name is right either way.
	return true, unix.Unlinkat(src, name, 0)
}

// split parks a directory that cannot be renamed, entry by entry.
func (l *lot) split(src, dst int, name, path string) (bool, error) {
	attrs, err := readAttrs(src, name)
	if err != nil {
		return false, err
	}
	if err := l.journal.stay(path, attrs); err != nil {
		return false, err
	}
	if err := unix.Mkdirat(dst, name, 0o700); err != nil && err != unix.EEXIST {
		return false, err
	}
	from, to, done, err := openBoth(src, dst, name)
	if err != nil {
		return false, err
	}
	defer done()
	names, err := readNames(from, ".")
	if err != nil {
		return false, err
	}
	stays := false
	for _, n := range names {
		s, err := l.move(from, to, n, tree.Join(path, n))
		if err != nil {
			return false, fmt.Errorf("%s: %w", n, err)
		}
		stays = stays || s
	}
	if err := attrs.apply(to); err != nil {
		return false, err
	}
	if stays {
		return true, nil
	}
	return false, unix.Unlinkat(src, name, unix.AT_REMOVEDIR)
}

// restore puts everything back, whoever parked it and however far that got.
// It may be repeated after being interrupted itself.
func (l *lot) restore() error {
	switch l.journal.state.Phase {
	case "":
		return nil
	case phaseParked:
		_ = os.Remove(l.reserve())
		if err := l.clear(); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		if err := l.journal.phase(phaseRestoring); err != nil {
			return err
		}
	}
	if err := l.restoreVolumes(); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	src, err := unix.Open(l.parked(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = l.putBack(src, l.root)
		unix.Close(src)
	}
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("restore: %w", err)
	}
	if err := l.restoreAttrs(); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	if err := l.journal.end(); err != nil {
		return err
	}
	// Failing to remove what is left costs disk, nothing else.
	_ = os.Remove(l.reserve())
	_ = layer.RemoveAll(l.parked())
	return nil
}

// putBack moves the parked names in src to dst, into directories that stayed.
func (l *lot) putBack(src, dst int) error {
	names, err := readNames(src, ".")
	if err != nil {
		return err
	}
	for _, n := range names {
		err := unix.Renameat2(src, n, dst, n, unix.RENAME_NOREPLACE)
		if err == unix.EINVAL { // the file system lacks the flag; nothing but stays is in the way
			err = unix.EEXIST
			if ferr := unix.Faccessat(dst, n, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW); ferr == unix.ENOENT {
				err = unix.Renameat(src, n, dst, n)
			}
		}
		if err == unix.EEXIST {
			err = l.mergeBack(src, dst, n)
		}
		if err != nil {
			return fmt.Errorf("put back %s: %w", n, err)
		}
	}
	return nil
}

func (l *lot) mergeBack(src, dst int, name string) error {
	from, to, done, err := openBoth(src, dst, name)
	if err != nil {
		return err
	}
	defer done()
	if err := l.putBack(from, to); err != nil {
		return err
	}
	return unix.Unlinkat(src, name, unix.AT_REMOVEDIR)
}

// restoreAttrs gives directories that stayed their owner, mode and times back;
// deepest last does not matter, as no name is made after this.
func (l *lot) restoreAttrs() error {
	for p, a := range l.journal.state.Stays {
		if a == nil {
			continue
		}
		fd, err := unix.Openat2(l.root, dot(p), &unix.OpenHow{
			Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return fmt.Errorf("/%s: %w", p, err)
		}
		err = a.apply(fd)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("/%s: %w", p, err)
		}
	}
	return nil
}

func dot(p string) string {
	if p == "" {
		return "."
	}
	return p
}

// clear moves what an image or a command left in / out of the way. Deleting it
// is for later: it takes long for a large root.
func (l *lot) clear() error {
	trash, err := os.MkdirTemp(l.work, trashName)
	if err != nil {
		return err
	}
	return l.sweep(trash)
}

// sweep moves everything in / that does not stay into the directory to.
func (l *lot) sweep(to string) error {
	dst, err := unix.Open(to, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return l.sweepDir(l.root, dst, "")
}

func (l *lot) sweepDir(src, dst int, path string) error {
	names, err := readNames(src, ".")
	if err != nil {
		return err
	}
	for _, n := range names {
		p := tree.Join(path, n)
		attrs, stays := l.journal.state.Stays[p]
		switch {
		case path == "" && l.keep[n], stays && attrs == nil: // a mount point
		case stays && isDirAt(src, n):
			if err := l.sweepInto(src, dst, n, p); err != nil {
				return err
			}
		default:
			if err := unix.Renameat(src, n, dst, n); err != nil && err != unix.EBUSY {
				return fmt.Errorf("move /%s away: %w", p, err)
			}
		}
	}
	return nil
}

func (l *lot) sweepInto(src, dst int, name, path string) error {
	// A directory that stayed because a mount is in it, or one that was split
	// and is gone, whose path the image has for itself now.
	if !l.holdsMount(path) {
		if err := unix.Renameat(src, name, dst, name); err != unix.EXDEV {
			return err
		}
	}
	if err := unix.Mkdirat(dst, name, 0o700); err != nil && err != unix.EEXIST {
		return err
	}
	from, to, done, err := openBoth(src, dst, name)
	if err != nil {
		return err
	}
	defer done()
	return l.sweepDir(from, to, path)
}

// openBoth opens the directory name in src and in dst; done closes both.
func openBoth(src, dst int, name string) (from, to int, done func(), err error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if from, err = unix.Openat(src, name, flags, 0); err != nil {
		return -1, -1, nil, err
	}
	if to, err = unix.Openat(dst, name, flags, 0); err != nil {
		unix.Close(from)
		return -1, -1, nil, err
	}
	return from, to, func() { unix.Close(from); unix.Close(to) }, nil
}

// holdsMount tells whether a mount that stayed lies below the directory path.
func (l *lot) holdsMount(path string) bool {
	for p, a := range l.journal.state.Stays {
		if a == nil && tree.Within(p, path) {
			return true
		}
	}
	return false
}

// mounts returns the paths, relative to /, that stay because something is
// mounted there.
func (l *lot) mounts() []string {
	var out []string
	for p, a := range l.journal.state.Stays {
		if a == nil {
			out = append(out, p)
		}
	}
	return out
}

func isDirAt(fd int, name string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// readNames returns the names in a directory.
func readNames(up int, name string) ([]string, error) {
	fd, err := unix.Openat(up, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return f.Readdirnames(-1)
}

// attrs are a directory's metadata, to be given back.
type attrs struct {
	Mode   uint32            `json:"mode"`
	UID    int               `json:"uid"`
	GID    int               `json:"gid"`
	Atime  int64             `json:"atime"` // nanoseconds
	Mtime  int64             `json:"mtime"`
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
}

func readAttrs(up int, name string) (*attrs, error) {
	fd, err := unix.Openat(up, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	a := &attrs{
		Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid),
		Atime: unix.TimespecToNsec(st.Atim), Mtime: unix.TimespecToNsec(st.Mtim), Xattrs: readXattrs(fd),
	}
	return a, nil
}

// readXattrs returns the attributes of an open file that can be set again.
func readXattrs(fd int) map[string][]byte {
	buf := make([]byte, 64<<10)
	n, err := unix.Flistxattr(fd, buf)
	if err != nil || n == 0 {
		return nil
	}
	out := make(map[string][]byte)
	for _, k := range splitNul(buf[:n]) {
		v := make([]byte, 64<<10)
		if m, err := unix.Fgetxattr(fd, k, v); err == nil {
			out[k] = v[:m:m]
		}
	}
	return out
}

func splitNul(b []byte) []string {
	var out []string
	for len(b) > 0 {
		i := 0
		for i < len(b) && b[i] != 0 {
			i++
		}
		out = append(out, string(b[:i]))
		b = b[min(i+1, len(b)):]
	}
	return out
}

// apply gives the directory dir its metadata.
func (a *attrs) apply(dir int) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fchown(fd, a.UID, a.GID); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	if err := unix.Fchmod(fd, a.Mode); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	for k, v := range a.Xattrs {
		// trusted.* and security.selinux are not ours to set, and are the file
		// system's to keep on a directory that stays.
		if err := unix.Fsetxattr(fd, k, v, 0); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set attribute %s: %w", k, err)
		}
	}
	ts := []unix.Timespec{unix.NsecToTimespec(a.Atime), unix.NsecToTimespec(a.Mtime)}
	return unix.UtimesNanoAt(fd, ".", ts, 0)
}
