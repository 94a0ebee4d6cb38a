// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// contextDir is where a case's context lies below the case's directory.
const contextDir = "ctx"

// directives is the archive member that says what txtar cannot.
const directives = "@files"

// contextTime is the mtime of a context's files, unless a directive differs.
func contextTime() time.Time { return time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC) }

// write lays the case out under root, for a user to own: members named
// @DIR/FILE under DIR, all others in the context.
func (c *Case) write(r *Rig, root string, uid int) error {
	if err := os.MkdirAll(filepath.Join(root, contextDir), 0o755); err != nil {
		return err
	}
	var lines string
	for _, f := range c.archive.Files {
		if f.Name == directives {
			lines = string(f.Data)
			continue
		}
		path := place(root, f.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(r.Address(string(f.Data))), 0o644); err != nil {
			return err
		}
	}
	var late []string
	for line := range strings.Lines(lines) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		if slices.Contains([]string{"mode", "mtime", "owner"}, words[0]) {
			late = append(late, line)
			continue
		}
		if err := apply(root, words); err != nil {
			return fmt.Errorf("directive %q: %w", strings.TrimSpace(line), err)
		}
	}
	return finish(root, late, uid)
}

// finish sets all owners and times, then those that directives name: a time
// must come last, and a mode may forbid what comes before it.
func finish(root string, late []string, uid int) error {
	if err := setOwners(root, uid); err != nil {
		return err
	}
	if err := setTimes(root); err != nil {
		return err
	}
	// A change of owner takes setuid away, so it comes before the mode.
	order := func(line string) int { return slices.Index([]string{"owner", "mode ", "mtime"}, line[:5]) }
	slices.SortStableFunc(late, func(a, b string) int { return order(a) - order(b) })
	for _, line := range late {
		if err := apply(root, strings.Fields(line)); err != nil {
			return fmt.Errorf("directive %q: %w", strings.TrimSpace(line), err)
		}
	}
	return nil
}

func setOwners(root string, uid int) error {
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || uid == 0 {
			return err
		}
		return os.Lchown(path, uid, uid)
	})
}

func setTimes(root string) error {
	var paths []string
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	if err != nil {
		return err
	}
	for _, path := range slices.Backward(paths) {
		if err := setTime(path, contextTime()); err != nil {
			return err
		}
	}
	return nil
}

func setTime(path string, t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// place is where a member of the archive goes.
func place(root, name string) string {
	if rest, ok := strings.CutPrefix(name, "@"); ok {
		return filepath.Join(root, rest)
	}
	return filepath.Join(root, contextDir, name)
}

// apply carries out one directive.
func apply(root string, words []string) error {
	verb, path, rest := words[0], place(root, words[1]), words[2:]
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	switch verb {
	case "dir":
		return os.MkdirAll(path, 0o755)
	case "mode":
		mode, err := strconv.ParseUint(rest[0], 8, 32)
		if err != nil {
			return err
		}
		return unix.Chmod(path, uint32(mode))
	case "owner":
		uid, gid, _ := strings.Cut(rest[0], ":")
		u, _ := strconv.Atoi(uid)
		g, _ := strconv.Atoi(gid)
		return os.Lchown(path, u, g)
	case "symlink":
		return os.Symlink(rest[0], path)
	case "hardlink":
		return os.Link(place(root, rest[0]), path)
	case "fifo":
		return unix.Mkfifo(path, 0o644)
	case "socket":
		return unix.Mknod(path, unix.S_IFSOCK|0o755, 0)
	case "xattr":
		return unix.Lsetxattr(path, rest[0], []byte(rest[1]), 0)
	case "mtime":
		t, err := time.Parse(time.RFC3339Nano, rest[0])
		if err != nil {
			return err
		}
		return setTime(path, t)
	case "empty", "bom", "crlf":
		return rewrite(path, verb)
	case "long":
		n, err := strconv.Atoi(rest[0])
		if err != nil {
			return err
		}
		return os.WriteFile(path, []byte("FROM scratch\nENV A="+strings.Repeat("x", n)+"\n"), 0o644)
	case "tar":
		return packDirectory(path, place(root, rest[0]), rest[1:])
	}
	return fmt.Errorf("unknown directive %q", verb)
}

// rewrite changes bytes that an archive of lines cannot carry.
func rewrite(path, how string) error {
	data, err := os.ReadFile(path)
	if err != nil && how != "empty" {
		return err
	}
	switch how {
	case "empty":
		data = nil
	case "bom":
		data = append([]byte("\xef\xbb\xbf"), data...)
	case "crlf":
		data = bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n"))
	}
	return os.WriteFile(path, data, 0o644)
}

// packDirectory makes a tar of a directory at path, compressed by a program if
// one is named, and removes the directory. Entries belong to 500:600 and carry
// odd modes, so that what an unpacking builder keeps can be told.
func packDirectory(path, source string, compressor []string) error {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := addTree(tw, source); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	if err := os.RemoveAll(source); err != nil {
		return err
	}
	data := buf.Bytes()
	if len(compressor) > 0 {
		var err error
		if data, err = compress(compressor[0], data); err != nil {
			return err
		}
	}
	return os.WriteFile(path, data, 0o644)
}

func addTree(tw *tar.Writer, source string) error {
	return filepath.WalkDir(source, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == source {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target, _ := os.Readlink(p)
		h, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(source, p)
		h.Name, h.Uid, h.Gid, h.Uname, h.Gname = name, 500, 600, "", ""
		h.ModTime, h.Format = time.Date(2018, 7, 6, 5, 4, 3, 0, time.UTC), tar.FormatPAX
		h.AccessTime, h.ChangeTime = time.Time{}, time.Time{} // each copy of a case has its own
		if d.IsDir() {
			h.Name += "/"
		}
		if err := tw.WriteHeader(h); err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(tw, f)
		return err
	})
}

func compress(how string, data []byte) ([]byte, error) {
	if how == "gzip" {
		var buf bytes.Buffer
		zw := gzip.NewWriter(&buf)
		if _, err := zw.Write(data); err != nil {
			return nil, err
		}
		err := zw.Close()
		return buf.Bytes(), err
	}
	cmd := exec.Command(how, "-c") //nolint:noctx // a few bytes: nothing to cancel
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("compress with %s: %w", how, err)
	}
	return out, nil
}
