// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// keptXattr is the one attribute that layers carry and that therefore counts.
const keptXattr = "security.capability"

// A scan finds what a process changed: the two records give candidates, the
// image's own tree decides. Equal in everything that a layer can hold is no
// change, as in BuildKit (util/overlay, which drops such entries): a chmod
// that changes nothing, or a file that came and went, leaves no trace.
type scan struct {
	live *tree.Dir // the root, with extended attributes
	base tree.FS   // the image so far
	// hashAll: ctime cannot be trusted here, every regular file is a candidate.
	hashAll bool
	// oneID: a single id is mapped, so everything on disk is owned by root. What a
	// command makes is root's; what it only changes keeps the owner that the
	// image has, as nothing could have changed that here. isOld tells whether the
	// file at path is older than the command, if two records are compared.
	oneID  bool
	isOld  func(path string, was, now *node) bool
	list   []found
	owners map[string]owner // of names whose owner is not the one on disk
}

type owner struct{ uid, gid uint32 }

// A found is one name of the result, in path order.
type found struct {
	path    string
	deleted bool
	touched bool
	ino     uint64 // of a file with several names, else 0
}

// run compares the records and returns the number of changed names.
func (s *scan) run(ctx context.Context, before, after *record) (int, error) {
	if err := s.dir(ctx, "", before.root, after.root); err != nil {
		return 0, err
	}
	changed := len(s.list)
	s.parents()
	return changed, nil
}

// dir merges the names of a directory before and after.
func (s *scan) dir(ctx context.Context, path string, old, now *dirRecord) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	i, j := 0, 0
	if !s.hashAll && (old == now || len(old.nodes) > 0 && len(now.nodes) == len(old.nodes) && &old.nodes[0] == &now.nodes[0]) {
		return nil // the same memory: it is as it was; if only the nodes are shared, it has no subdirectory
	}
	for i < len(old.nodes) || j < len(now.nodes) {
		switch {
		case j == len(now.nodes) || i < len(old.nodes) && old.nodes[i].name < now.nodes[j].name:
			if o := &old.nodes[i]; !o.masked {
				s.gone(tree.Join(path, o.name))
			}
			i++
		case i == len(old.nodes) || old.nodes[i].name > now.nodes[j].name:
			if err := s.fresh(tree.Join(path, now.nodes[j].name), &now.nodes[j]); err != nil {
				return err
			}
			j++
		default:
			if o, n := &old.nodes[i], &now.nodes[j]; n.isDir() || s.hashAll || !o.same(n) || o.masked || n.masked {
				if err := s.both(ctx, tree.Join(path, n.name), o, n); err != nil {
					return err
				}
			}
			i++
			j++
		}
	}
	return nil
}

// gone records a deletion, if the image has the name at all.
func (s *scan) gone(path string) {
	if _, err := s.base.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return
	}
	s.list = append(s.list, found{path: path, deleted: true, touched: true})
}

// fresh records a name that was not there, with all below it.
func (s *scan) fresh(path string, n *node) error {
	if n.masked || n.mode&unix.S_IFMT == unix.S_IFSOCK {
		// A socket cannot be in a layer; BuildKit's writer leaves it out too.
		return nil
	}
	s.add(path, n)
	if n.kids == nil {
		return nil
	}
	for k := range n.kids.nodes {
		if err := s.fresh(tree.Join(path, n.kids.nodes[k].name), &n.kids.nodes[k]); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) add(path string, n *node) {
	f := found{path: path, touched: true}
	if !n.isDir() && n.nlink > 1 {
		// Names of one file are linked in the layer if both changed. One that
		// did not is not written again, as in BuildKit: a layer never links
		// into a lower one.
		f.ino = n.ino
	}
	s.list = append(s.list, f)
}

func (s *scan) both(ctx context.Context, path string, o, n *node) error {
	if o.masked || n.masked {
		return nil
	}
	if o.isDir() != n.isDir() || (o.isDir() && o.kids == nil) || (n.isDir() && n.kids == nil) {
		return s.fresh(path, n)
	}
	if s.oneID && !o.same(n) {
		mine := *n // the record goes on to say what is on disk
		n = &mine
		if err := s.imageOwner(path, n, func() bool { return s.isOld(path, o, n) }); err != nil {
			return err
		}
	}
	candidate := !o.same(n) || s.hashAll && n.mode&unix.S_IFMT == unix.S_IFREG
	if candidate && n.bare {
		return fmt.Errorf("compare /%s: it was not looked at", path)
	}
	if candidate {
		was := func() (int64, bool) { return o.mtime, true }
		if o.bare {
			was = func() (int64, bool) { return s.unpackedTime(path, n) }
		}
		differs, err := s.differs(path, n, was)
		if err != nil {
			return fmt.Errorf("compare /%s: %w", path, err)
		}
		if differs {
			s.add(path, n)
		}
	}
	if n.isDir() {
		return s.dir(ctx, path, o.kids, n.kids)
	}
	return nil
}

// imageOwner gives a node that the command has not made the owner that the image
// has.
func (s *scan) imageOwner(path string, n *node, isOld func() bool) error {
	b, err := s.base.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at /%s in the image: %w", path, err)
	}
	if uint32(b.Mode)&unix.S_IFMT == n.mode&unix.S_IFMT && isOld() {
		n.uid, n.gid = b.UID, b.GID
		if s.owners == nil {
			s.owners = make(map[string]owner)
		}
		s.owners[path] = owner{b.UID, b.GID}
	}
	return nil
}

// differs tells whether the live entry is not the image's. was returns the mtime
// that the entry had in the root before, in nanoseconds, if that is known.
func (s *scan) differs(path string, n *node, was func() (int64, bool)) (bool, error) {
	b, err := s.base.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if uint32(b.Mode) != n.mode || b.UID != n.uid || b.GID != n.gid {
		return true, nil
	}
	l, err := s.live.Lstat(path)
	if err != nil {
		return false, err
	}
	if b.Xattrs[keptXattr] != l.Xattrs[keptXattr] {
		return true, nil
	}
	if n.isDir() {
		return false, nil // directories compare without times
	}
	if b.Link != l.Link || b.Major != l.Major || b.Minor != l.Minor || b.Mode.IsRegular() && b.Size != l.Size {
		return true, nil
	}
	// The root has times of its own: those of layers are whole seconds, and may
	// be limited to an epoch. What was written to within the same second is a
	// change too, for BuildKit (sameDirent): else it would depend on the clock
	// whether it is one.
	if t, ok := was(); ok && t != n.mtime || !ok && b.ModTime.Unix() != l.ModTime.Unix() {
		return true, nil
	}
	if !b.Mode.IsRegular() {
		return false, nil
	}
	return s.contentDiffers(path, &b)
}

func (s *scan) contentDiffers(path string, b *tree.Entry) (bool, error) {
	if b.Size == 0 {
		return false, nil
	}
	rc, err := s.live.Open(path)
	if err != nil {
		return false, err
	}
	defer rc.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, rc); err != nil {
		return false, err
	}
	return digest.NewDigest(digest.SHA256, sum) != b.Digest, nil
}

// parents puts the enclosing directories of every change in front of it.
func (s *scan) parents() {
	out := make([]found, 0, len(s.list)+len(s.list)/4)
	last := ""
	for _, f := range s.list {
		for i := 0; i < len(f.path); i++ {
			if f.path[i] == '/' && !tree.Within(last, f.path[:i]) {
				out = append(out, found{path: f.path[:i]})
			}
		}
		out = append(out, f)
		last = f.path
	}
	s.list = out
}

// changes yields what was found, reading the live tree.
func (s *scan) changes() iter.Seq2[tree.Change, error] {
	return func(yield func(tree.Change, error) bool) {
		first := make(map[uint64]string) // inode → the name that carries the content
		for _, f := range s.list {
			c, err := s.change(f, first)
			if !yield(c, err) || err != nil {
				return
			}
		}
	}
}

func (s *scan) change(f found, first map[uint64]string) (tree.Change, error) {
	if f.deleted {
		return tree.Change{Entry: tree.Entry{Path: f.path}, Deleted: true, Touched: true}, nil
	}
	e, err := s.live.Lstat(f.path)
	if err != nil {
		return tree.Change{}, fmt.Errorf("read the changed /%s: %w", f.path, err)
	}
	if o, ok := s.owners[f.path]; ok {
		e.UID, e.GID = o.uid, o.gid
	} else if s.oneID && !f.touched {
		b, err := s.base.Lstat(f.path)
		if err != nil {
			return tree.Change{}, fmt.Errorf("read /%s, which has changes: %w", f.path, err)
		}
		e.UID, e.GID = b.UID, b.GID
	}
	c := tree.Change{Entry: e, Touched: f.touched}
	if f.ino != 0 {
		if to, ok := first[f.ino]; ok {
			c.LinkTo = to
			return c, nil
		}
		first[f.ino] = f.path
	}
	if e.Mode.IsRegular() && e.Size > 0 {
		c.Open = func() (io.ReadCloser, error) { return s.live.Open(f.path) }
	}
	return c, nil
}
