// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"hako/internal/git"
)

const (
	headsPrefix = "refs/heads/"
	tagsPrefix  = "refs/tags/"
)

// resolveRef finds what a name means on a server, in BuildKit's order
// (source/git resolveMetadataFromURL): below refs/ as it is, then a branch,
// then a tag.
func resolveRef(ctx context.Context, c *git.Remote, name string) (git.Ref, error) {
	if name == "" {
		var err error
		if name, err = defaultBranch(ctx, c); err != nil {
			return git.Ref{}, err
		}
	}
	full := "refs/" + strings.TrimPrefix(name, "refs/")
	branch := headsPrefix + strings.TrimPrefix(name, headsPrefix)
	tag := tagsPrefix + strings.TrimPrefix(name, tagsPrefix)
	refs, err := c.Refs(ctx, full, branch, tag)
	if err != nil {
		return git.Ref{}, err
	}
	found := make(map[string]git.Ref)
	for _, r := range refs {
		found[r.Name] = r
	}
	for _, n := range []string{full, branch, tag} {
		r, ok := found[n]
		if !ok {
			continue
		}
		if n != tag {
			// BuildKit compares a checksum with the peeled ID of tags only.
			r.Peeled = git.ID{}
		}
		return r, nil
	}
	return git.Ref{}, noRef(ctx, c, name)
}

// defaultBranch returns the branch that HEAD stands for.
func defaultBranch(ctx context.Context, c *git.Remote) (string, error) {
	refs, err := c.Refs(ctx, "HEAD")
	if err != nil {
		return "", err
	}
	for _, r := range refs {
		if r.Name == "HEAD" && strings.HasPrefix(r.Target, headsPrefix) {
			return strings.TrimPrefix(r.Target, headsPrefix), nil
		}
	}
	return "", noRef(ctx, c, "")
}

// noRef returns the error for a name that is not there.
func noRef(ctx context.Context, c *git.Remote, name string) error {
	e := &GitRefError{Ref: name}
	refs, err := c.Refs(ctx)
	if err != nil {
		return e
	}
	e.Empty = len(refs) == 0
	e.Near = nearRefs(refs, name)
	return e
}

// nearRefs returns the branches and tags whose names are like name.
func nearRefs(refs []git.Ref, name string) []string {
	type candidate struct {
		name string
		cost int
	}
	short := strings.TrimPrefix(strings.TrimPrefix(name, headsPrefix), tagsPrefix)
	var list []candidate
	for _, r := range branchesAndTags(refs) {
		n := strings.TrimPrefix(strings.TrimPrefix(r.Name, headsPrefix), tagsPrefix)
		cost := distance(strings.ToLower(n), strings.ToLower(short))
		if strings.TrimPrefix(n, "v") == strings.TrimPrefix(short, "v") || strings.HasSuffix(n, "/"+short) {
			cost = 0
		}
		if cost <= max(2, len(short)/3) || name == "" && strings.HasPrefix(r.Name, headsPrefix) {
			list = append(list, candidate{n, cost})
		}
	}
	slices.SortFunc(list, func(a, b candidate) int { return cmp.Or(a.cost-b.cost, strings.Compare(a.name, b.name)) })
	var names []string
	for _, c := range list {
		if !slices.Contains(names, c.name) && len(names) < maxNear {
			names = append(names, c.name)
		}
	}
	return names
}
