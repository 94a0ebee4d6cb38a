// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/tree"
)

// A volume that lies where the image needs a directory (the build context at
// /workspace and WORKDIR /workspace) is parked inside itself: a mount point
// cannot be moved, what is in it can.

// parkVolume moves the content of the mount at path, relative to /, into a
// directory of it, and returns that directory's name.
func (l *lot) parkVolume(path string) (string, error) {
	fd, err := unix.Openat(l.root, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("park in /%s: %w", path, err)
	}
	defer unix.Close(fd)
	a, err := readAttrs(fd, ".")
	if err != nil {
		return "", fmt.Errorf("park in /%s: %w", path, err)
	}
	aside := fmt.Sprintf(".hako-%d-%x", os.Getpid(), a.Mtime)
	v := volume{Aside: aside, Attrs: a}
	if err := l.journal.volume(path, v); err != nil {
		return "", err
	}
	names, err := readNames(fd, ".")
	if err == nil {
		err = unix.Mkdirat(fd, aside, 0o700)
	}
	if err != nil {
		return "", fmt.Errorf("park in /%s: %w", path, err)
	}
	to, err := unix.Openat(fd, aside, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("park in /%s: %w", path, err)
	}
	defer unix.Close(to)
	for _, n := range names {
		if err := unix.Renameat(fd, n, to, n); err != nil {
			return "", fmt.Errorf("park in /%s: %s: %w", path, n, err)
		}
	}
	v.Ready = true
	return aside, l.journal.volume(path, v)
}

// restoreVolumes puts the content of volumes back.
func (l *lot) restoreVolumes() error {
	for p, v := range l.journal.state.Volumes {
		if err := l.restoreVolume(p, v); err != nil {
			return fmt.Errorf("volume /%s: %w", p, err)
		}
		if err := l.journal.volumeGone(p); err != nil {
			return err
		}
	}
	return nil
}

func (l *lot) restoreVolume(path string, v volume) error {
	fd, err := unix.Openat(l.root, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	from, err := unix.Openat(fd, v.Aside, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil // never begun, or done before an interruption
	}
	if err != nil {
		return err
	}
	defer unix.Close(from)
	if v.Ready {
		if err := l.emptyVolume(fd, v.Aside); err != nil {
			return err
		}
		// From here on what lies beside is the volume's own again.
		v.Ready = false
		if err := l.journal.volume(path, v); err != nil {
			return err
		}
	}
	if err := l.putBack(from, fd); err != nil {
		return err
	}
	if err := unix.Unlinkat(fd, v.Aside, unix.AT_REMOVEDIR); err != nil {
		return err
	}
	return v.Attrs.apply(fd)
}

// emptyVolume deletes all but aside from the volume.
func (l *lot) emptyVolume(fd int, aside string) error {
	names, err := readNames(fd, ".")
	if err != nil {
		return err
	}
	for _, n := range names {
		if n == aside {
			continue
		}
		if err := layer.RemoveAt(fd, n); err != nil {
			return fmt.Errorf("delete %s: %w", n, err)
		}
	}
	return nil
}

// isRuntimeMount tells whether the container runtime mounts p in every
// container, as BuildKit does for RUN.
func isRuntimeMount(p string) bool {
	switch p {
	case "etc/hosts", "etc/resolv.conf", "etc/hostname", "run/.containerenv", "run/secrets":
		return true
	}
	switch topOf(p) {
	case "proc", "sys", "dev":
		return true
	}
	return false
}

// needed tells whether the build uses the volume m's path for the image.
func (s *InPlace) needed(m string, base tree.FS) bool {
	for _, n := range s.opt.Needs {
		if tree.Within(tree.Clean(n), m) {
			return true
		}
	}
	if base == nil {
		return false
	}
	_, err := base.Lstat(m)
	return err == nil
}

// makeRoom parks, inside themselves, the volumes that lie where the image has
// something.
func (s *InPlace) makeRoom(_ context.Context, base tree.FS) error {
	for m, v := range s.volumes {
		if v.aside != "" || !s.needed(m, base) {
			continue
		}
		if e, err := base.Lstat(m); err == nil && !e.Mode.IsDir() {
			return &UnsupportedError{
				What: "RUN", Why: fmt.Sprintf("the image has a file or a link at /%s, where this container has a volume", m),
				Remedy: fmt.Sprintf("mount the volume somewhere else than /%s", m),
			}
		}
		if err := s.parkVolume(m); err != nil {
			return err
		}
	}
	return nil
}

func (s *InPlace) parkVolume(m string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.lot.at(m), &fs); err != nil {
		return fmt.Errorf("look at the volume /%s: %w", m, err)
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		return &UnsupportedError{
			What:   "RUN",
			Why:    fmt.Sprintf("the image uses /%s, where this container has a read-only volume that can be neither moved nor emptied", m),
			Remedy: fmt.Sprintf("mount the volume somewhere else than /%s (for the build context: and name it with -c), or mount it writable", m),
		}
	}
	if !isDirAt(s.lot.root, m) {
		return &UnsupportedError{
			What: "RUN", Why: fmt.Sprintf("the image uses /%s, where this container has a file mounted", m),
			Remedy: "mount the file somewhere else",
		}
	}
	move := func() (string, error) { return s.lot.parkVolume(m) }
	record := func() (string, error) {
		aside, err := move()
		s.volumes[m].aside = aside
		return s.lot.at(tree.Join(m, aside)), err
	}
	if s.opt.OnVolume != nil {
		return s.opt.OnVolume("/"+m, record)
	}
	_, err := record()
	return err
}

func (s *InPlace) parkedVolumes() map[string]string {
	out := make(map[string]string)
	for m, v := range s.volumes {
		if v.aside != "" {
			out[m] = v.aside
		}
	}
	return out
}

// volumeRecord records the volume at m, or the directory in it that its content is in.
func (s *InPlace) volumeRecord(ctx context.Context, m, aside string) (*record, error) {
	fd, err := unix.Openat(s.lot.root, tree.Join(m, aside), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOTDIR || err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at the volume /%s: %w", m, err)
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) == nil && fs.Flags&unix.ST_RDONLY != 0 {
		return nil, nil // a command cannot write there; the kubelet may
	}
	masked := make(map[string]bool)
	for _, other := range s.lot.mounts() {
		if other != m && tree.Within(other, m) {
			masked[strings.TrimPrefix(other, m+"/")] = true
		}
	}
	for _, own := range s.opt.Own {
		if p := tree.Clean(own); p != m && tree.Within(p, m) {
			masked[strings.TrimPrefix(p, m+"/")] = true
		}
	}
	return takeRecord(ctx, fd, masked, nil)
}

// checkVolumes fails if the command wrote to a volume that is not part of the image.
func (s *InPlace) checkVolumes(ctx context.Context) error {
	for m, v := range s.volumes {
		if v.record == nil {
			continue
		}
		now, err := s.volumeRecord(ctx, m, v.aside)
		if err != nil {
			return err
		}
		if now == nil {
			return &VolumeError{Volume: "/" + m, Path: "/" + tree.Join(m, v.aside)}
		}
		if p, ok := firstDifference("", v.record.root, now.root); ok {
			return &VolumeError{Volume: "/" + m, Path: "/" + tree.Join(m, p)}
		}
	}
	return nil
}

// A VolumeError is returned when a command wrote to a volume of the container.
type VolumeError struct{ Volume, Path string }

func (e *VolumeError) Error() string {
	return fmt.Sprintf("wrote to %s, in %s, a volume of this container: it would be missing from the image", e.Path, e.Volume)
}

// firstDifference returns a path that differs between two records.
func firstDifference(path string, a, b *dirRecord) (string, bool) {
	for i, j := 0, 0; i < len(a.nodes) || j < len(b.nodes); {
		// What is masked may come and go.
		switch {
		case j == len(b.nodes) || i < len(a.nodes) && a.nodes[i].name < b.nodes[j].name:
			if !a.nodes[i].masked {
				return tree.Join(path, a.nodes[i].name), true
			}
			i++
			continue
		case i == len(a.nodes) || a.nodes[i].name > b.nodes[j].name:
			if !b.nodes[j].masked {
				return tree.Join(path, b.nodes[j].name), true
			}
			j++
			continue
		}
		x, y := &a.nodes[i], &b.nodes[j]
		p := tree.Join(path, x.name)
		if !x.masked && !y.masked {
			if !x.isDir() && !x.same(y) || x.mode != y.mode || x.uid != y.uid || x.gid != y.gid {
				return p, true
			}
			if x.kids != nil && y.kids != nil {
				if q, ok := firstDifference(p, x.kids, y.kids); ok {
					return q, true
				}
			}
		}
		i++
		j++
	}
	return "", false
}
