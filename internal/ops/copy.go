// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher"

	"hako/internal/tree"
)

const capability = "security.capability"

// copy is one COPY or ADD of one source argument, which may match several
// files. The order of things is BuildKit's, as errors and results depend on it:
// find the sources; for each, unpack it if it is an archive, else copy it.
func (g *fileGraph) copy(src tree.FS, dst *tree.Overlay, a *pb.FileActionCopy, own *owner) error {
	if !a.CreateDestPath {
		p, err := tree.Resolve(dst, tree.Clean(a.Dest), true)
		if err != nil {
			return fmt.Errorf("copy to %q: %w", a.Dest, err)
		}
		if _, err := dst.Lstat(tree.Parent(p)); err != nil {
			return fmt.Errorf("copy to %q: %w", a.Dest, err)
		}
	}
	mod, err := newChmod(a)
	if err != nil {
		return err
	}
	matches, err := sources(g.ctx, src, a)
	if err != nil {
		return err
	}
	required := slices.Clone(a.RequiredPaths)
	for _, m := range matches {
		if a.AttemptUnpackDockerCompatibility {
			u := &unpacker{ctx: g.ctx, dst: dst, own: own, when: g.when(a.Timestamp), clock: g.env.Clock, spool: g.spool}
			done, err := u.unpack(src, m, cleanPath(a.Dest))
			if err != nil {
				return fmt.Errorf("unpack %q to %q: %w", m, a.Dest, err)
			}
			if done {
				continue
			}
		}
		c := &copier{
			ctx: g.ctx, src: src, dst: dst, own: own, mod: mod, replace: a.AlwaysReplaceExistingDestPaths,
			when: g.when(a.Timestamp), links: map[tree.NodeID]string{}, required: required,
		}
		if a.Timestamp != -1 {
			c.fixed = &c.when
		}
		if err := c.copyMatch(a, m); err != nil {
			return err
		}
		required = c.required
	}
	if len(a.IncludePatterns) > 0 && len(required) > 0 {
		return &NotFoundError{Path: required[0]}
	}
	return nil
}

// sources returns the paths that an action's source stands for.
func sources(ctx context.Context, src tree.FS, a *pb.FileActionCopy) ([]string, error) {
	p := cleanPath(a.Src)
	if !a.AllowWildcard {
		return []string{p}, nil
	}
	dir, pattern := splitWildcard(p)
	if pattern == "" {
		return []string{dir}, nil
	}
	root, err := rootPath(src, dir, a.FollowSymlink)
	if err != nil {
		return nil, fmt.Errorf("find %q: %w", a.Src, err)
	}
	if _, err := src.Lstat(root); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, &NotFoundError{Path: a.Src}
		}
		return nil, err
	}
	matches, err := glob(ctx, src, root, pattern)
	if err != nil {
		return nil, fmt.Errorf("find %q: %w", a.Src, err)
	}
	if len(matches) == 0 && !a.AllowEmptyWildcard {
		return nil, &NotFoundError{Path: a.Src}
	}
	return matches, nil
}

// splitWildcard cuts p before its first component with a wildcard.
func splitWildcard(p string) (dir, pattern string) {
	parts := strings.Split(path.Join(p), "/")
	i := slices.IndexFunc(parts, hasWildcard)
	if i < 0 {
		return path.Join("/", p), ""
	}
	return path.Join("/", path.Join(parts[:i]...)), path.Join(parts[i:]...)
}

// hasWildcard reports whether s has a wildcard that no backslash takes the
// meaning from.
func hasWildcard(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// glob returns the paths below root whose path relative to it matches pattern;
// nothing below a match is looked at. A malformed pattern matches nothing.
func glob(ctx context.Context, fsys tree.FS, root, pattern string) ([]string, error) {
	e, err := fsys.Lstat(root)
	if err != nil || !e.Mode.IsDir() {
		return nil, err
	}
	// A match has as many slashes as the pattern, unless a negated class
	// like [^a] matches one.
	depth := strings.Count(pattern, "/")
	if strings.Contains(pattern, "[") {
		depth = -1
	}
	var out []string
	var walk func(dir, rel string, level int) error
	walk = func(dir, rel string, level int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		es, err := fsys.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range es {
			r := tree.Join(rel, e.Name())
			if ok, _ := path.Match(pattern, r); ok {
				out = append(out, e.Path)
			} else if e.Mode.IsDir() && (depth < 0 || level < depth) {
				if err := walk(e.Path, r, level+1); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return out, walk(root, "", 0)
}

// rootPath resolves p in fsys, its last component only if follow is set.
func rootPath(fsys tree.FS, p string, follow bool) (string, error) {
	return tree.Resolve(fsys, tree.Clean(p), follow)
}

// A copier copies one source, a file or a directory.
type copier struct {
	ctx     context.Context //nolint:containedctx // lives for one call
	src     tree.FS
	dst     *tree.Overlay
	own     *owner
	mod     chmod
	when    time.Time  // of what is created without a counterpart in the source
	fixed   *time.Time // of everything, if set
	replace bool       // replace what is in the way, whatever it is

	include, exclude *patternmatcher.PatternMatcher
	from             string // the source as asked for, for messages and required
	required         []string
	links            map[tree.NodeID]string // first copy of files with several names
	parents          []parentDir
}

// A parentDir is a source directory on the way to what is being copied.
type parentDir struct {
	entry  tree.Entry
	target string
	copied bool
}

// copyMatch copies one match of an action's source to its destination.
func (c *copier) copyMatch(a *pb.FileActionCopy, m string) error {
	c.from = m
	if err := c.patterns(a); err != nil {
		return err
	}
	dest := cleanPath(a.Dest)
	// "dir/" and "dir/." name a directory, which is made; of "dir/name"
	// only dir is.
	dir, name := path.Split(dest)
	if name == "." {
		dir = dest
	}
	if err := c.mkdirAll(dir); err != nil {
		return fmt.Errorf("copy %q to %q: %w", m, a.Dest, err)
	}
	target, err := rootPath(c.dst, dest, true)
	if err != nil {
		return fmt.Errorf("copy %q to %q: %w", m, a.Dest, err)
	}
	p, err := rootPath(c.src, m, a.FollowSymlink)
	if err != nil {
		return fmt.Errorf("copy %q: %w", m, err)
	}
	e, err := c.src.Lstat(p)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return &NotFoundError{Path: a.Src}
		}
		return err
	}
	if target, err = c.prepareTarget(e, target, a.DirCopyContents); err != nil {
		return fmt.Errorf("copy %q to %q: %w", m, a.Dest, err)
	}
	return c.copy(e, "", target, false, patternmatcher.MatchInfo{}, patternmatcher.MatchInfo{})
}

func (c *copier) patterns(a *pb.FileActionCopy) (err error) {
	if len(a.IncludePatterns) > 0 {
		if c.include, err = patternmatcher.New(a.IncludePatterns); err != nil {
			return fmt.Errorf("invalid include patterns %q: %w", a.IncludePatterns, err)
		}
	}
	if len(a.ExcludePatterns) > 0 {
		if c.exclude, err = patternmatcher.New(a.ExcludePatterns); err != nil {
			return fmt.Errorf("invalid exclude patterns %q: %w", a.ExcludePatterns, err)
		}
	}
	return nil
}

// mkdirAll makes a directory of the destination, links followed.
func (c *copier) mkdirAll(p string) error {
	p, err := rootPath(c.dst, p, true)
	if err != nil {
		return err
	}
	err = mkdirAll(c.dst, p, c.mod.parents(), c.own, c.when)
	return err
}

// prepareTarget returns what e is to be copied to, given that the destination
// leads to dest, and makes the directory for it.
func (c *copier) prepareTarget(e tree.Entry, dest string, contents bool) (string, error) {
	old, err := c.dst.Lstat(dest)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	isDir := e.Mode.IsDir()
	if (!contents && isDir && exists) || (!isDir && exists && old.Mode.IsDir()) {
		// The name is that of the source as asked for, before links.
		dest = tree.Clean(path.Join(dest, path.Base(c.from)))
	}
	dir := tree.Parent(dest)
	if contents && isDir && !exists {
		dir = dest
	}
	err = mkdirAll(c.dst, dir, c.mod.parents(), c.own, c.when)
	return dest, err
}

// copy copies e to target. rel is e's path relative to the source, which the
// patterns are about; merge says that a directory which exists takes e's
// metadata (all but the source itself do).
func (c *copier) copy(e tree.Entry, rel, target string, merge bool, inParent, exParent patternmatcher.MatchInfo) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	m, err := c.match(rel, inParent, exParent)
	if err != nil {
		return err
	}
	if m.include {
		c.found(rel)
	} else if !e.Mode.IsDir() {
		return nil
	}
	old, err := c.dst.Lstat(target)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if !exists {
		if err := c.checkParent(rel); err != nil {
			return err
		}
	}
	if m.include {
		if c.replace && exists && (!e.Mode.IsDir() || !old.Mode.IsDir()) {
			if err := c.dst.Remove(target); err != nil {
				return err
			}
			exists = false
		}
		if err := c.makeParents(merge); err != nil {
			return err
		}
	}
	if e.Mode.IsDir() {
		return c.dir(e, rel, target, merge, m)
	}
	if exists && old.Mode.IsDir() {
		return fmt.Errorf("copy %q: cannot replace to directory %q with file", c.name(rel), "/"+target)
	}
	return c.file(e, target)
}

// checkParent fails if the directory that is being copied, but not made yet, has
// a file in its place: BuildKit stumbles over that even if nothing is included.
func (c *copier) checkParent(rel string) error {
	if len(c.parents) == 0 || c.parents[len(c.parents)-1].copied {
		return nil
	}
	p := c.parents[len(c.parents)-1].target
	e, err := c.dst.Lstat(p)
	if err != nil || e.Mode.IsDir() || e.Mode.IsSymlink() {
		return nil //nolint:nilerr // what is not there is not in the way
	}
	return fmt.Errorf("copy %q: cannot copy to non-directory: %q", c.name(rel), "/"+p)
}

// A match says what the patterns make of a path.
type match struct {
	include, excluded bool
	in, ex            patternmatcher.MatchInfo
}

func (c *copier) match(rel string, inParent, exParent patternmatcher.MatchInfo) (match, error) {
	m := match{include: true}
	if rel == "" {
		return m, nil
	}
	var err error
	if c.include != nil {
		if m.include, m.in, err = c.include.MatchesUsingParentResults(rel, inParent); err != nil {
			return m, fmt.Errorf("match include patterns: %w", err)
		}
	}
	if c.exclude != nil {
		if m.excluded, m.ex, err = c.exclude.MatchesUsingParentResults(rel, exParent); err != nil {
			return m, fmt.Errorf("match exclude patterns: %w", err)
		}
	}
	m.include = m.include && !m.excluded
	return m, nil
}

// name is rel as the user would write it.
func (c *copier) name(rel string) string { return path.Join("/", c.from, rel) }

// found strikes off the required paths that the copied rel is, or is below of.
func (c *copier) found(rel string) {
	if len(c.required) == 0 {
		return
	}
	p := tree.Clean(c.name(rel))
	c.required = slices.DeleteFunc(c.required, func(r string) bool { return tree.Within(p, tree.Clean(r)) })
}

// info gives a copy of e what --chown, --chmod and the time say, and e's
// metadata otherwise.
func (c *copier) info(e tree.Entry, target string) tree.Entry {
	e.Path, e.Node = target, tree.NodeID{}
	e.Mode = c.mod.apply(e.Mode)
	if c.own != nil {
		e.UID, e.GID = c.own.uid, c.own.gid
	}
	if c.fixed != nil {
		e.ModTime = *c.fixed
	}
	return e
}

// file copies anything but a directory; it replaces what is no directory.
func (c *copier) file(e tree.Entry, target string) error {
	switch e.Mode.Type() {
	case tree.ModeRegular:
		if first, ok := c.links[e.Node]; ok && first != target {
			return c.dst.Link(target, first)
		}
		open, err := tree.OpenerOf(c.src, e.Path)
		if err != nil {
			return err
		}
		if e.Node != (tree.NodeID{}) {
			c.links[e.Node] = target
		}
		return c.dst.Put(c.info(e, target), open)
	case tree.ModeBlock:
		// BuildKit's copier clears the bits of a socket's type from the mode
		// of every special file, and a block device's type has one of them:
		// its copy is a character device (fsutil copy, copyDevice).
		e.Mode = e.Mode&^tree.ModeType | tree.ModeChar
	case tree.ModeSocket:
		// BuildKit leaves an empty regular file in its place.
		e.Mode, e.Size = tree.ModeRegular|e.Mode.Perm(), 0
		return c.dst.Put(c.info(e, target), nil)
	}
	return c.dst.Special(c.info(e, target))
}

// dir copies a directory. One that the patterns do not include is made when
// something below it turns out to be included.
func (c *copier) dir(e tree.Entry, rel, target string, merge bool, m match) error {
	created := false
	if m.include {
		var err error
		if created, err = c.dirOnly(e, rel, target, merge); err != nil {
			return err
		}
	}
	if !m.excluded || (c.exclude != nil && c.exclude.Exclusions()) {
		c.parents = append(c.parents, parentDir{entry: e, target: target, copied: m.include})
		if err := c.children(e, rel, target, m); err != nil {
			return err
		}
		c.parents = c.parents[:len(c.parents)-1]
	}
	switch {
	case !m.include:
		return nil
	case created || merge:
		return c.setDir(e, target)
	}
	// The destination itself existed: of its metadata only the time changes.
	return c.dst.SetAttr(target, func(d *tree.Entry) { d.ModTime = c.info(e, target).ModTime })
}

func (c *copier) children(e tree.Entry, rel, target string, m match) error {
	es, err := c.src.ReadDir(e.Path)
	if err != nil {
		return fmt.Errorf("copy %q: %w", c.name(rel), err)
	}
	for _, k := range es {
		name := k.Name()
		if err := c.copy(k, tree.Join(rel, name), tree.Join(target, name), true, m.in, m.ex); err != nil {
			return err
		}
	}
	return nil
}

// setDir gives a directory the metadata of e; its own xattrs stay beside e's.
func (c *copier) setDir(e tree.Entry, target string) error {
	n := c.info(e, target)
	return c.dst.SetAttr(target, func(d *tree.Entry) {
		d.Mode, d.UID, d.GID, d.ModTime = n.Mode, n.UID, n.GID, n.ModTime
		if len(n.Xattrs) == 0 {
			return
		}
		if d.Xattrs == nil {
			d.Xattrs = map[string]string{}
		}
		maps.Copy(d.Xattrs, n.Xattrs)
	})
}

// dirOnly makes the directory target like e and reports whether it was missing.
// An existing one takes e's mode bits if merge is set.
func (c *copier) dirOnly(e tree.Entry, rel, target string, merge bool) (bool, error) {
	old, err := c.dst.Lstat(target)
	if errors.Is(err, fs.ErrNotExist) {
		n := c.info(e, target)
		n.Xattrs = maps.Clone(e.Xattrs)
		return true, c.dst.Mkdir(n)
	}
	if err != nil {
		return false, err
	}
	if !old.Mode.IsDir() {
		return false, fmt.Errorf("copy %q: cannot copy to non-directory: %q", c.name(rel), "/"+target)
	}
	if merge && old.Mode != e.Mode {
		return false, c.dst.SetAttr(target, func(d *tree.Entry) { d.Mode = e.Mode })
	}
	return false, nil
}

// makeParents makes the directories that were waiting for something in them to
// be included. Their time is that of their making: something is put into them.
func (c *copier) makeParents(merge bool) error {
	for i, p := range c.parents {
		if p.copied {
			continue
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(p.entry.Path, c.parents[0].entry.Path), "/")
		created, err := c.dirOnly(p.entry, rel, p.target, merge)
		if err != nil {
			return err
		}
		if created {
			if err := c.dst.SetAttr(p.target, func(d *tree.Entry) { d.ModTime = c.when }); err != nil {
				return err
			}
		}
		c.parents[i].copied = true
	}
	return nil
}
