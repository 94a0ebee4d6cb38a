// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/tree"
)

// FilesOptions say how an image's files are written without being an image.
type FilesOptions struct {
	// Epoch, if set, becomes the time of all files, as BuildKit has it.
	Epoch *time.Time
}

// A sink receives the entries of a tree, parents first.
type sink interface {
	// put makes the entry at path p; content is nil for all but regular files.
	put(e *tree.Entry, p string, content io.Reader) error
	// link makes p a hard link to the path first, which was put before.
	link(e *tree.Entry, first, p string) error
	// leave is called for a directory once everything in it was put.
	leave(e *tree.Entry, p string) error
}

// WriteDir writes the image's flattened file system into dir; with an index, a
// directory per platform, named like linux_arm64. What is there and not in the
// image stays. Like BuildKit's local exporter, it keeps modes and times, while
// the files belong to whoever runs the build, and an extended attribute that
// the file system refuses is left out.
func (b *Bundle) WriteDir(ctx context.Context, dir *os.Root, opt FilesOptions) error {
	if err := b.writeFiles(ctx, &dirSink{root: dir}, opt); err != nil {
		return fmt.Errorf("write files: %w", err)
	}
	return nil
}

// WriteTar writes the image's flattened file system as a tar, with owners; with
// an index, a directory per platform.
func (b *Bundle) WriteTar(ctx context.Context, w io.Writer, opt FilesOptions) error {
	tw := tar.NewWriter(w)
	err := b.writeFiles(ctx, tarSink{tw}, opt)
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		return fmt.Errorf("write tar of files: %w", err)
	}
	return nil
}

func (b *Bundle) writeFiles(ctx context.Context, to sink, opt FilesOptions) error {
	for _, m := range b.Images {
		t, err := m.ref.Tree(ctx)
		if err != nil {
			return err
		}
		w := walker{ctx: ctx, fs: t, to: to, opt: opt, first: map[tree.NodeID]string{}}
		if b.Index == nil {
			if err := w.dir(""); err != nil {
				return err
			}
			continue
		}
		w.prefix = platformDir(m.Platform)
		top := &tree.Entry{Mode: tree.ModeDir | 0o755, ModTime: time.Unix(0, 0)}
		if opt.Epoch != nil {
			top.ModTime = *opt.Epoch
		}
		if err := to.put(top, w.prefix, nil); err != nil {
			return err
		}
		if err := w.dir(""); err != nil {
			return err
		}
		if err := to.leave(top, w.prefix); err != nil {
			return err
		}
	}
	return nil
}

// platformDir returns the name of a platform's directory, as BuildKit has it.
func platformDir(p ocispecs.Platform) string {
	return strings.NewReplacer("/", "_", `\`, "_", ":", "_").Replace(platforms.FormatAll(p))
}

// A walker feeds a tree to a sink.
type walker struct {
	ctx    context.Context //nolint:containedctx // lives for one walk
	fs     tree.FS
	to     sink
	opt    FilesOptions
	prefix string
	// first is the first path of each file that may have several.
	first map[tree.NodeID]string
}

func (w *walker) dir(p string) error {
	entries, err := w.fs.ReadDir(p)
	if err != nil {
		return err
	}
	for i := range entries {
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		if err := w.entry(&entries[i]); err != nil {
			return fmt.Errorf("/%s: %w", entries[i].Path, err)
		}
	}
	return nil
}

func (w *walker) entry(e *tree.Entry) error {
	if w.opt.Epoch != nil {
		e.ModTime = *w.opt.Epoch
	}
	to := tree.Join(w.prefix, e.Path)
	if e.Mode.IsDir() {
		if err := w.to.put(e, to, nil); err != nil {
			return err
		}
		if err := w.dir(e.Path); err != nil {
			return err
		}
		return w.to.leave(e, to)
	}
	if e.Node != (tree.NodeID{}) {
		if first, ok := w.first[e.Node]; ok {
			return w.to.link(e, first, to)
		}
		w.first[e.Node] = to
	}
	if !e.Mode.IsRegular() {
		return w.to.put(e, to, nil)
	}
	r, err := w.fs.Open(e.Path)
	if err != nil {
		return err
	}
	defer r.Close()
	return w.to.put(e, to, &contextReader{w.ctx, r})
}

// copyContent copies a regular file's content, which must be as long as e says.
func copyContent(w io.Writer, e *tree.Entry, r io.Reader) error {
	n, err := io.Copy(w, r)
	if err == nil && n != e.Size {
		err = fmt.Errorf("it has %d bytes and not %d", n, e.Size)
	}
	return err
}

type tarSink struct{ tw *tar.Writer }

func (s tarSink) header(e *tree.Entry, p string) *tar.Header {
	h := &tar.Header{
		Name: p, Mode: int64(e.Mode.Perm()), Uid: int(e.UID), Gid: int(e.GID), ModTime: e.ModTime,
	}
	for k, v := range e.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	return h
}

func (s tarSink) put(e *tree.Entry, p string, content io.Reader) error {
	h := s.header(e, p)
	switch e.Mode.Type() {
	case tree.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, p+"/"
	case tree.ModeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
	case tree.ModeChar:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(e.Major), int64(e.Minor)
	case tree.ModeBlock:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(e.Major), int64(e.Minor)
	case tree.ModeFIFO:
		h.Typeflag = tar.TypeFifo
	case tree.ModeRegular:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	default:
		return fmt.Errorf("a file with mode %o cannot be in a tar", uint32(e.Mode))
	}
	if err := s.tw.WriteHeader(h); err != nil {
		return err
	}
	if content == nil {
		return nil
	}
	return copyContent(s.tw, e, content)
}

func (s tarSink) link(e *tree.Entry, first, p string) error {
	h := s.header(e, p)
	h.Typeflag, h.Linkname = tar.TypeLink, first
	return s.tw.WriteHeader(h)
}

func (tarSink) leave(*tree.Entry, string) error { return nil }

// A dirSink writes below a directory that other files may be in. It follows no
// link there: every parent is a directory that it made or found itself.
type dirSink struct{ root *os.Root }

func (s *dirSink) put(e *tree.Entry, p string, content io.Reader) error {
	if e.Mode.IsDir() {
		return s.mkdir(p)
	}
	return s.replace(p, func(tmp string) error {
		switch e.Mode.Type() {
		case tree.ModeRegular:
			return s.file(e, tmp, content)
		case tree.ModeSymlink:
			if err := s.root.Symlink(e.Link, tmp); err != nil {
				return err
			}
			return setLinkTime(s.root, tmp, e.ModTime)
		default:
			if err := makeNode(s.root, e, tmp); err != nil {
				return err
			}
			return s.dress(e, tmp)
		}
	})
}

func (s *dirSink) mkdir(p string) error {
	fi, err := s.root.Lstat(p)
	if err == nil && !fi.IsDir() {
		if err := s.root.Remove(p); err != nil {
			return err
		}
	}
	// Writable until everything is in it, whatever its mode.
	if err == nil && fi.IsDir() {
		return s.root.Chmod(p, fi.Mode()|0o700)
	}
	return s.root.Mkdir(p, 0o700)
}

func (s *dirSink) leave(e *tree.Entry, p string) error { return s.dress(e, p) }

func (s *dirSink) link(_ *tree.Entry, first, p string) error {
	return s.replace(p, func(tmp string) error { return s.root.Link(first, tmp) })
}

func (s *dirSink) file(e *tree.Entry, tmp string, content io.Reader) error {
	f, err := s.root.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = copyContent(f, e, content)
	if err == nil {
		err = setXattrs(f, e.Xattrs)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = s.dress(e, tmp)
	}
	return err
}

// dress gives a file its mode and time.
func (s *dirSink) dress(e *tree.Entry, p string) error {
	if err := s.root.Chmod(p, e.Mode.FileMode()); err != nil {
		return err
	}
	return s.root.Chtimes(p, e.ModTime, e.ModTime)
}

// replace puts what create makes under a temporary name at p, at once.
func (s *dirSink) replace(p string, create func(tmp string) error) error {
	var tmp string
	for n := 0; ; n++ {
		tmp = tree.Join(tree.Parent(p), fmt.Sprintf(".hako-tmp%d", n))
		_, err := s.root.Lstat(tmp)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
	}
	err := create(tmp)
	if err == nil {
		if fi, lerr := s.root.Lstat(p); lerr == nil && fi.IsDir() {
			err = s.root.RemoveAll(p)
		}
	}
	if err == nil {
		err = s.root.Rename(tmp, p)
	}
	// Renaming one name of a file over another does nothing (rename(2)), and
	// the temporary name is still there.
	_ = s.root.Remove(tmp)
	return err
}
