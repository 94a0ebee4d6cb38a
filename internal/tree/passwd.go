// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
)

// maxUserFile bounds what is read of /etc/passwd and /etc/group, as BuildKit does.
const maxUserFile = 10 << 20

// LookupUser finds a name in the tree's /etc/passwd. That there is no such file
// or no such name is not an error: ok is false then.
func LookupUser(fsys FS, name string) (uid, gid uint32, ok bool, err error) {
	r, err := openUserFile(fsys, "etc/passwd")
	if r == nil {
		return 0, 0, false, err
	}
	defer r.Close()
	users, err := user.ParsePasswdFilter(r, func(u user.User) bool { return u.Name == name })
	if err != nil {
		return 0, 0, false, fmt.Errorf("read /etc/passwd of the image: %w", err)
	}
	if len(users) == 0 {
		return 0, 0, false, nil
	}
	if uid, err = id("user", users[0].Uid); err != nil {
		return 0, 0, false, err
	}
	gid, err = id("group", users[0].Gid)
	return uid, gid, err == nil, err
}

// LookupGroup finds a name in the tree's /etc/group, like [LookupUser].
func LookupGroup(fsys FS, name string) (gid uint32, ok bool, err error) {
	r, err := openUserFile(fsys, "etc/group")
	if r == nil {
		return 0, false, err
	}
	defer r.Close()
	groups, err := user.ParseGroupFilter(r, func(g user.Group) bool { return g.Name == name })
	if err != nil {
		return 0, false, fmt.Errorf("read /etc/group of the image: %w", err)
	}
	if len(groups) == 0 {
		return 0, false, nil
	}
	gid, err = id("group", groups[0].Gid)
	return gid, err == nil, err
}

// ExecUser finds the ids, supplementary groups and home directory for the USER
// of a command: "", "user", "uid", "user:group" and so on. A name that the tree
// does not have is an error, an unknown number is not. The ids are BuildKit's:
// with "uid:gid", both numbers (or "root"), no groups are looked up. Home is
// what a runtime would set HOME to: of /etc/passwd by uid, else "/".
func ExecUser(fsys FS, spec string) (uid, gid uint32, groups []uint32, home string, err error) {
	if u, g, ok := numericPair(spec); ok {
		uid, gid = u, g
	} else if uid, gid, groups, err = namedUser(fsys, spec); err != nil {
		return 0, 0, nil, "", err
	}
	home, err = homeOf(fsys, uid)
	return uid, gid, groups, home, err
}

// numericPair parses "uid:gid". "root" counts as a number.
func numericPair(spec string) (uid, gid uint32, ok bool) {
	u, g, ok := strings.Cut(spec, ":")
	if !ok {
		return 0, 0, false
	}
	uid, uok := number(u)
	gid, gok := number(g)
	return uid, gid, uok && gok
}

func number(s string) (uint32, bool) {
	if s == "root" {
		return 0, true
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}

func namedUser(fsys FS, spec string) (uid, gid uint32, groups []uint32, err error) {
	isDefault := spec == ""
	if isDefault {
		spec = "0"
	}
	var passwd, group io.Reader
	if r, err := openUserFile(fsys, "etc/passwd"); err != nil {
		return 0, 0, nil, err
	} else if r != nil {
		defer r.Close()
		passwd = r
	}
	if r, err := openUserFile(fsys, "etc/group"); err != nil {
		return 0, 0, nil, err
	} else if r != nil {
		defer r.Close()
		group = r
	}
	u, err := user.GetExecUser(spec, nil, passwd, group)
	if err != nil {
		if isDefault {
			return 0, 0, nil, nil
		}
		return 0, 0, nil, fmt.Errorf("find user %q in the image: %w", spec, err)
	}
	if uid, err = id("user", u.Uid); err != nil {
		return 0, 0, nil, err
	}
	if gid, err = id("group", u.Gid); err != nil {
		return 0, 0, nil, err
	}
	for _, g := range u.Sgids {
		n, err := id("group", g)
		if err != nil {
			return 0, 0, nil, err
		}
		groups = append(groups, n)
	}
	return uid, gid, groups, nil
}

func homeOf(fsys FS, uid uint32) (string, error) {
	r, err := openUserFile(fsys, "etc/passwd")
	if r == nil {
		return "/", err
	}
	defer r.Close()
	users, err := user.ParsePasswdFilter(r, func(u user.User) bool { return u.Uid == int(uid) })
	if err != nil {
		return "", fmt.Errorf("read /etc/passwd of the image: %w", err)
	}
	if len(users) == 0 || users[0].Home == "" {
		return "/", nil
	}
	return users[0].Home, nil
}

// id checks that a parsed number is an id.
func id(kind string, n int) (uint32, error) {
	if n < 0 || int64(n) > math.MaxUint32 {
		return 0, fmt.Errorf("%s id %d in the image's user database is out of range", kind, n)
	}
	return uint32(n), nil
}

// openUserFile opens p with links followed inside the tree; nil without an
// error if it does not exist.
func openUserFile(fsys FS, p string) (io.ReadCloser, error) {
	p, err := Resolve(fsys, p, true)
	if err != nil {
		return nil, err
	}
	e, err := fsys.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !e.Mode.IsRegular() {
		return nil, fmt.Errorf("read %q of the image: not a regular file", "/"+p)
	}
	if e.Size > maxUserFile {
		return nil, fmt.Errorf("read %q of the image: larger than %d bytes", "/"+p, maxUserFile)
	}
	r, err := fsys.Open(p)
	if err != nil {
		return nil, err
	}
	return &limited{ReadCloser: r, r: io.LimitReader(r, maxUserFile)}, nil
}

type limited struct {
	io.ReadCloser
	r io.Reader
}

func (l *limited) Read(b []byte) (int, error) { return l.r.Read(b) }
