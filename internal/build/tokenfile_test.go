// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package build

import (
	"os"
	"path/filepath"
	"testing"
)

// A token as kubelet keeps it: a link that it changes when there is a new one.
// The directory is moved away meanwhile, as it is when a root is installed.
func TestTokenFile(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := filepath.Join(root, "secrets")
	put := func(dir, version, token string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, version, "token"), []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(dir, "..data"))
		if err := os.Symlink(version, filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	put(dir, "..1", "first")
	if err := os.Symlink("..data/token", filepath.Join(dir, "token")); err != nil {
		t.Fatal(err)
	}
	f, err := openTokenFile(filepath.Join(dir, "token"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.close() })
	want := func(s string) {
		t.Helper()
		if b, err := f.read(); err != nil || string(b) != s {
			t.Errorf("%q, %v; want %q", b, err, s)
		}
	}
	want("first")
	moved := filepath.Join(root, "parked")
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	// What an image has at the path is not what is read.
	put(dir, "..1", "of the image")
	want("first")
	put(moved, "..2", "second")
	want("second")
	// A link that leads out of the directory is not followed; what was there at
	// the start is all there is.
	if err := os.Remove(filepath.Join(moved, "token")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "..data", "token"), filepath.Join(moved, "token")); err != nil {
		t.Fatal(err)
	}
	want("first")
}

func TestTokenFileAbsent(t *testing.T) {
	t.Parallel()
	if _, err := openTokenFile(filepath.Join(t.TempDir(), "token")); !os.IsNotExist(err) {
		t.Errorf("err = %v", err)
	}
}
