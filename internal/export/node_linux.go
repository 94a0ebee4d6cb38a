// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// inParent calls fn with a descriptor of the directory that holds p, and p's
// name in it.
func inParent(root *os.Root, p string, fn func(fd int, name string) error) error {
	parent := tree.Parent(p)
	if parent == "" {
		parent = "."
	}
	d, err := root.Open(parent)
	if err != nil {
		return err
	}
	defer d.Close()
	return fn(int(d.Fd()), tree.Base(p))
}

// makeNode makes a device or a FIFO.
func makeNode(root *os.Root, e *tree.Entry, p string) error {
	return inParent(root, p, func(fd int, name string) error {
		var dev uint64
		if e.Mode.IsDevice() {
			dev = unix.Mkdev(e.Major, e.Minor)
		}
		if err := unix.Mknodat(fd, name, uint32(e.Mode.Type())|0o600, int(dev)); err != nil {
			return fmt.Errorf("make special file (device %d:%d): %w", e.Major, e.Minor, err)
		}
		return nil
	})
}

func setLinkTime(root *os.Root, p string, t time.Time) error {
	return inParent(root, p, func(fd int, name string) error {
		ts, err := unix.TimeToTimespec(t)
		if err != nil {
			return err
		}
		return unix.UtimesNanoAt(fd, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func setXattrs(f *os.File, xattrs map[string]string) error {
	for k, v := range xattrs {
		err := unix.Fsetxattr(int(f.Fd()), k, []byte(v), 0)
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("set attribute %s: %w", k, err)
		}
	}
	return nil
}
