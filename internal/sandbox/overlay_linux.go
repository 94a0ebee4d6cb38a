// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLowers bounds the directories of one overlay: their names have to fit into
// the page that mount(2) takes options in.
const maxLowers = 200

// A detached is a mount that is attached nowhere. It is reached by descriptors
// only and goes away with the last of them, so that nothing is left of it
// whatever happens to this process.
type detached struct {
	own   *os.File // for this process
	child *os.File // for the process that attaches it
}

func (d *detached) path() string { return fmt.Sprintf("/proc/self/fd/%d", d.own.Fd()) }

func (d *detached) close() error {
	if d == nil {
		return nil
	}
	return errors.Join(d.own.Close(), d.child.Close())
}

// detach makes a mount with mount, which attaches it at the directory at, and
// takes it off again. It happens in a thread with a mount namespace of its own,
// which ends with it: nobody else ever sees the mount. (The newer calls that do
// without a thread take overlay options of 255 bytes only, before Linux 6.8.)
// There too set, if given, changes the mount that is for the command: the right to
// do so comes from the thread's mount namespace.
func detach(at string, mount func() error, set func(fd int) error) (*detached, error) {
	type result struct {
		d   *detached
		err error
	}
	done := make(chan result, 1)
	go func() {
		// Not unlocked: the thread, which has left the others' file system
		// state behind, ends with the goroutine.
		runtime.LockOSThread()
		var r result
		if r.d, r.err = detachHere(at, mount); r.err == nil && set != nil {
			if r.err = set(int(r.d.child.Fd())); r.err != nil {
				r.err = errors.Join(r.err, r.d.close())
			}
		}
		done <- r
	}()
	r := <-done
	return r.d, r.err
}

func detachHere(at string, mount func() error) (*detached, error) {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("unshare(CLONE_NEWNS): %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := mount(); err != nil {
		return nil, err
	}
	own, err := cloneMount(at)
	if err != nil {
		return nil, err
	}
	child, err := cloneMount(at)
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	return &detached{own: own, child: child}, nil
}

// cloneMount returns a detached copy of the mount that path lies on, with path
// as its root.
func cloneMount(path string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// detachDir returns the plain directory dir as a mount.
func detachDir(dir string) (*detached, error) {
	return detach(dir, func() error { return nil }, nil)
}

// detachOverlay mounts directories of dir on top of each other: lowers, top
// first, and above them upper, which takes what is written.
func detachOverlay(dir, at string, lowers []string, upper, work string, user bool) (*detached, error) {
	if len(lowers) > maxLowers {
		return nil, fmt.Errorf("an overlay of %d directories", len(lowers))
	}
	// An origin that is a file of ours alone, never to be found again, and no
	// syncing of what lives as long as a build. Renaming a directory copies it,
	// and a file's other names stay as they are when it is written to, as in
	// BuildKit's overlays.
	opt := "lowerdir=" + strings.Join(lowers, ":") + ",upperdir=" + upper + ",workdir=" + work
	if user {
		opt += ",userxattr"
	} else {
		opt += ",index=off,metacopy=off,redirect_dir=off"
	}
	return detach(at, func() error {
		if err := unix.Chdir(dir); err != nil {
			return fmt.Errorf("enter %s: %w", dir, err)
		}
		err := unix.Mount("overlay", at, "overlay", unix.MS_NODEV, opt+",volatile")
		if err == unix.EINVAL { // before Linux 5.10
			err = unix.Mount("overlay", at, "overlay", unix.MS_NODEV, opt)
		}
		if err != nil {
			return fmt.Errorf("mount an overlay: %w", err)
		}
		return nil
	}, nil)
}

// newUpper makes the directories name and name+".work" in dir for an overlay over
// the directory lower, whose attributes the root keeps.
func newUpper(dir, name, lower string) error {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, lower), &st); err != nil {
		return fmt.Errorf("look at the root: %w", err)
	}
	upper := filepath.Join(dir, name)
	if err := os.Mkdir(upper+".work", 0o700); err != nil {
		return fmt.Errorf("make an overlay: %w", err)
	}
	if err := os.Mkdir(upper, 0o700); err != nil {
		return fmt.Errorf("make an overlay: %w", err)
	}
	ts := []unix.Timespec{st.Atim, st.Mtim}
	err := errors.Join(
		os.Lchown(upper, int(st.Uid), int(st.Gid)), unix.Chmod(upper, st.Mode&0o7777),
		unix.UtimesNanoAt(unix.AT_FDCWD, upper, ts, 0))
	if err != nil {
		return fmt.Errorf("make an overlay: %w", err)
	}
	return nil
}
