// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"hako/internal/git"
	"hako/internal/tree"
)

// A gitFS is the tree of a checkout, read from packs. What a checkout has
// besides the repository's files, such as .git, is in extra.
type gitFS struct {
	repo  *gitRepo
	dir   string // the part of the repository that is seen
	extra *gitExtra
	time  time.Time
}

var _ tree.FS = (*gitFS)(nil)

// view returns the tree that the options ask for.
func (f *gitFetch) view(ctx context.Context, r *gitRepo) (tree.FS, error) {
	v := &gitFS{repo: r, time: f.opt.Time, dir: tree.Clean(f.opt.Subdir)}
	if f.opt.CommitTime {
		v.time = r.head.Time
	}
	if err := v.checkDir(); err != nil {
		return nil, err
	}
	if f.opt.KeepGitDir && v.dir == "" {
		var err error
		if v.extra, err = f.gitDirs(ctx, r); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// checkDir makes sure that each part of the subdirectory's path is a directory
// itself, not a link to one.
func (f *gitFS) checkDir() error {
	at := ""
	for name := range strings.SplitSeq(f.dir, "/") {
		if f.dir == "" {
			break
		}
		at = tree.Join(at, name)
		n, err := f.repo.find(at)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return &GitPathError{Path: at}
		case err != nil:
			return err
		case n.Mode == git.Symlink:
			return &GitPathError{Path: at, What: "a link", Exist: true}
		case !n.isDir():
			return &GitPathError{Path: at, What: "a file", Exist: true}
		}
	}
	return nil
}

// find returns the node at a path of the tree.
func (f *gitFS) find(op, p string) (gitNode, error) {
	n, err := f.repo.find(tree.Join(f.dir, p))
	if errors.Is(err, fs.ErrNotExist) {
		return n, tree.NotExist(op, p) // by its path here
	}
	return n, err
}

// Lstat implements [tree.FS].
func (f *gitFS) Lstat(p string) (tree.Entry, error) {
	if x := f.extra.at(p); x != nil {
		return x.entry(p, f.time), nil
	}
	n, err := f.find("lstat", p)
	if err != nil {
		return tree.Entry{}, err
	}
	return f.entry(n, p)
}

// entry returns a node as umask 022 leaves it.
func (f *gitFS) entry(n gitNode, p string) (tree.Entry, error) {
	e := tree.Entry{Path: p, ModTime: f.time}
	var err error
	switch n.Mode {
	case git.Directory, git.Submodule:
		e.Mode = tree.ModeDir | 0o755
	case git.Symlink:
		e.Mode = tree.ModeSymlink | 0o777
		var b []byte
		b, err = n.repo.pack.Read(n.ID, git.Blob)
		e.Link = string(b)
	case git.Executable:
		e.Mode = tree.ModeRegular | 0o755
		e.Size, err = n.size()
	default:
		e.Mode = tree.ModeRegular | 0o644
		e.Size, err = n.size()
	}
	return e, err
}

// ReadDir implements [tree.FS].
func (f *gitFS) ReadDir(p string) ([]tree.Entry, error) {
	if x := f.extra.at(p); x != nil {
		return f.extraDir(x, p)
	}
	n, err := f.find("readdir", p)
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, &fs.PathError{Op: "readdir", Path: "/" + p, Err: syscall.ENOTDIR}
	}
	nodes, err := n.children()
	if err != nil {
		return nil, err
	}
	out := make([]tree.Entry, 0, len(nodes)+1)
	for _, c := range nodes {
		e, err := f.entry(c, tree.Join(p, c.Name))
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	if x := f.extra.at(tree.Join(p, gitDir)); x != nil {
		out = append(out, x.entry(tree.Join(p, gitDir), f.time))
		slices.SortFunc(out, func(a, b tree.Entry) int { return strings.Compare(a.Path, b.Path) })
	}
	return out, nil
}

func (f *gitFS) extraDir(x *extraFile, p string) ([]tree.Entry, error) {
	if x.children == nil {
		return nil, &fs.PathError{Op: "readdir", Path: "/" + p, Err: syscall.ENOTDIR}
	}
	var out []tree.Entry
	for _, name := range x.names() {
		c := tree.Join(p, name)
		out = append(out, f.extra.at(c).entry(c, f.time))
	}
	return out, nil
}

// Open implements [tree.FS].
func (f *gitFS) Open(p string) (io.ReadCloser, error) {
	if x := f.extra.at(p); x != nil && x.open != nil {
		return x.open()
	}
	n, err := f.find("open", p)
	if err != nil {
		return nil, err
	}
	if n.Mode != git.Regular && n.Mode != git.Executable {
		return nil, &fs.PathError{Op: "open", Path: "/" + p, Err: tree.ErrNotRegular}
	}
	c, err := n.conversion()
	if err != nil {
		return nil, err
	}
	if c.IsZero() {
		return n.repo.pack.Open(n.ID)
	}
	b, err := n.repo.pack.Read(n.ID, git.Blob)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(c.Apply(b, n.ID))), nil
}
