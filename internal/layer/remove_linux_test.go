// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// removable makes a tree of many directories, with links out of it.
func removable(t *testing.T) (root, outside string) {
	t.Helper()
	top := t.TempDir()
	root, outside = filepath.Join(top, "root"), filepath.Join(top, "outside")
	err := errors.Join(os.Mkdir(outside, 0o755), os.WriteFile(filepath.Join(outside, "f"), nil, 0o600))
	for i := range 200 {
		dir := filepath.Join(root, fmt.Sprint(i%7), fmt.Sprint(i%11), fmt.Sprint(i))
		err = errors.Join(err, os.MkdirAll(dir, 0o755), os.Symlink(outside, filepath.Join(dir, "link")))
		for k := range 5 {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, fmt.Sprint(k)), nil, 0o600))
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return root, outside
}

func TestRemoveAll(t *testing.T) {
	t.Parallel()
	root, outside := removable(t)
	if err := RemoveAll(root); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the tree is still there: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(outside, "f")); err != nil {
		t.Error(err)
	}
	if err := RemoveAll(root); err != nil {
		t.Errorf("nothing to remove: %v", err)
	}
}

// What is stopped says so, and nothing is deleted afterwards.
func TestRemoveAllStops(t *testing.T) {
	t.Parallel()
	root, _ := removable(t)
	enough := errors.New("enough")
	var n atomic.Int64
	r := remover{slots: make(chan struct{}, 3), stop: func() error {
		if n.Add(1) > 300 {
			return enough
		}
		return nil
	}}
	if err := removeTree(root, r); !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
	if len(r.slots) != 0 {
		t.Error("somebody is still at work")
	}
	if _, err := os.Lstat(root); err != nil {
		t.Error(err)
	}
}
