// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"path"
	"strings"
	"syscall"
	"time"

	"hako/internal/layer"
	"hako/internal/tree"
)

// An unpacker puts the files of one archive into a tree, as BuildKit does with
// go-archive's Untar in a chroot: names and links of the archive cannot lead
// out of the destination, whose own path is its root.
type unpacker struct {
	ctx   context.Context //nolint:containedctx // lives for one call
	dst   *tree.Overlay
	own   *owner
	when  time.Time // of the destination directory, if it is made
	clock time.Time // of directories that the archive implies
	spool *spool

	src     tree.FS
	archive string  // path in src
	direct  bool    // contents can be read where they lie
	dest    string  // path in dst
	in      tree.FS // the tree below dest
}

// unpack unpacks the source file from to dest if it is an archive, and reports
// whether it was.
func (u *unpacker) unpack(src tree.FS, from, dest string) (bool, error) {
	p, err := rootPath(src, from, true)
	if err != nil {
		return false, err
	}
	u.src, u.archive = src, p
	if ok, err := u.isArchive(); !ok || err != nil {
		return false, err
	}
	if u.dest, err = rootPath(u.dst, dest, true); err != nil {
		return false, err
	}
	if err := mkdirAll(u.dst, u.dest, 0o755, u.own, u.when); err != nil {
		return false, err
	}
	u.in = tree.Sub(u.dst, u.dest)
	return true, u.read()
}

// isArchive reports whether the source is a regular file in which a first tar
// header can be read.
func (u *unpacker) isArchive() (bool, error) {
	e, err := u.src.Lstat(u.archive)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || !e.Mode.IsRegular() || e.Size == 0 {
		return false, err
	}
	f, err := u.src.Open(u.archive)
	if err != nil {
		return false, err
	}
	defer f.Close()
	r, _, err := layer.Decompress(f)
	if err != nil {
		return false, nil
	}
	defer r.Close()
	_, err = tar.NewReader(r).Next()
	return err == nil, nil
}

// read puts the archive's entries into the tree.
func (u *unpacker) read() error {
	f, err := u.src.Open(u.archive)
	if err != nil {
		return err
	}
	defer f.Close()
	r, plain, err := layer.Decompress(f)
	if err != nil {
		return err
	}
	defer r.Close()
	_, seeks := f.(io.Seeker)
	u.direct = plain && seeks
	pos := &counter{r: r}
	tr := tar.NewReader(pos)
	for {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := u.entry(h, tr, pos); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
}

// entry puts one entry into the tree.
func (u *unpacker) entry(h *tar.Header, r io.Reader, pos *counter) error {
	name := path.Clean(h.Name)
	if err := layer.CheckName(name); err != nil {
		return err
	}
	target, err := u.target(name)
	if err != nil {
		return err
	}
	isDir := h.Typeflag == tar.TypeDir
	old, err := u.dst.Lstat(target)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		switch {
		case old.Mode.IsDir() && name == ".":
			return nil // go-archive leaves the destination as it is
		case old.Mode.IsDir() && isDir:
		case target == u.dest:
			return errors.New("cannot replace the destination directory")
		default:
			if err := u.dst.Remove(target); err != nil {
				return err
			}
		}
	}
	e, err := u.header(h, target)
	if err != nil {
		return err
	}
	switch {
	case h.Typeflag == tar.TypeLink:
		return u.link(h, e)
	case isDir:
		if old.Mode.IsDir() {
			return u.dst.SetAttr(target, func(d *tree.Entry) { setMeta(d, e, false) })
		}
		return u.dst.Mkdir(e)
	case e.Mode.IsRegular():
		return u.regular(h, e, r, pos)
	}
	return u.dst.Special(e)
}

// target returns where the entry of that name goes. Links in its parents are
// followed inside the destination; parents that are missing are made.
func (u *unpacker) target(name string) (string, error) {
	p := tree.Clean(name)
	if p == "" {
		return u.dest, nil
	}
	parent, err := tree.Resolve(u.in, tree.Parent(p), true)
	if err != nil {
		return "", err
	}
	dir := tree.Join(u.dest, parent)
	root := owner{}
	if err := mkdirAll(u.dst, dir, 0o755, &root, u.clock); err != nil {
		return "", err
	}
	return tree.Join(dir, tree.Base(p)), nil
}

// header makes a tree entry of a tar header.
func (u *unpacker) header(h *tar.Header, target string) (tree.Entry, error) {
	e := tree.Entry{Path: target, ModTime: boundTime(h.ModTime)}
	perm := tree.FromFileMode(h.FileInfo().Mode()).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		e.Mode = tree.ModeDir | perm
	case tar.TypeReg:
		e.Mode = tree.ModeRegular | perm
	case tar.TypeLink:
		e.Mode = perm
	case tar.TypeSymlink:
		e.Mode, e.Link = tree.ModeSymlink|0o777, h.Linkname
	case tar.TypeBlock:
		e.Mode = tree.ModeBlock | perm
	case tar.TypeChar:
		e.Mode = tree.ModeChar | perm
	case tar.TypeFifo:
		e.Mode = tree.ModeFIFO | perm
	default:
		return e, fmt.Errorf("unhandled tar header type %q", h.Typeflag)
	}
	if e.Mode.IsDevice() {
		if !is32(h.Devmajor) || !is32(h.Devminor) {
			return e, fmt.Errorf("device number %d,%d out of range", h.Devmajor, h.Devminor)
		}
		e.Major, e.Minor = uint32(h.Devmajor), uint32(h.Devminor)
	}
	if e.Mode.IsSymlink() && h.Linkname == "" {
		return e, &fs.PathError{Op: "symlink", Path: "/" + target, Err: syscall.ENOENT}
	}
	switch {
	case u.own != nil:
		e.UID, e.GID = u.own.uid, u.own.gid
	case !is32(int64(h.Uid)) || !is32(int64(h.Gid)):
		return e, fmt.Errorf("owner %d:%d out of range", h.Uid, h.Gid)
	default:
		e.UID, e.GID = uint32(h.Uid), uint32(h.Gid)
	}
	for k, v := range h.PAXRecords {
		if x, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if e.Xattrs == nil {
				e.Xattrs = map[string]string{}
			}
			e.Xattrs[x] = v
		}
	}
	return e, nil
}

func is32(n int64) bool { return n >= 0 && n <= math.MaxUint32 }

// boundTime gives times that go-archive does not set as 1970, as it does.
func boundTime(t time.Time) time.Time {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return time.Unix(0, 0)
	}
	return t
}

// setMeta gives d, which exists, the metadata of e. A file's capabilities go
// when its owner is set, as the kernel has it, unless e brings its own.
func setMeta(d *tree.Entry, e tree.Entry, file bool) {
	d.UID, d.GID, d.ModTime = e.UID, e.GID, e.ModTime
	d.Mode = d.Mode.Type() | e.Mode.Perm()
	if file {
		delete(d.Xattrs, capability)
	}
	if len(e.Xattrs) > 0 && d.Xattrs == nil {
		d.Xattrs = map[string]string{}
	}
	maps.Copy(d.Xattrs, e.Xattrs)
}

// link makes a hard link; the header's metadata becomes that of the file, and
// so of all its names. A link to a symbolic link sets its owner only.
func (u *unpacker) link(h *tar.Header, e tree.Entry) error {
	old, err := tree.Resolve(u.in, tree.Clean(h.Linkname), false)
	if err != nil {
		return err
	}
	if err := u.dst.Link(e.Path, tree.Join(u.dest, old)); err != nil {
		return err
	}
	return u.dst.SetAttr(e.Path, func(d *tree.Entry) {
		if d.Mode.IsSymlink() {
			d.UID, d.GID = e.UID, e.GID
			return
		}
		setMeta(d, e, true)
	})
}

// regular puts a file whose content is read later: from the archive, if that
// is possible, else from the spool, to which it goes now.
func (u *unpacker) regular(h *tar.Header, e tree.Entry, r io.Reader, pos *counter) error {
	e.Size = h.Size
	if e.Size == 0 {
		return u.dst.Put(e, nil)
	}
	if u.direct && !isSparse(h) {
		return u.dst.Put(e, section(u.src, u.archive, pos.n, h.Size))
	}
	open, n, err := u.spool.add(r)
	if err != nil {
		return err
	}
	if n != h.Size {
		return fmt.Errorf("read archive: %w", io.ErrUnexpectedEOF)
	}
	return u.dst.Put(e, open)
}

// isSparse reports whether the entry's data is not what the archive has after
// the header.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// section returns an opener of a part of a file that can be seeked in.
func section(fsys tree.FS, p string, off, size int64) tree.Opener {
	return func() (io.ReadCloser, error) {
		f, err := fsys.Open(p)
		if err != nil {
			return nil, err
		}
		s, ok := f.(io.Seeker)
		if !ok {
			f.Close()
			return nil, fmt.Errorf("open %q: cannot seek", p)
		}
		if _, err := s.Seek(off, io.SeekStart); err != nil {
			f.Close()
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.LimitReader(f, size), f}, nil
	}
}

// A counter knows how much was read from it.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}
