// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseMounts(t *testing.T) {
	t.Parallel()
	const text = `22 1 0:21 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/var/lib/containers/storage/overlay/l/A,upperdir=/u
30 22 0:5 / /a\040b ro,nosuid - tmpfs none rw,size=4k
not a line of mountinfo
`
	want := []mountLine{
		{"/", "overlay", "rw,relatime,rw,lowerdir=/var/lib/containers/storage/overlay/l/A,upperdir=/u"},
		{"/a b", "tmpfs", "ro,nosuid,rw,size=4k"},
	}
	if diff := cmp.Diff(want, parseMounts([]byte(text)), cmp.AllowUnexported(mountLine{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestCapNames(t *testing.T) {
	t.Parallel()
	got := capNames(0xa80425fb)
	if len(got) != 14 || !slices.Contains(got, "mknod") || slices.Contains(got, "sys_admin") || got[len(got)-1] != "setfcap" {
		t.Errorf("got %q, want the default 14", got)
	}
	if got := capNames(1 << 60); !slices.Equal(got, []string{"cap_60"}) {
		t.Errorf("got %q for a capability not known", got)
	}
}

// The trial must move nothing, whatever the directory holds.
func TestTrialMovesNothing(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	if err := os.MkdirAll(work+"/victim/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(work+"/empty", 0o755); err != nil {
		t.Fatal(err)
	}
	tr, err := newTrial(work)
	if err != nil {
		t.Fatal(err)
	}
	up, err := unix.Open(work, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(up)
	for _, name := range []string{"victim", "empty"} {
		if err := tr.rename(up, name); err != unix.ENOTEMPTY && err != unix.EEXIST {
			t.Errorf("%s: %v, want ENOTEMPTY", name, err)
		}
	}
	tr.close()
	names, err := readNames(up, ".")
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{"empty", "victim"}) {
		t.Errorf("left: %q, %v", names, err)
	}
	if _, err := os.Stat(work + "/victim/sub"); err != nil {
		t.Error(err)
	}
}
