// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"hako/internal/git"
	"hako/internal/tree"
)

// A gitRepo is one commit of a repository with its submodules. It is safe for
// concurrent use once it is complete.
type gitRepo struct {
	remote  string
	found   git.Ref // what was asked for
	head    *git.CommitInfo
	pack    *git.Pack
	file    storeFile // of the pack
	refs    []git.Ref // all branches and tags, if they were asked for
	shallow []git.ID

	converts bool            // some attributes change contents
	holders  map[git.ID]bool // trees with submodules at or below them
	modules  map[string]git.Module
	subs     map[string]*gitRepo // by path

	mu     sync.Mutex
	trees  map[git.ID][]git.TreeEntry
	cached int // entries in trees
	attrs  map[string]*git.Attributes
	sizes  map[convertedBlob]int64
}

type convertedBlob struct {
	id git.ID
	by git.Conversion
}

// maxCachedEntries bounds the entries of trees that are kept.
const maxCachedEntries = 1 << 16

// tree returns a tree's entries.
func (r *gitRepo) tree(id git.ID) ([]git.TreeEntry, error) {
	r.mu.Lock()
	list, ok := r.trees[id]
	r.mu.Unlock()
	if ok {
		return list, nil
	}
	list, err := r.pack.Tree(id)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trees == nil || r.cached > maxCachedEntries {
		r.trees, r.cached = make(map[git.ID][]git.TreeEntry), 0
	}
	r.trees[id] = list
	r.cached += len(list)
	return list, nil
}

// check looks at all trees of the commit once: that they are there and their
// names can be used, as git does when it makes an index of them.
func (r *gitRepo) check(ctx context.Context) error {
	r.holders = make(map[git.ID]bool)
	return r.checkTree(ctx, r.head.Tree, make(map[git.ID]bool), 0)
}

// maxTreeDepth bounds directories within directories: git's limit is PATH_MAX,
// 4096 bytes.
const maxTreeDepth = 2048

func (r *gitRepo) checkTree(ctx context.Context, id git.ID, seen map[git.ID]bool, depth int) error {
	if seen[id] {
		return nil
	}
	seen[id] = true
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if depth > maxTreeDepth {
		return fmt.Errorf("directories are more than %d deep", maxTreeDepth)
	}
	list, err := r.tree(id)
	if err != nil {
		return err
	}
	for _, e := range list {
		switch e.Mode {
		case git.Directory:
			if err := r.checkTree(ctx, e.ID, seen, depth+1); err != nil {
				return err
			}
			if r.holders[e.ID] {
				r.holders[id] = true
			}
		case git.Submodule:
			r.holders[id] = true
		default:
			if err := r.checkBlob(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *gitRepo) checkBlob(e git.TreeEntry) error {
	typ, size, err := r.pack.Stat(e.ID)
	if err != nil {
		return fmt.Errorf("%q: %w", e.Name, err)
	}
	if typ != git.Blob {
		return fmt.Errorf("%q is a %s", e.Name, typ)
	}
	const longest = 4096
	if e.Mode == git.Symlink && size > longest {
		return fmt.Errorf("the link %q has a target of %d bytes", e.Name, size)
	}
	if e.Name != git.AttributesFile || e.Mode == git.Symlink || r.converts {
		return nil
	}
	b, err := r.pack.Read(e.ID, git.Blob)
	if err != nil {
		return err
	}
	for _, word := range []string{"eol=crlf", "ident", "working-tree-encoding"} {
		r.converts = r.converts || bytes.Contains(b, []byte(word))
	}
	return nil
}

// A gitNode is one name of a repository's tree.
type gitNode struct {
	repo *gitRepo
	path string // in repo
	git.TreeEntry
}

func (r *gitRepo) root() gitNode {
	return gitNode{repo: r, TreeEntry: git.TreeEntry{Mode: git.Directory, ID: r.head.Tree}}
}

// find returns the node at a path, which may lie in a submodule.
func (r *gitRepo) find(p string) (gitNode, error) {
	n := r.root()
	for rest := p; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if n.Mode != git.Directory {
			return n, tree.NotExist("lstat", p)
		}
		list, err := n.repo.tree(n.ID)
		if err != nil {
			return n, err
		}
		i, ok := slices.BinarySearchFunc(list, name, func(e git.TreeEntry, name string) int { return strings.Compare(e.Name, name) })
		if !ok {
			return n, tree.NotExist("lstat", p)
		}
		n = n.child(list[i])
	}
	return n, nil
}

// child returns the node of an entry of n's tree. A submodule that was fetched
// is its own root.
func (n gitNode) child(e git.TreeEntry) gitNode {
	p := tree.Join(n.path, e.Name)
	if e.Mode == git.Submodule {
		if sub := n.repo.subs[p]; sub != nil {
			root := sub.root()
			root.Name = e.Name
			return root
		}
	}
	return gitNode{repo: n.repo, path: p, TreeEntry: e}
}

// children returns the nodes in a directory, sorted by name.
func (n gitNode) children() ([]gitNode, error) {
	if n.Mode == git.Submodule {
		return nil, nil // not fetched: an empty directory
	}
	list, err := n.repo.tree(n.ID)
	if err != nil {
		return nil, err
	}
	nodes := make([]gitNode, len(list))
	for i, e := range list {
		nodes[i] = n.child(e)
	}
	return nodes, nil
}

func (n gitNode) isDir() bool { return n.Mode == git.Directory || n.Mode == git.Submodule }

// conversion returns what a checkout does to a file's content.
func (n gitNode) conversion() (git.Conversion, error) {
	if !n.repo.converts {
		return git.Conversion{}, nil
	}
	dirs := strings.Split(n.path, "/")
	files := make([]*git.Attributes, len(dirs))
	for i := range dirs {
		a, err := n.repo.attributes(strings.Join(dirs[:i], "/"))
		if err != nil {
			return git.Conversion{}, err
		}
		files[i] = a
	}
	c, err := git.ConversionOf(git.MatchAttributes(files, n.path))
	if err != nil {
		return c, fmt.Errorf("%q: %w", n.path, err)
	}
	return c, nil
}

// attributes returns the attributes file of a directory, nil if it has none.
func (r *gitRepo) attributes(dir string) (*git.Attributes, error) {
	r.mu.Lock()
	a, ok := r.attrs[dir]
	r.mu.Unlock()
	if ok {
		return a, nil
	}
	n, err := r.find(tree.Join(dir, git.AttributesFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case n.Mode == git.Regular || n.Mode == git.Executable:
		b, err := r.pack.Read(n.ID, git.Blob)
		if err != nil {
			return nil, err
		}
		a = git.ParseAttributes(b, dir == "")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.attrs == nil {
		r.attrs = make(map[string]*git.Attributes)
	}
	r.attrs[dir] = a
	return a, nil
}

// size returns the size of a checked-out file.
func (n gitNode) size() (int64, error) {
	c, err := n.conversion()
	if err != nil {
		return 0, err
	}
	if c.IsZero() {
		_, size, err := n.repo.pack.Stat(n.ID)
		return size, err
	}
	key := convertedBlob{n.ID, c}
	n.repo.mu.Lock()
	size, ok := n.repo.sizes[key]
	n.repo.mu.Unlock()
	if ok {
		return size, nil
	}
	b, err := n.repo.pack.Read(n.ID, git.Blob)
	if err != nil {
		return 0, err
	}
	size = int64(len(c.Apply(b, n.ID)))
	n.repo.mu.Lock()
	defer n.repo.mu.Unlock()
	if n.repo.sizes == nil {
		n.repo.sizes = make(map[convertedBlob]int64)
	}
	n.repo.sizes[key] = size
	return size, nil
}
