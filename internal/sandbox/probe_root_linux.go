// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// examineRoot looks at the file system of /.
func (p *Probe) examineRoot(work string, mounts []mountLine) {
	for _, m := range mounts {
		if m.path == "/" {
			p.Root.Type = m.fstype // the last one is on top
		}
	}
	var st unix.Statfs_t
	if unix.Statfs("/", &st) == nil {
		p.Root.ReadOnly = st.Flags&unix.ST_RDONLY != 0
		p.Root.Writable = !p.Root.ReadOnly && unix.Faccessat(unix.AT_FDCWD, "/", unix.W_OK, unix.AT_EACCESS) == nil
		p.Root.Free = int64(st.Bavail) * st.Bsize
	}
	if Possible(work) != nil {
		return
	}
	trust, why, err := trustsCtime(work)
	if err != nil {
		p.Root.CtimeWhy = err.Error()
		return
	}
	p.Root.TrustsCtime, p.Root.CtimeWhy = &trust, why
}

// examineParking finds out what parking would do, and which mounts stay in view.
func (p *Probe) examineParking(ctx context.Context, work string, mounts []mountLine) {
	if err := Possible(work); err != nil {
		p.Parking.Why = err.Error()
		return
	}
	trial, err := newTrial(work)
	if err != nil {
		p.Parking.Why = err.Error()
		return
	}
	defer trial.close()
	root, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		p.Parking.Why = "open /: " + errnoName(err)
		return
	}
	defer unix.Close(root)
	names, err := readNames(root, ".")
	if err != nil {
		p.Parking.Why = "read /: " + errnoName(err)
		return
	}
	slices.Sort(names)
	at := make(map[string]bool)
	for _, m := range mounts {
		at[m.path] = true
	}
	top := topOf(tree.Clean(work))
	p.Parking.Known = true
	for _, n := range names {
		path := "/" + n
		switch {
		case n == top || n == "busybox":
			p.Parking.Stays = append(p.Parking.Stays, path)
			p.viewBelow(path, mounts) // like credentials in /kaniko/.docker
		case at[path]:
			p.Parking.Stays = append(p.Parking.Stays, path)
			p.InView = append(p.InView, path)
		case !isDirAt(root, n):
			p.Parking.Renames = append(p.Parking.Renames, path)
		default:
			p.parkDir(ctx, trial, root, n, mounts)
		}
	}
}

// parkDir says what parking a top-level directory would do.
func (p *Probe) parkDir(ctx context.Context, t *trial, root int, name string, mounts []mountLine) {
	path := "/" + name
	switch err := t.rename(root, name); err {
	case unix.EXDEV:
		p.Parking.Copies = append(p.Parking.Copies, path)
		files, bytes := measure(ctx, path)
		p.Parking.CopyFiles += files
		p.Parking.CopyBytes += bytes
		p.viewBelow(path, mounts)
	case unix.EBUSY:
		p.Parking.Stays = append(p.Parking.Stays, path)
		p.InView = append(p.InView, path)
	case unix.ENOTEMPTY, unix.EEXIST:
		p.Parking.Renames = append(p.Parking.Renames, path)
	default:
		p.Parking.Known = false
		p.Parking.Why = "rename " + path + ": " + errnoName(err)
	}
}

// viewBelow notes what is mounted below a directory that stays.
func (p *Probe) viewBelow(dir string, mounts []mountLine) {
	for _, m := range mounts {
		if strings.HasPrefix(m.path, dir+"/") && !slices.Contains(p.InView, m.path) {
			p.InView = append(p.InView, m.path)
		}
	}
}

// A trial is a place to try renames that cannot succeed: its target is a
// directory with something in it, over which rename(2) never moves anything.
// overlayfs refuses a directory of the image's layers before it looks at the
// target (EXDEV, ovl_rename), and the VFS a mount point before that (EBUSY);
// every other directory gets as far as ENOTEMPTY.
type trial struct {
	dir string
	fd  int
}

const trialTarget = "full"

func newTrial(work string) (*trial, error) {
	dir, err := os.MkdirTemp(work, "probe")
	if err != nil {
		return nil, err
	}
	t := &trial{dir: dir, fd: -1}
	if err := os.MkdirAll(filepath.Join(dir, trialTarget, "not-empty"), 0o700); err != nil {
		t.close()
		return nil, err
	}
	if t.fd, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *trial) close() {
	if t.fd >= 0 {
		unix.Close(t.fd)
	}
	_ = os.RemoveAll(t.dir)
}

// rename returns the error by which the directory's rename is refused.
func (t *trial) rename(up int, name string) error {
	err := unix.Renameat(up, name, t.fd, trialTarget)
	if err == nil {
		// No file system does this; if one did, it comes back at once.
		_ = unix.Renameat(t.fd, trialTarget, up, name)
		return unix.EIO
	}
	return err
}

// measure counts the files below a directory, on its file system, and their bytes.
func measure(ctx context.Context, dir string) (files, bytes int64) {
	var top unix.Stat_t
	if unix.Lstat(dir, &top) != nil {
		return 0, 0
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil || unix.Lstat(path, &st) != nil {
			return nil //nolint:nilerr // what cannot be read is not counted
		}
		if d.IsDir() {
			if st.Dev != top.Dev {
				return filepath.SkipDir
			}
			return nil
		}
		files++
		if d.Type().IsRegular() {
			bytes += st.Size
		}
		return nil
	})
	return files, bytes
}
