// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package build

import (
	"os"
	"os/exec"
	"runtime"
)

func exeSuffixes() []string {
	if runtime.GOOS == "windows" {
		return []string{".exe"}
	}
	return []string{""}
}

// chroot is not needed: nothing is parked on this system.
func chroot(*exec.Cmd, string) {}

func placeProgram(f *os.File, _ string) (path string, remove func(), err error) {
	return f.Name(), func() {}, nil
}
