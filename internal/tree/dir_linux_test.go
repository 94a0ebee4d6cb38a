// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dirs returns the directory seen with openat2 and without.
func dirs(t *testing.T, root string) map[string]*Dir {
	t.Helper()
	out := map[string]*Dir{}
	for _, name := range []string{"openat2", "steps"} {
		d, err := OpenDir(root)
		must(t, err)
		t.Cleanup(func() { _ = d.Close() })
		d.h.noOpenat2.Store(name == "steps")
		out[name] = d
	}
	return out
}

func TestDirSpecialFiles(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	must(t, os.Mkdir(filepath.Join(root, "d"), 0o755))
	must(t, unix.Mkfifo(filepath.Join(root, "d/fifo"), 0o600))
	must(t, os.WriteFile(filepath.Join(root, "d/suid"), nil, 0o600))
	must(t, unix.Chmod(filepath.Join(root, "d/suid"), 0o6755))
	must(t, os.Link(filepath.Join(root, "d/suid"), filepath.Join(root, "d/twin")))
	device := unix.Mknod(filepath.Join(root, "d/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) == nil
	for name, d := range dirs(t, root) {
		// Would block for ever if it were opened.
		if _, err := d.Open("d/fifo"); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: open FIFO: %v", name, err)
		}
		if _, err := openRegularAt(d, "d/fifo"); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: open what became a FIFO: %v", name, err)
		}
		a, err := d.Lstat("d/suid")
		must(t, err)
		b, err := d.Lstat("d/twin")
		must(t, err)
		if a.Mode.Perm() != 0o6755 || a.Node == (NodeID{}) || a.Node != b.Node {
			t.Errorf("%s: hard links %o %v and %v", name, a.Mode, a.Node, b.Node)
		}
		e, err := d.Lstat("d")
		if err != nil || e.Node != (NodeID{}) {
			t.Errorf("%s: directory has node %v, %v", name, e.Node, err)
		}
		if !device {
			continue
		}
		e, err = d.Lstat("d/null")
		if err != nil || !e.Mode.IsDevice() || e.Major != 1 || e.Minor != 3 {
			t.Errorf("%s: device %+v, %v", name, e, err)
		}
		if _, err := d.Open("d/null"); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: open device: %v", name, err)
		}
	}
	if !device {
		t.Log("device nodes not tested: mknod needs CAP_MKNOD")
	}
}

// openRegularAt is the second half of Open, for what changes between the halves.
func openRegularAt(d *Dir, p string) (fd int, err error) {
	err = d.inParent("open", p, func(dir int, name string) (err error) {
		fd, err = openRegular(dir, name)
		return err
	})
	return fd, err
}

func TestDirSwappedForLink(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	must(t, os.WriteFile(filepath.Join(top, "secret"), []byte("S"), 0o600))
	root := filepath.Join(top, "root")
	must(t, os.MkdirAll(filepath.Join(root, "d"), 0o755))
	must(t, os.Symlink("../../secret", filepath.Join(root, "d/f")))
	for name, d := range dirs(t, root) {
		if _, err := openRegularAt(d, "d/f"); !errors.Is(err, ErrNotRegular) {
			t.Errorf("%s: open what became a link: %v", name, err)
		}
	}
}

// TestDirRace swaps a directory for a link to the outside over and over; no
// access may ever see what is outside.
func TestDirRace(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(top, "out"), 0o755))
	must(t, os.WriteFile(filepath.Join(top, "out/f"), []byte("OUT"), 0o600))
	root := filepath.Join(top, "root")
	must(t, os.MkdirAll(filepath.Join(root, "d"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "d/f"), []byte("in"), 0o600))
	must(t, os.Symlink(filepath.Join(top, "out"), filepath.Join(root, "l")))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(root, "d"), unix.AT_FDCWD, filepath.Join(root, "l"), unix.RENAME_EXCHANGE)
			}
		}
	})
	for name, d := range dirs(t, root) {
		for range 2000 {
			if e, err := d.Lstat("d/f"); err == nil && e.Size != 2 {
				t.Fatalf("%s: saw the file outside", name)
			} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

func TestDirXattrs(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	p := filepath.Join(root, "f")
	must(t, os.WriteFile(p, nil, 0o600))
	long := strings.Repeat("v", 2000)
	if err := unix.Setxattr(p, "user.long", []byte(long), 0); err != nil {
		t.Skipf("the file system of %s has no extended attributes: %v", root, err)
	}
	must(t, unix.Setxattr(p, "user.empty", nil, 0))
	for name, d := range dirs(t, root) {
		e, err := d.WithXattrs().Lstat("f")
		must(t, err)
		if v, ok := e.Xattrs["user.empty"]; e.Xattrs["user.long"] != long || !ok || v != "" {
			t.Errorf("%s: xattrs = %q", name, e.Xattrs)
		}
		entries, err := d.WithXattrs().ReadDir("")
		if err != nil || len(entries) != 1 || entries[0].Xattrs["user.long"] != long {
			t.Errorf("%s: ReadDir = %v, %v", name, entries, err)
		}
		if e, err = d.Lstat("f"); err != nil || e.Xattrs != nil {
			t.Errorf("%s: without the option: %v, %v", name, e.Xattrs, err)
		}
	}
}

// TestDirDeep is about paths longer than the kernel takes at once.
func TestDirDeep(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	name := strings.Repeat("n", 200)
	fd, err := unix.Open(root, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	must(t, err)
	for range 25 {
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY|unix.O_RDONLY, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
	deep := strings.Join(slices.Repeat([]string{name}, 25), "/")
	for how, d := range dirs(t, root) {
		if e, err := d.Lstat(deep); err != nil || !e.Mode.IsDir() {
			t.Errorf("%s: Lstat: %v", how, err)
		}
		if _, err := d.ReadDir(deep); err != nil {
			t.Errorf("%s: ReadDir: %v", how, err)
		}
		if _, err := d.Lstat(strings.Repeat("n", 300)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a name too long to exist: %v", how, err)
		}
	}
}
