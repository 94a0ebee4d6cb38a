// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"testing"

	"hako/internal/source"
	"hako/internal/tree/treetest"
)

// What kubelet makes of a ConfigMap is seen as the files of the ConfigMap.
func TestProjected(t *testing.T) {
	t.Parallel()
	volume := treetest.New(t, `
/..2026_11_21_15_00_00.1/Dockerfile file 0644 c=new
/..2026_11_21_15_00_00.1/sub/a file 0644 c=a
/..2026_11_21_15_00_00.1/..odd file 0644
/..2026_11_21_14_00_00.9/Dockerfile file 0644 c=old
/..data link ..2026_11_21_15_00_00.1
/Dockerfile link ..data/Dockerfile
/sub link ..data/sub
/other link ..data/Dockerfile
/plain file 0600 c=beside
`)
	fsys := source.Projected(volume)
	const want = `/Dockerfile file 0644 c=new
/other link ..data/Dockerfile
/plain file 0600 c=beside
/sub dir 0755
/sub/a file 0644 c=a
`
	if got := treetest.List(t, fsys, ""); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for _, p := range []string{"..data", "..data/Dockerfile", "..2026_11_21_14_00_00.9/Dockerfile", "none"} {
		if _, err := fsys.Lstat(p); err == nil {
			t.Errorf("%s is seen", p)
		}
	}
}

func TestNotProjected(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"/a file", "/..data dir", "/..data link ..", "/..data link ../x", "/..data link ..none", "/..data link data\n/data dir"} {
		fsys := treetest.New(t, text)
		if got := source.Projected(fsys); got != fsys {
			t.Errorf("%s: %v", text, got)
		}
	}
}
