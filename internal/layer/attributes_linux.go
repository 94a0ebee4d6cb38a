// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// fdAttributes sets what an open file does not have yet of owner, mode and
// xattrs, in the order that loses none: chown clears setuid bits and
// capabilities. Looking costs a tenth of setting, which writes to the journal;
// and a umask, a setgid directory or a default ACL cannot go unnoticed.
func fdAttributes(fd int, e *tree.Entry) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("look at the new file: %w", err)
	}
	if st.Uid != e.UID || st.Gid != e.GID {
		if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil {
			return fmt.Errorf("chown %d:%d: %w", e.UID, e.GID, err)
		}
	}
	if st.Mode&uint32(tree.ModePerm) != uint32(e.Mode.Perm()) {
		if err := unix.Fchmod(fd, uint32(e.Mode.Perm())); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	for _, k := range sortedKeys(e.Xattrs) {
		if err := unix.Fsetxattr(fd, k, []byte(e.Xattrs[k]), 0); err != nil && !lossyXattr(k, err) {
			return fmt.Errorf("set attribute %s: %w", k, err)
		}
	}
	return nil
}

// attributes does the same for an entry that is not a regular file.
func (r *Root) attributes(up int, name string, e *tree.Entry) error {
	var st unix.Stat_t
	if err := unix.Fstatat(up, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("look at what was made: %w", err)
	}
	if st.Uid != e.UID || st.Gid != e.GID {
		if err := unix.Fchownat(up, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("chown %d:%d: %w", e.UID, e.GID, err)
		}
	}
	if e.Mode.IsSymlink() {
		return utimes(up, name, e.ModTime)
	}
	// The name was made, or found to be a directory, by us in a tree that is
	// ours alone: chmod may follow it. The mode is set after the owner, which
	// takes bits away.
	if err := unix.Fchmodat(up, name, uint32(e.Mode.Perm()), 0); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	if e.Mode.IsDir() {
		r.times[e.Path] = e.ModTime
		return r.dirXattrs(up, name, e)
	}
	return utimes(up, name, e.ModTime)
}

func (r *Root) dirXattrs(up int, name string, e *tree.Entry) error {
	if len(e.Xattrs) == 0 {
		return nil
	}
	fd, err := unix.Openat(up, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, k := range sortedKeys(e.Xattrs) {
		if err := unix.Fsetxattr(fd, k, []byte(e.Xattrs[k]), 0); err != nil && !lossyXattr(k, err) {
			return fmt.Errorf("set attribute %s: %w", k, err)
		}
	}
	return nil
}

// lossyXattr tells whether an attribute may be left out where it cannot be
// set: all but file capabilities, which are what a program needs to work, and
// none of which reach a layer that is written here.
func lossyXattr(name string, err error) bool {
	return name != keptXattr && (errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM))
}

// utimes sets both times of name in the open directory dirfd.
func utimes(dirfd int, name string, t time.Time) error {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(dirfd, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// futimes does the same for an open file, which spares the look for its name.
func futimes(fd int, t time.Time) error {
	ts, err := unix.TimeToTimespec(t)
	if err != nil {
		return err
	}
	both := [2]unix.Timespec{ts, ts}
	// Without a name the call is about the descriptor itself; package unix
	// cannot express that.
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&both)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
