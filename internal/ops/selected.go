// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"maps"
	"runtime"
	"slices"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"hako/internal/layer"
	"hako/internal/tree"
)

// Selected returns what op reads of its input ref, the one with that number.
// It goes the way that executing the op goes, so that what it leaves out has no
// influence on the result: ignore rules, wildcards, patterns and links are
// resolved alike. It is nil for layers that are used as a whole; a directory is
// then selected as a whole.
func (in *Interpreter) Selected(ctx context.Context, op *pb.Op, number int, ref *layer.Ref) (*tree.Selection, error) {
	uses, whole := usesOf(op, int64(number))
	if ref == nil || whole && ref.FS == nil {
		return nil, nil //nolint:nilnil // nothing is selected, as said
	}
	if err := in.settled(ctx, ref); err != nil {
		return nil, err
	}
	fsys, err := ref.Tree(ctx)
	if err != nil {
		return nil, err
	}
	if whole {
		uses = []use{{path: "/"}}
	}
	s := &selector{ctx: ctx, hash: digest.SHA256.Hash()}
	for _, u := range uses {
		if err := s.use(fsys, u); err != nil {
			return nil, err
		}
	}
	return s.finish(), nil
}

// A use is one way in which an op reads an input.
type use struct {
	copy *pb.FileActionCopy // what a COPY or ADD takes
	path string             // else a file or directory that is mounted, or all
}

// usesOf lists how op reads an input. whole tells that all of it matters in ways
// that only executing the op would tell.
func usesOf(op *pb.Op, number int64) (uses []use, whole bool) {
	for _, m := range op.GetExec().GetMounts() {
		if m.GetInput() != number {
			continue
		}
		if m.GetDest() == pb.RootMount || m.GetMountType() != pb.MountType_BIND {
			return nil, true
		}
		uses = append(uses, use{path: m.GetSelector()})
	}
	for _, a := range op.GetFile().GetActions() {
		if a.GetInput() == number {
			return nil, true
		}
		for _, o := range owners(a) {
			if n := o.GetByName(); n != nil && n.GetInput() == number {
				return nil, true
			}
		}
		if c := a.GetCopy(); c != nil && a.GetSecondaryInput() == number {
			uses = append(uses, use{copy: c})
		}
	}
	return uses, op.GetMerge() != nil
}

// A selector hashes what is selected.
type selector struct {
	ctx   context.Context //nolint:containedctx // lives for one call
	hash  hash.Hash
	files map[string]digest.Digest
}

func (s *selector) use(fsys tree.FS, u use) error {
	if u.copy != nil {
		return s.copied(fsys, u.copy)
	}
	p, err := rootPath(fsys, u.path, true)
	if err != nil {
		return fmt.Errorf("mount %q: %w", u.path, err)
	}
	e, err := fsys.Lstat(p)
	if err != nil {
		return fmt.Errorf("mount %q: %w", u.path, err)
	}
	s.text(p)
	var list []tree.Change
	if err := listTree(s.ctx, fsys, e, &list); err != nil {
		return err
	}
	return s.changes(fsys, list, func(p string) string { return p })
}

// listTree appends e and all below it.
func listTree(ctx context.Context, fsys tree.FS, e tree.Entry, list *[]tree.Change) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	c := tree.Change{Entry: e}
	if e.Mode.IsRegular() {
		c.Open = func() (io.ReadCloser, error) { return fsys.Open(e.Path) }
	}
	*list = append(*list, c)
	if !e.Mode.IsDir() {
		return nil
	}
	es, err := fsys.ReadDir(e.Path)
	if err != nil {
		return err
	}
	for _, k := range es {
		if err := listTree(ctx, fsys, k, list); err != nil {
			return err
		}
	}
	return nil
}

// copied selects what an action copies: each source is copied to an empty tree
// for the purpose, as the action says but for its destination and owner, which
// belong to the definition, and nothing is unpacked: an archive's bytes matter.
func (s *selector) copied(fsys tree.FS, a *pb.FileActionCopy) error {
	matches, err := sources(s.ctx, fsys, a)
	if err != nil {
		return err
	}
	mod, err := newChmod(a)
	if err != nil {
		return err
	}
	for _, m := range matches {
		const place = "/to"
		dst := tree.NewOverlay(nil)
		one := &pb.FileActionCopy{
			Src: a.Src, Dest: place, FollowSymlink: a.FollowSymlink, DirCopyContents: true, CreateDestPath: true,
			IncludePatterns: a.IncludePatterns, ExcludePatterns: a.ExcludePatterns,
		}
		c := &copier{ctx: s.ctx, src: fsys, dst: dst, mod: mod, links: map[tree.NodeID]string{}, replace: true}
		if err := c.copyMatch(one, m); err != nil {
			return err
		}
		var list []tree.Change
		for ch, err := range dst.Changes() {
			if err != nil {
				return err
			}
			list = append(list, ch)
		}
		from, err := rootPath(fsys, m, a.FollowSymlink)
		if err != nil {
			return err
		}
		s.text(m)
		if err := s.changes(fsys, list, func(p string) string { return movedName(p, from) }); err != nil {
			return err
		}
	}
	return nil
}

// changes hashes a list of entries, of which origin tells what they are called in
// fsys; "" is nothing that is there.
func (s *selector) changes(fsys tree.FS, list []tree.Change, origin func(p string) string) error {
	sums, err := contents(s.ctx, list)
	if err != nil {
		return err
	}
	s.number(uint64(len(list)))
	for i := range list {
		c := &list[i]
		h := digest.SHA256.Hash()
		writeEntry(h, c, sums[i])
		sum := h.Sum(nil)
		s.text(c.Path)
		s.hash.Write(sum)
		name := origin(c.Path)
		if name == "" {
			continue
		}
		if f, ok := fsys.(*summedFS); ok && sums[i] != "" {
			f.note(name, sums[i])
		}
		if s.files == nil {
			s.files = map[string]digest.Digest{}
		}
		s.files[name] = digest.NewDigestFromBytes(digest.SHA256, sum)
	}
	return nil
}

// movedName returns the name that "to/…" has in the source.
func movedName(p, from string) string {
	const place = "to"
	switch {
	case p == place:
		return from
	case tree.Within(p, place):
		return tree.Join(from, p[len(place)+1:])
	}
	return ""
}

// contents returns the digests of regular files, reading those that are not known.
func contents(ctx context.Context, list []tree.Change) ([]digest.Digest, error) {
	sums := make([]digest.Digest, len(list))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	for i := range list {
		c := &list[i]
		if !c.Mode.IsRegular() || c.Size == 0 || c.LinkTo != "" {
			continue
		}
		if sums[i] = c.Digest; c.Digest != "" {
			continue
		}
		g.Go(func() error {
			if gctx.Err() != nil {
				return context.Cause(gctx)
			}
			rc, err := c.Open()
			if err != nil {
				return err
			}
			defer rc.Close()
			sums[i], err = digest.SHA256.FromReader(rc)
			return err
		})
	}
	return sums, g.Wait()
}

// writeEntry writes what a layer would hold of c, without its name and times.
func writeEntry(h hash.Hash, c *tree.Change, sum digest.Digest) {
	s := selector{hash: h}
	s.number(uint64(c.Mode))
	s.number(uint64(c.UID))
	s.number(uint64(c.GID))
	s.text(c.LinkTo)
	s.text(c.Link)
	s.text(sum.String())
	if c.Mode.IsRegular() {
		s.number(uint64(c.Size))
	}
	s.number(uint64(c.Major))
	s.number(uint64(c.Minor))
	s.text(c.Xattrs[capability])
}

func (s *selector) text(t string) {
	s.number(uint64(len(t)))
	s.hash.Write([]byte(t))
}

func (s *selector) number(n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	s.hash.Write(b[:])
}

func (s *selector) finish() *tree.Selection {
	out := &tree.Selection{Digest: digest.NewDigest(digest.SHA256, s.hash)}
	for _, name := range slices.SortedFunc(maps.Keys(s.files), tree.ComparePaths) {
		out.Files = append(out.Files, tree.SelectedFile{Path: name, Digest: s.files[name]})
	}
	return out
}
