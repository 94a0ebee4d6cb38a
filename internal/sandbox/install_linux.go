// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/tree"
)

// install moves the entries of an assembled root into /. volumes are the mount
// points that were emptied for it, with the name in them that must stay.
func (l *lot) install(dir string, volumes map[string]string) error {
	src, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("install root: %w", err)
	}
	defer unix.Close(src)
	a, err := readAttrs(src, ".")
	if err != nil {
		return fmt.Errorf("install root: %w", err)
	}
	if err := l.installDir(src, l.root, "", dir, volumes); err != nil {
		return fmt.Errorf("install root: %w", err)
	}
	if err := a.apply(l.root); err != nil {
		return fmt.Errorf("install root: %w", err)
	}
	return nil
}

func (l *lot) installDir(src, dst int, path, dir string, volumes map[string]string) error {
	names, err := readNames(src, ".")
	if err != nil {
		return err
	}
	for _, n := range names {
		p := tree.Join(path, n)
		err := unix.Renameat2(src, n, dst, n, unix.RENAME_NOREPLACE)
		if err == unix.EEXIST || err == unix.EXDEV || err == unix.EINVAL {
			err = l.installOver(src, dst, n, p, filepath.Join(dir, n), volumes)
		}
		if err != nil {
			return fmt.Errorf("/%s: %w", p, err)
		}
	}
	return nil
}

// installOver installs a name where something stays.
func (l *lot) installOver(src, dst int, name, path, dir string, volumes map[string]string) error {
	attrs, stays := l.journal.state.Stays[path]
	switch {
	case stays && attrs == nil:
		if _, ok := volumes[path]; ok {
			return l.fillVolume(dir, path)
		}
		return nil // what is mounted here hides the image's entry, as in BuildKit
	case !stays:
		// Only file systems without RENAME_NOREPLACE come here.
		return unix.Renameat(src, name, dst, name)
	}
	if !isDirAt(src, name) {
		return &UnsupportedError{
			What:   "RUN in this image",
			Why:    fmt.Sprintf("it has /%s as something else than a directory, and this container has mounts below /%s", path, path),
			Remedy: "mount these somewhere else",
		}
	}
	from, to, done, err := openBoth(src, dst, name)
	if err != nil {
		return err
	}
	defer done()
	a, err := readAttrs(from, ".")
	if err != nil {
		return err
	}
	if err := l.installDir(from, to, path, dir, volumes); err != nil {
		return err
	}
	return a.apply(to)
}

// fillVolume copies an image's directory into an emptied volume, which is on
// another file system.
func (l *lot) fillVolume(dir, path string) error {
	d, err := tree.OpenDir(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := materialize(d.WithXattrs(), "", l.at(path)); err != nil {
		return err
	}
	return nil
}

// materialize copies the directory at sel of fsys, with all metadata, into the
// existing directory dest.
func materialize(fsys tree.FS, sel, dest string) error {
	root, err := layer.OpenRoot(dest)
	if err != nil {
		return err
	}
	m := &copier{fsys: fsys, root: root, links: make(map[tree.NodeID]string)}
	e, err := fsys.Lstat(sel)
	if err == nil {
		e.Path = ""
		err = root.Put(&e, nil)
	}
	if err == nil {
		err = m.dir(sel, "")
	}
	if cerr := root.Close(); err == nil {
		err = cerr
	}
	return err
}

type copier struct {
	fsys  tree.FS
	root  *layer.Root
	links map[tree.NodeID]string
}

func (m *copier) dir(from, to string) error {
	entries, err := m.fsys.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		src := e.Path
		e.Path = tree.Join(to, tree.Base(src))
		if err := m.entry(src, &e); err != nil {
			return fmt.Errorf("copy /%s: %w", src, err)
		}
		if e.Mode.IsDir() {
			if err := m.dir(src, e.Path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *copier) entry(src string, e *tree.Entry) error {
	if e.Node != (tree.NodeID{}) && !e.Mode.IsDir() {
		if first, ok := m.links[e.Node]; ok {
			return m.root.Link(e.Path, first)
		}
		m.links[e.Node] = e.Path
	}
	if !e.Mode.IsRegular() {
		return m.root.Put(e, nil)
	}
	rc, err := m.fsys.Open(src)
	if err != nil {
		return err
	}
	defer rc.Close()
	if e.Digest == "" {
		return m.root.Put(e, rc)
	}
	// It was looked at for the step's key, or comes out of the middle of a blob.
	sum := sha256.New()
	if err := m.root.Put(e, io.TeeReader(rc, sum)); err != nil {
		return err
	}
	if e.Size > 0 && digest.NewDigest(digest.SHA256, sum) != e.Digest {
		return fmt.Errorf("its content is not the one seen before: %w", layer.ErrChanged)
	}
	return nil
}

// materializeFile copies the regular file at sel of fsys to the new file dest.
func materializeFile(fsys tree.FS, sel, dest string) error {
	root, err := layer.OpenRoot(filepath.Dir(dest))
	if err != nil {
		return err
	}
	e, err := fsys.Lstat(sel)
	if err == nil {
		e.Path = filepath.Base(dest)
		m := &copier{fsys: fsys, root: root, links: make(map[tree.NodeID]string)}
		err = m.entry(sel, &e)
	}
	if cerr := root.Close(); err == nil {
		err = cerr
	}
	return err
}

// Possible tells why nothing can be run in place here; nil if it can.
func Possible(workDir string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("user %d, which is not root, cannot own an image's files", os.Geteuid())
	}
	var root, work unix.Stat_t
	if err := unix.Stat("/", &root); err != nil {
		return fmt.Errorf("look at /: %w", err)
	}
	if err := os.MkdirAll(workDir, 0o777); err != nil {
		return fmt.Errorf("the root file system cannot be written: %w", err)
	}
	if err := unix.Stat(workDir, &work); err != nil {
		return fmt.Errorf("look at %s: %w", workDir, err)
	}
	for _, d := range []string{workDir, filepath.Join(workDir, "work")} {
		if err := unix.Stat(d, &work); err == nil && root.Dev != work.Dev {
			return fmt.Errorf("%s is on another file system than /: nothing can be renamed between them", d)
		}
	}
	probe, err := os.MkdirTemp(workDir, "probe")
	if err != nil {
		return fmt.Errorf("the root file system cannot be written: %w", err)
	}
	defer os.Remove(probe)
	if err := os.Chown(probe, 1, 1); err != nil {
		return fmt.Errorf("no right to change owners (CAP_CHOWN): %w", err)
	}
	return nil
}
