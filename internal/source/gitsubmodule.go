// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"hako/internal/git"
	"hako/internal/tree"
)

const (
	// maxSubmoduleDepth bounds submodules of submodules.
	maxSubmoduleDepth = 32
	// maxSubmodules bounds all of them together: each is a connection and a pack.
	maxSubmodules = 4096
)

// submodules fetches the submodules of r and theirs, each at the commit that
// its directory names.
func (f *gitFetch) submodules(ctx context.Context, r *gitRepo, depth int) error {
	if !r.holders[r.head.Tree] {
		return nil
	}
	if depth >= maxSubmoduleDepth {
		return fmt.Errorf("submodules are more than %d deep", maxSubmoduleDepth)
	}
	links := make(map[string]git.ID)
	var paths []string
	if err := r.links(r.root(), func(p string, id git.ID) {
		links[p] = id
		paths = append(paths, p)
	}); err != nil {
		return err
	}
	if err := r.readModules(); err != nil {
		return err
	}
	r.subs = make(map[string]*gitRepo)
	for _, p := range paths {
		m, ok := r.modules[p]
		if !ok || m.URL == "" {
			return fmt.Errorf("%s says no address for the submodule %q", git.ModulesFile, p)
		}
		if m.Skip {
			continue
		}
		if f.count++; f.count > maxSubmodules {
			return fmt.Errorf("there are more than %d submodules", maxSubmodules)
		}
		sub, err := f.submodule(ctx, r, m, links[p], depth)
		if err != nil {
			return fmt.Errorf("submodule %q: %w", p, err)
		}
		r.subs[p] = sub
	}
	return nil
}

func (f *gitFetch) submodule(ctx context.Context, r *gitRepo, m git.Module, id git.ID, depth int) (*gitRepo, error) {
	remote, err := git.Resolve(r.remote, m.URL)
	if err != nil {
		return nil, err
	}
	sub, err := f.repository(ctx, remote, gitGoal{ref: id.String(), id: id, hasID: true, depth: 1})
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", redactGit(remote), err)
	}
	f.opt.Log(fmt.Sprintf("Submodule path '%s': checked out '%s'", m.Path, id))
	if err := sub.check(ctx); err != nil {
		return nil, err
	}
	return sub, f.submodules(ctx, sub, depth+1)
}

// links calls found for every submodule's path, in order.
func (r *gitRepo) links(n gitNode, found func(p string, id git.ID)) error {
	list, err := r.tree(n.ID)
	if err != nil {
		return err
	}
	for _, e := range list {
		c := gitNode{repo: r, path: tree.Join(n.path, e.Name), TreeEntry: e}
		switch {
		case e.Mode == git.Submodule:
			found(c.path, e.ID)
		case e.Mode == git.Directory && r.holders[e.ID]:
			if err := r.links(c, found); err != nil {
				return err
			}
		}
	}
	return nil
}

// readModules reads .gitmodules.
func (r *gitRepo) readModules() error {
	n, err := r.find(git.ModulesFile)
	if errors.Is(err, fs.ErrNotExist) || err == nil && n.Mode != git.Regular && n.Mode != git.Executable {
		return nil // said for the first submodule
	}
	if err != nil {
		return err
	}
	b, err := r.pack.Read(n.ID, git.Blob)
	if err != nil {
		return err
	}
	r.modules, err = git.ParseModules(b)
	return err
}
