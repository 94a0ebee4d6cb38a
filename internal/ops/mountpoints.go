// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"errors"
	"io/fs"
	"slices"
	"time"

	"hako/internal/tree"
)

// mountPoints returns the directories that a container runtime makes in a root
// without them, and that BuildKit leaves there, unlike the mount points of a
// RUN's own mounts (executor/stubs.go). A base without layers has no tree.
func mountPoints(base tree.FS, when time.Time) ([]tree.Change, error) {
	var missing []tree.Change
	for _, p := range []string{"dev", "proc", "sys"} {
		if base != nil {
			_, err := base.Lstat(p)
			if err == nil {
				continue
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		missing = append(missing, tree.Change{Entry: tree.Entry{Path: p, Mode: tree.ModeDir | 0o755, ModTime: when}, Touched: true})
	}
	return missing, nil
}

// withChanges adds changes, which are sorted, to a sequence that may hold some
// of them already.
func withChanges(changes changeSeq, more []tree.Change) changeSeq {
	if len(more) == 0 {
		return changes
	}
	return func(yield func(tree.Change, error) bool) {
		rest := slices.Clone(more)
		for c, err := range changes {
			for err == nil && len(rest) > 0 && tree.ComparePaths(rest[0].Path, c.Path) <= 0 {
				add := rest[0]
				rest = rest[1:]
				if add.Path != c.Path && !yield(add, nil) {
					return
				}
			}
			if !yield(c, err) || err != nil {
				return
			}
		}
		for _, c := range rest {
			if !yield(c, nil) {
				return
			}
		}
	}
}
