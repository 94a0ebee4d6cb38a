// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"io"
	"time"

	"hako/internal/tree"
)

// LocalOptions say which part of a directory a build sees. The patterns are
// those of a .dockerignore file as BuildKit's frontend hands them out.
type LocalOptions struct {
	// FollowPaths, if not empty, limits the view to these paths and to
	// what symbolic links on them lead to. They may hold wildcards.
	FollowPaths []string
	// IncludePatterns, if not empty, limits the view to what matches.
	// FollowPaths add to them.
	IncludePatterns []string
	// ExcludePatterns remove what matches, and "!" patterns take back.
	ExcludePatterns []string
	// RootTime is the modification time of the view's root.
	RootTime time.Time
}

// A LocalFS is a build context: the files of a directory that a build asks for
// and ignore patterns leave, in the form in which BuildKit's client sends them
// for a local:// source.
//
//   - Owners are 0:0; modes (with setuid, setgid, sticky), modification times,
//     links, devices and FIFOs are kept.
//   - A socket becomes an empty regular file.
//   - Hard links are kept between regular files.
//   - Files lose security.capability, which BuildKit sends but the chown that
//     follows on the other side removes. Other attributes are passed on if the
//     directory has them; a layer keeps none of them.
//   - The root is a directory 0755 whatever the directory's own mode is.
//   - A directory that is left out is shown all the same if something in it is not.
//
// The view is lazy: a directory is read when it is asked for. It is safe for
// concurrent use, and what it remembers is bounded.
type LocalFS struct {
	base     tree.FS
	filter   *filter
	rootTime time.Time
}

var _ tree.FS = (*LocalFS)(nil)

// Local returns the view of dir that opt describes. It reads dir as far as
// symbolic links in opt.FollowPaths need it.
func Local(dir tree.FS, opt LocalOptions) (*LocalFS, error) {
	f, err := newFilter(dir, opt)
	if err != nil {
		return nil, err
	}
	return &LocalFS{base: dir, filter: f, rootTime: opt.RootTime}, nil
}

// Lstat implements [tree.FS].
func (l *LocalFS) Lstat(p string) (tree.Entry, error) {
	if p == "" {
		return tree.Entry{Mode: tree.ModeDir | 0o755, ModTime: l.rootTime}, nil
	}
	e, err := l.base.Lstat(p)
	if err != nil {
		return tree.Entry{}, err
	}
	shown, err := l.filter.shown(p, e.Mode.IsDir())
	if err != nil {
		return tree.Entry{}, err
	}
	if !shown {
		return tree.Entry{}, tree.NotExist("lstat", p)
	}
	return sent(e), nil
}

// ReadDir implements [tree.FS].
func (l *LocalFS) ReadDir(p string) ([]tree.Entry, error) {
	if p != "" {
		if _, err := l.Lstat(p); err != nil {
			return nil, err
		}
	}
	entries, err := l.base.ReadDir(p)
	if err != nil {
		return nil, err
	}
	out := make([]tree.Entry, 0, len(entries))
	for _, e := range entries {
		shown, err := l.filter.shown(e.Path, e.Mode.IsDir())
		if err != nil {
			return nil, err
		}
		if shown {
			out = append(out, sent(e))
		}
	}
	return out, nil
}

// Open implements [tree.FS].
func (l *LocalFS) Open(p string) (io.ReadCloser, error) {
	e, err := l.base.Lstat(p)
	if err != nil {
		return nil, err
	}
	shown, err := l.filter.shown(p, e.Mode.IsDir())
	if err != nil {
		return nil, err
	}
	if !shown {
		return nil, tree.NotExist("open", p)
	}
	if e.Mode.Type() == tree.ModeSocket {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	return l.base.Open(p)
}

// sent returns e as it arrives on the other side of BuildKit's transfer.
func sent(e tree.Entry) tree.Entry {
	e.UID, e.GID = 0, 0
	if e.Mode.Type() == tree.ModeSocket {
		e.Mode = tree.ModeRegular | e.Mode.Perm()
		e.Size, e.Digest = 0, ""
	}
	if !e.Mode.IsRegular() {
		e.Node = tree.NodeID{}
	}
	const capability = "security.capability"
	if _, ok := e.Xattrs[capability]; ok && !e.Mode.IsDir() {
		kept := make(map[string]string, len(e.Xattrs))
		for k, v := range e.Xattrs {
			if k != capability {
				kept[k] = v
			}
		}
		if e.Xattrs = kept; len(kept) == 0 {
			e.Xattrs = nil
		}
	}
	return e
}
