// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Snapshot lists every file below root, one line each in the order of a walk: mode, owner, size, mtime, link count, device,
// link target, extended attributes and the SHA-256 of the contents. Two equal
// snapshots are a tree that was left as it was found.
//
// Sizes of directories are left out: they tell how a directory grew, not what
// is in it.
func Snapshot(root string) ([]string, error) {
	var lines []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		line, err := describe(root, path)
		if err != nil {
			return err
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	return lines, nil
}

func describe(root, path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	size, nlink := st.Size, st.Nlink
	var more string
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		size, nlink = 0, 0
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		more = " -> " + target
	case unix.S_IFREG:
		sum, err := sumFile(path)
		if err != nil {
			return "", err
		}
		more = " sha256:" + sum
	}
	xattrs, err := listXattrs(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %06o %d:%d size=%d mtime=%d.%09d nlink=%d rdev=%#x%s%s", "/"+strings.TrimPrefix(strings.TrimPrefix(path, root), "/"),
		st.Mode, st.Uid, st.Gid, size, st.Mtim.Sec, st.Mtim.Nsec, nlink, st.Rdev, more, xattrs), nil
}

func sumFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

func listXattrs(path string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return "", fmt.Errorf("list xattrs of %s: %w", path, err)
	}
	var b strings.Builder
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("read xattr %s of %s: %w", name, path, err)
		}
		fmt.Fprintf(&b, " %s=%x", name, value[:n])
	}
	return b.String(), nil
}
