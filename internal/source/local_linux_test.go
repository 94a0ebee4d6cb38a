// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"hako/internal/source"
	"hako/internal/tree"
)

func TestLocalSpecialFiles(t *testing.T) {
	root := t.TempDir()
	build(t, root, "f x", "d/")
	if err := unix.Mkfifo(filepath.Join(root, "d/fifo"), 0o640); err != nil {
		t.Fatal(err)
	}
	// A relative name, as a socket's may have 107 bytes at most.
	t.Chdir(root)
	s, err := net.Listen("unix", "d/sock")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := unix.Mknod(filepath.Join(root, "d/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Logf("device nodes are not tested: %v", err)
	}
	compare(t, root, source.LocalOptions{})
	fsys, err := source.Local(openDir(t, root), source.LocalOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := fsys.Lstat("d/sock")
	if err != nil || !e.Mode.IsRegular() || e.Size != 0 {
		t.Errorf("socket: %+v, %v", e, err)
	}
	r, err := fsys.Open("d/sock")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); len(b) > 0 || err != nil {
		t.Errorf("socket holds %q, %v", b, err)
	}
}

func TestLocalDropsCapabilities(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	build(t, root, "f x")
	p := filepath.Join(root, "f")
	// cap_net_bind_service=ep, revision 2 (linux/capability.h).
	c := make([]byte, 20)
	c[3], c[0], c[5] = 2, 1, 4
	if err := unix.Setxattr(p, "security.capability", c, 0); err != nil {
		t.Skipf("file capabilities cannot be set here: %v", err)
	}
	if err := unix.Setxattr(p, "user.kept", []byte("v"), 0); err != nil {
		t.Skipf("user attributes cannot be set here: %v", err)
	}
	fsys, err := source.Local(openDir(t, root).WithXattrs(), source.LocalOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := fsys.Lstat("f")
	if err != nil || len(e.Xattrs) != 1 || e.Xattrs["user.kept"] != "v" {
		t.Errorf("xattrs = %q, %v", e.Xattrs, err)
	}
	// The reason: chown takes the capability away, even to the same owner.
	if err := os.Lchown(p, 0, 0); err != nil {
		t.Skipf("chown: %v", err)
	}
	if n, err := unix.Getxattr(p, "security.capability", nil); err == nil {
		t.Errorf("this kernel keeps %d bytes of capability over a chown; BuildKit may then send it", n)
	}
}

func TestLocalConcurrently(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	build(t, root, sample...)
	fsys, err := source.Local(openDir(t, root), source.LocalOptions{ExcludePatterns: []string{"*", "!**/c", "!b/*/y", "[xq]"}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := tree.Walk(t.Context(), fsys, "", func(e tree.Entry) error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
