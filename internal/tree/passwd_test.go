// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hako/internal/tree"
	"hako/internal/tree/treetest"
)

func userTree(t testing.TB, passwd, group string) *tree.Overlay {
	o := treetest.New(t, "/etc link usr/etc\n/usr/etc dir")
	for p, c := range map[string]string{"usr/etc/passwd": passwd, "usr/etc/group": group} {
		e := tree.Entry{Path: p, Mode: tree.ModeRegular | 0o644, Size: int64(len(c)), ModTime: time.Unix(0, 0)}
		if err := o.Put(e, treetest.Content([]byte(c))); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\nbad:x:-5:1::/:/bin/sh\n"
	group  = "root:x:0:\nstaff:x:50:web,root\nwww:x:34:\n"
)

func TestExecUser(t *testing.T) {
	t.Parallel()
	type ids struct {
		UID, GID uint32
		Groups   []uint32
		Home     string
	}
	for _, tt := range []struct {
		spec string
		want ids
		err  bool
	}{
		{spec: "", want: ids{0, 0, []uint32{50}, "/root"}},
		{spec: "web", want: ids{33, 34, []uint32{50}, "/srv"}},
		{spec: "33", want: ids{33, 34, []uint32{50}, "/srv"}},
		{spec: "web:staff", want: ids{33, 50, nil, "/srv"}},
		{spec: "33:34", want: ids{33, 34, nil, "/srv"}},
		{spec: "root:root", want: ids{0, 0, nil, "/root"}},
		{spec: "1234", want: ids{1234, 0, nil, "/"}},
		{spec: "1:2", want: ids{1, 2, nil, "/"}},
		{spec: "nobody", err: true},
		{spec: "web:none", err: true},
		{spec: "bad", err: true},
	} {
		var got ids
		var err error
		got.UID, got.GID, got.Groups, got.Home, err = tree.ExecUser(userTree(t, passwd, group), tt.spec)
		if (err != nil) != tt.err {
			t.Errorf("ExecUser(%q): error %v", tt.spec, err)
			continue
		}
		if d := cmp.Diff(tt.want, got); !tt.err && d != "" {
			t.Errorf("ExecUser(%q) (-want +got):\n%s", tt.spec, d)
		}
	}
	if uid, gid, _, home, err := tree.ExecUser(tree.NewOverlay(nil), ""); uid+gid != 0 || home != "/" || err != nil {
		t.Errorf("no passwd: %d %d %q %v", uid, gid, home, err)
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	fsys := userTree(t, passwd, group)
	if uid, gid, ok, err := tree.LookupUser(fsys, "web"); uid != 33 || gid != 34 || !ok || err != nil {
		t.Errorf("web: %d %d %v %v", uid, gid, ok, err)
	}
	if _, _, ok, err := tree.LookupUser(fsys, "none"); ok || err != nil {
		t.Errorf("none: %v %v", ok, err)
	}
	if gid, ok, err := tree.LookupGroup(fsys, "staff"); gid != 50 || !ok || err != nil {
		t.Errorf("staff: %d %v %v", gid, ok, err)
	}
	if _, ok, err := tree.LookupGroup(tree.NewOverlay(nil), "staff"); ok || err != nil {
		t.Errorf("no group file: %v %v", ok, err)
	}
	if _, _, _, err := tree.LookupUser(treetest.New(t, "/etc/passwd dir"), "web"); err == nil {
		t.Error("a directory as /etc/passwd: no error")
	}
}

func FuzzExecUser(f *testing.F) {
	f.Add(passwd, group, "web:staff")
	f.Add("a:b", ":::", "0")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		fsys := userTree(t, passwd, group)
		_, _, _, _, _ = tree.ExecUser(fsys, spec)
		if _, _, ok, err := tree.LookupUser(fsys, spec); ok && err != nil {
			t.Errorf("found with error %v", err)
		}
	})
}
