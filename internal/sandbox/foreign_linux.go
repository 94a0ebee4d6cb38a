// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Executes finds out whether this machine executes programs of an architecture
// (Go's name of it) in an image, by doing it: natively, or because the node
// has an emulator for them (binfmt_misc). It is tried in an empty root, as an
// emulator that is looked up in the image's files (no flag F) is not found there.
// dir is an existing directory that executables may lie in.
func Executes(ctx context.Context, dir, arch string) (err error) {
	program, ok := trialPrograms()[arch]
	if !ok {
		return fmt.Errorf("execute a program for %s: there is none to try with", arch)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("execute a program for %s: %w", arch, err)
		}
	}()
	root, err := os.MkdirTemp(dir, "foreign-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	if err := os.WriteFile(filepath.Join(root, "trial"), program.file(), 0o700); err != nil {
		return err
	}
	for try := 0; ; try++ {
		cmd := exec.CommandContext(ctx, "/trial")
		cmd.Dir, cmd.Env = "/", []string{}
		cmd.SysProcAttr = chrooted(root)
		err := cmd.Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == exitStatus {
			return nil
		}
		// A process that was forked meanwhile may still have the file open for
		// writing, until it executes something itself (golang.org/issue/22315).
		if !errors.Is(err, unix.ETXTBSY) || try == 100 {
			return errors.Join(err, ctx.Err())
		}
	}
}

// chrooted has a process start in another root: as whom it is, or, where that
// may not change roots, as root of a user namespace.
func chrooted(root string) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Chroot: root}
	if uid := os.Geteuid(); uid != 0 {
		a.Cloneflags = unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	return a
}
