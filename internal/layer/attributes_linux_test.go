// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"archive/tar"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnpackAttributes makes files whose owner and mode the kernel does not
// give them by itself: because of the umask, of a directory that passes its
// group on, or because setting the owner takes bits away.
func TestUnpackAttributes(t *testing.T) {
	t.Parallel()
	needRoot(t)
	modes := []int64{0o001, 0o400, 0o444, 0o600, 0o644, 0o664, 0o666, 0o777, 0o1644, 0o2755, 0o4755, 0o6711}
	owners := [][2]int{{0, 0}, {0, 5}, {7, 0}, {7, 5}}
	var ms []member
	want := make(map[string]string)
	for _, dirMode := range []int64{0o755, 0o2775, 0o1777} {
		dir := fmt.Sprintf("dir%o", dirMode)
		ms = append(ms, member{dirHeader(dir, dirMode, 5), ""})
		want[dir] = fmt.Sprintf("%o 0:5 1000", dirMode)
		for _, mode := range modes {
			for _, own := range owners {
				name := fmt.Sprintf("%s/f%o-%d-%d", dir, mode, own[0], own[1])
				for kind, flag := range map[string]byte{"": tar.TypeReg, "-fifo": tar.TypeFifo, "-dir": tar.TypeDir} {
					h := tar.Header{Typeflag: flag, Name: name + kind, Mode: mode, Uid: own[0], Gid: own[1]}
					content := ""
					if flag == tar.TypeReg {
						content = "content"
					}
					ms = append(ms, member{h, content})
					want[name+kind] = fmt.Sprintf("%o %d:%d 1000", mode, own[0], own[1])
				}
				ms = append(ms, member{tar.Header{Typeflag: tar.TypeSymlink, Name: name + "-link", Linkname: "nowhere", Uid: own[0], Gid: own[1]}, ""})
				want[name+"-link"] = fmt.Sprintf("777 %d:%d 1000", own[0], own[1])
			}
		}
	}
	plain := tarOf(t, ms...)
	root, err := unpacked(t, foreign(open(t), plain, plain))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range want {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root, name), &st); err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprintf("%o %d:%d %d", st.Mode&0o7777, st.Uid, st.Gid, st.Mtim.Sec)
		if got != want {
			t.Errorf("%s: %s, want %s", strings.TrimPrefix(name, root), got, want)
		}
	}
}
