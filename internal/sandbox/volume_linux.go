// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
)

// A volume that lies where the image needs a directory (the build context at
// /workspace and WORKDIR /workspace) is parked inside itself: a mount point
// cannot be moved, what is in it can.

// parkVolume moves the content of the mount at path, relative to /, into a
// directory of it, and returns that directory's name.
func (l *lot) parkVolume(path string) (string, error) {
	fd, err := unix.Openat(l.root, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("park in /%s: %w", path, err)
	}
	defer unix.Close(fd)
	a, err := readAttrs(fd, ".")
	if err != nil {
		return "", fmt.Errorf("park in /%s: %w", path, err)
	}
	aside := fmt.Sprintf(".hako-%d-%x", os.Getpid(), a.Mtime)
	v := volume{Aside: aside, Attrs: a}
	if err := l.journal.volume(path, v); err != nil {
		return "", err
	}
	names, err := readNames(fd, ".")
	if err == nil {
		err = unix.Mkdirat(fd, aside, 0o700)
	}
	if err != nil {
		return "", fmt.Errorf("park in /%s: %w", path, err)
	}
	to, err := unix.Openat(fd, aside, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("park in /%s: %w", path, err)
	}
	defer unix.Close(to)
	for _, n := range names {
		if err := unix.Renameat(fd, n, to, n); err != nil {
			return "", fmt.Errorf("park in /%s: %s: %w", path, n, err)
		}
	}
	v.Ready = true
	return aside, l.journal.volume(path, v)
}

// restoreVolumes puts the content of volumes back.
func (l *lot) restoreVolumes() error {
	for p, v := range l.journal.state.Volumes {
		if err := l.restoreVolume(p, v); err != nil {
			return fmt.Errorf("volume /%s: %w", p, err)
		}
		if err := l.journal.volumeGone(p); err != nil {
			return err
		}
	}
	return nil
}

func (l *lot) restoreVolume(path string, v volume) error {
	fd, err := unix.Openat(l.root, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	from, err := unix.Openat(fd, v.Aside, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil // never begun, or done before an interruption
	}
	if err != nil {
		return err
	}
	defer unix.Close(from)
	if v.Ready {
		if err := l.emptyVolume(fd, v.Aside); err != nil {
			return err
		}
		// From here on what lies beside is the volume's own again.
		v.Ready = false
		if err := l.journal.volume(path, v); err != nil {
			return err
		}
	}
	if err := l.putBack(from, fd); err != nil {
		return err
	}
	if err := unix.Unlinkat(fd, v.Aside, unix.AT_REMOVEDIR); err != nil {
		return err
	}
	return v.Attrs.apply(fd)
}

// emptyVolume deletes all but aside from the volume.
func (l *lot) emptyVolume(fd int, aside string) error {
	names, err := readNames(fd, ".")
	if err != nil {
		return err
	}
	for _, n := range names {
		if n == aside {
			continue
		}
		if err := layer.RemoveAt(fd, n); err != nil {
			return fmt.Errorf("delete %s: %w", n, err)
		}
	}
	return nil
}
