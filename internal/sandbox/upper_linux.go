// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// An upperScan finds what a process changed in a root that is an overlay. What
// is in the upper directory is a candidate; whether it is a change is decided as
// in every sandbox, by comparing it with the image (scan.differs).
type upperScan struct {
	*scan
	names int
	// marks is what the names of the overlay's own attributes begin with.
	marks string
	// lowers are the directories below, open, top first.
	lowers []int
}

// runUpper looks through the upper directory, open as fd, and returns the number of
// changed names.
func (s *upperScan) runUpper(ctx context.Context, fd int) (int, error) {
	if err := s.upperDir(ctx, fd, ".", ""); err != nil {
		return 0, err
	}
	changed := len(s.list)
	s.parents()
	return changed, nil
}

// upperDir looks through one directory of the upper.
func (s *upperScan) upperDir(ctx context.Context, up int, name, path string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	fd, err := unix.Openat(up, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("look at /%s: %w", path, err)
	}
	defer unix.Close(fd)
	names, err := readNames(fd, ".")
	if err != nil {
		return fmt.Errorf("look at /%s: %w", path, err)
	}
	if path != "" && s.isOpaque(fd) {
		if names, err = s.withHidden(path, names); err != nil {
			return err
		}
	}
	slices.Sort(names)
	s.names += len(names)
	for _, n := range names {
		if err := s.upperName(ctx, fd, n, tree.Join(path, n)); err != nil {
			return err
		}
	}
	return nil
}

// withHidden adds the names that the image has in an opaque directory.
func (s *upperScan) withHidden(path string, names []string) ([]string, error) {
	below, err := s.base.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return names, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at /%s in the image: %w", path, err)
	}
	seen := make(map[string]bool, len(names))
	for _, n := range names {
		seen[n] = true
	}
	for _, e := range below {
		if n := tree.Base(e.Path); !seen[n] {
			names = append(names, n)
		}
	}
	return names, nil
}

// isOpaque tells whether the directory hides those below it.
func (s *upperScan) isOpaque(fd int) bool {
	var b [4]byte
	n, err := unix.Fgetxattr(fd, s.marks+"opaque", b[:])
	return err == nil && n == 1 && b[0] == 'y'
}

// openLowers opens the directories that the upper one lies on.
func (s *upperScan) openLowers(dir string, names []string) (closeAll func(), err error) {
	closeAll = func() {
		for _, fd := range s.lowers {
			unix.Close(fd)
		}
	}
	for _, n := range names {
		fd, err := unix.Open(filepath.Join(dir, n), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			closeAll()
			return nil, fmt.Errorf("look at the changes: %w", err)
		}
		s.lowers = append(s.lowers, fd)
	}
	return closeAll, nil
}

// lowerTime returns the mtime of path in the topmost directory below that has it.
func (s *upperScan) lowerTime(path string) (int64, bool) {
	how := &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	dir := tree.Parent(path)
	if dir == "" {
		dir = "."
	}
	for _, fd := range s.lowers {
		up, err := unix.Openat2(fd, dir, how)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstatat(up, tree.Base(path), &st, unix.AT_SYMLINK_NOFOLLOW)
		unix.Close(up)
		if err == nil {
			return unix.TimespecToNsec(st.Mtim), true
		}
	}
	return 0, false
}

// isCopy tells whether the kernel has copied the file up from the image, where a
// new one in its place would be the command's. Only files and directories can carry
// the mark; of anything else there is nothing to change but its name.
func (s *upperScan) isCopy(up int, name string, n *node) bool {
	if kind := n.mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return true
	}
	_, err := unix.Lgetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", up, name), s.marks+"origin", nil)
	return err == nil
}

// upperName looks at one name of the upper, or one that an opaque directory hides.
func (s *upperScan) upperName(ctx context.Context, up int, name, path string) error {
	var st unix.Stat_t
	err := unix.Fstatat(up, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	kind := st.Mode & unix.S_IFMT
	switch {
	case err == unix.ENOENT, err == nil && kind == unix.S_IFCHR && st.Rdev == 0, err == nil && kind == unix.S_IFSOCK:
		// A socket cannot be in a layer, but what it replaced is gone.
		s.gone(path)
		return nil
	case err != nil:
		return fmt.Errorf("look at /%s: %w", path, err)
	}
	n := newNode(name, &st)
	if s.oneID {
		if err := s.imageOwner(path, &n, func() bool { return s.isCopy(up, name, &n) }); err != nil {
			return err
		}
	}
	differs, err := s.differs(path, &n, func() (int64, bool) { return s.lowerTime(path) })
	if err != nil {
		return fmt.Errorf("compare /%s: %w", path, err)
	}
	if differs {
		s.add(path, &n)
	}
	if kind == unix.S_IFDIR {
		return s.upperDir(ctx, up, name, path)
	}
	return nil
}
