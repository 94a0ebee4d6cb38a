// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DiskSpace returns the mount point of the file system that path, or the
// nearest directory above it that exists, is on, and its free and total bytes.
// A total of 0 means that nothing is known.
func DiskSpace(path string) (where string, free, total int64) {
	p, err := filepath.Abs(path)
	if err != nil {
		return path, 0, 0
	}
	var st unix.Stat_t
	for unix.Stat(p, &st) != nil {
		if p == filepath.Dir(p) {
			return path, 0, 0
		}
		p = filepath.Dir(p)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(p, &fs); err != nil {
		return p, 0, 0
	}
	for p != "/" {
		var up unix.Stat_t
		if unix.Stat(filepath.Dir(p), &up) != nil || up.Dev != st.Dev {
			break
		}
		p = filepath.Dir(p)
	}
	return p, int64(fs.Bavail) * fs.Bsize, int64(fs.Blocks) * fs.Bsize
}
