// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	securejoin "github.com/cyphar/filepath-securejoin/pathrs-lite"
)

func exeSuffixes() []string { return []string{""} }

// chroot makes the command run in the tree below dir.
func chroot(cmd *exec.Cmd, dir string) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
	cmd.Dir = "/"
}

// placeProgram returns the path of the program in its tree, which is in dir ("" for /).
// What lies on a volume, or beside hako, stayed behind when the tree moved: then
// the tree gets a copy, and remove takes it away.
func placeProgram(f *os.File, dir string) (path string, remove func(), err error) {
	if dir == "" {
		return f.Name(), func() {}, nil
	}
	if there, err := securejoin.OpenInRoot(dir, f.Name()); err == nil {
		want, werr := f.Stat()
		got, gerr := there.Stat()
		there.Close()
		if werr == nil && gerr == nil && os.SameFile(want, got) {
			return f.Name(), func() {}, nil
		}
	}
	t, err := os.CreateTemp(dir, ".docker-credential-")
	if err != nil {
		return "", nil, fmt.Errorf("copy the credential helper: %w", err)
	}
	fi, err := f.Stat()
	if err == nil {
		_, err = io.Copy(t, io.NewSectionReader(f, 0, fi.Size()))
	}
	if err := errors.Join(err, t.Chmod(0o700), t.Close()); err != nil {
		os.Remove(t.Name())
		return "", nil, fmt.Errorf("copy the credential helper: %w", err)
	}
	return "/" + filepath.Base(t.Name()), func() { os.Remove(t.Name()) }, nil
}
