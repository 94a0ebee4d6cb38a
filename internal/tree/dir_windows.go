// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import "io/fs"

const openFlags = 0

// fileMode makes everything executable, as Windows has no such bit and images
// need it; Docker's clients do the same.
func fileMode(m fs.FileMode) Mode {
	t := FromFileMode(m)
	if t.IsSymlink() {
		return t
	}
	return t.Type() | (t.Perm()|0o111)&0o755
}

func sysInfo(fs.FileInfo, *Entry) {}
