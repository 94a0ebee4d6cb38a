// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"hako/internal/tree"
)

// followLinks returns paths, and what symbolic links on them lead to inside the
// tree, as include patterns; nil if they come to the whole tree. Wildcards in
// paths find links too and otherwise stay what they are.
//
// It is fsutil's FollowLinks, oddities included: of two paths through the same
// link only the first is followed to its end, as only that much of the context
// reaches BuildKit.
func followLinks(base tree.FS, paths []string) ([]string, error) {
	l := &linkFollower{base: base, found: map[string]struct{}{}}
	for _, p := range paths {
		if err := l.follow(p); err != nil {
			return nil, fmt.Errorf("follow %q: %w", p, err)
		}
	}
	return dropBelow(slices.Sorted(maps.Keys(l.found))), nil
}

// dropBelow drops each path that lies below the one kept before it; nil if one
// of them is the root.
func dropBelow(paths []string) []string {
	out := make([]string, 0, len(paths))
	last := ""
	for _, p := range paths {
		if p == "." {
			return nil
		}
		if strings.HasPrefix(p, last+"/") {
			continue
		}
		out = append(out, p)
		last = p
	}
	return out
}

type linkFollower struct {
	base  tree.FS
	found map[string]struct{}
}

// follow adds p, or the link on it that comes first and where that leads.
func (l *linkFollower) follow(p string) error {
	if runtime.GOOS == "windows" {
		if _, rest, ok := strings.Cut(p, ":"); ok && filepath.IsAbs(filepath.FromSlash(p)) {
			p = rest
		}
	}
	rest := filepath.ToSlash(filepath.Join(".", p))
	done := ""
	for more := true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		if name != "." {
			done = tree.Join(done, name)
		}
		targets, err := l.targets(done, true)
		if err != nil {
			return err
		}
		key := done
		if key == "" {
			key = "."
		}
		if targets == nil && more {
			continue
		}
		if _, ok := l.found[key]; ok {
			return nil
		}
		l.found[key] = struct{}{}
		for _, t := range targets {
			if err := l.follow(tree.Join(t, rest)); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// targets returns where the links that p matches lead; nil if there are none.
func (l *linkFollower) targets(p string, wildcards bool) ([]string, error) {
	if wildcards && hasWildcard(tree.Base(p)) {
		return l.matchTargets(p)
	}
	if p == "" || p == ".." || strings.HasPrefix(p, "../") {
		return nil, nil
	}
	e, err := l.base.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || !e.Mode.IsSymlink() {
		return nil, err
	}
	link := filepath.ToSlash(filepath.Clean(filepath.FromSlash(e.Link)))
	if !strings.HasPrefix(link, "/") {
		link = tree.Join(tree.Parent(p), link)
	}
	return []string{"/" + tree.Clean(link)}, nil
}

func (l *linkFollower) matchTargets(p string) ([]string, error) {
	dir, base := tree.Parent(p), tree.Base(p)
	self, err := l.base.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !self.Mode.IsDir() {
		return nil, nil
	}
	var entries []tree.Entry
	if err == nil {
		entries, err = l.base.ReadDir(dir)
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if ok, _ := filepath.Match(base, e.Name()); !ok {
			continue
		}
		t, err := l.targets(e.Path, false)
		if err != nil {
			return nil, err
		}
		out = append(out, t...)
	}
	return out, nil
}

// hasWildcard reports whether name has a wildcard that is not escaped.
func hasWildcard(name string) bool {
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '\\' && runtime.GOOS != "windows":
			i++
		case c == '*' || c == '?' || c == '[':
			return true
		}
	}
	return false
}
