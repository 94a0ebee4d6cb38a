// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hako/internal/export"
)

func listDir(t *testing.T, d string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == d {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(d, p)
		fmt.Fprintf(&b, "%s %s %d", rel, fi.Mode(), fi.ModTime().Unix())
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			fmt.Fprintf(&b, " -> %s", to)
		case fi.Mode().IsRegular():
			c, _ := os.ReadFile(p)
			fmt.Fprintf(&b, " n%d %s", fi.Sys().(*syscall.Stat_t).Nlink, c)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWriteDir(t *testing.T) {
	t.Parallel()
	d, root := openRoot(t)
	outside := t.TempDir()
	// What is in the way is replaced, never followed or written through.
	for _, err := range []error{
		os.WriteFile(filepath.Join(outside, "f"), []byte("mine"), 0o600),
		os.Symlink(outside, filepath.Join(d, "d")),
		os.Link(filepath.Join(outside, "f"), filepath.Join(d, "arch")),
		os.WriteFile(filepath.Join(d, "stays"), []byte("s"), 0o600),
		os.Chtimes(filepath.Join(d, "stays"), time.Unix(7, 0), time.Unix(7, 0)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := "arch -rw-r--r-- 1000 n1 amd64\nd dr-xr-xr-x 3000\nd/f urwxr-xr-x 1000 n2 one\nd/g urwxr-xr-x 1000 n2 one\n" +
		"d/l Lrwxrwxrwx 1000 -> /d/f\nstays -rw------- 7 n1 s\n"
	b := newBundle(t, export.Options{}, amd64)
	for range 2 { // the second time on top of the first
		if err := b.WriteDir(t.Context(), root, export.FilesOptions{}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, listDir(t, d)); diff != "" {
			t.Errorf("files differ (-want +got):\n%s", diff)
		}
	}
	if c, err := os.ReadFile(filepath.Join(outside, "f")); err != nil || string(c) != "mine" {
		t.Errorf("a file outside is %q, %v", c, err)
	}
}

func TestWriteDirPlatforms(t *testing.T) {
	t.Parallel()
	d, root := openRoot(t)
	epoch := time.Unix(42, 0)
	if err := newBundle(t, export.Options{}, amd64, arm64).WriteDir(t.Context(), root, export.FilesOptions{Epoch: &epoch}); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, a := range []string{"amd64", "arm64"} {
		p := "linux_" + a
		fmt.Fprintf(&want, "%[1]s drwxr-xr-x 42\n%[1]s/arch -rw-r--r-- 42 n1 %[2]s\n%[1]s/d dr-xr-xr-x 42\n%[1]s/d/f urwxr-xr-x 42 n2 one\n"+
			"%[1]s/d/g urwxr-xr-x 42 n2 one\n%[1]s/d/l Lrwxrwxrwx 42 -> /d/f\n", p, a)
	}
	if diff := cmp.Diff(want.String(), listDir(t, d)); diff != "" {
		t.Errorf("files differ (-want +got):\n%s", diff)
	}
}

func TestWriteTar(t *testing.T) {
	t.Parallel()
	for _, many := range []bool{false, true} {
		ps := newBundle(t, export.Options{Index: many}, amd64)
		var buf bytes.Buffer
		if err := ps.WriteTar(t.Context(), &buf, export.FilesOptions{}); err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for tr := tar.NewReader(&buf); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			c, _ := io.ReadAll(tr)
			fmt.Fprintf(&got, "%c %s %o %d:%d %d %s%s\n", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.ModTime.Unix(), h.Linkname, c)
		}
		pre, top := "", ""
		if many {
			pre, top = "linux_amd64/", "5 linux_amd64/ 755 0:0 0 \n"
		}
		want := top + "0 " + pre + "arch 644 1:2 1000 amd64\n5 " + pre + "d/ 555 0:0 3000 \n0 " + pre + "d/f 4755 1:2 1000 one\n" +
			"1 " + pre + "d/g 4755 1:2 1000 " + pre + "d/f\n2 " + pre + "d/l 777 0:0 1000 /d/f\n"
		if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Errorf("tar differs (-want +got):\n%s", diff)
		}
	}
}
