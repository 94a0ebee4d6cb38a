// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// emulators are qemu's names of the architectures, as Debian's qemu-user-static
// has them.
func emulators() map[string]string {
	return map[string]string{
		"amd64": "x86_64", "386": "i386", "arm64": "aarch64", "arm": "arm", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x",
	}
}

// TestTrialPrograms runs the programs in emulators, where they are installed.
func TestTrialPrograms(t *testing.T) {
	t.Parallel()
	for arch, p := range trialPrograms() {
		t.Run(arch, func(t *testing.T) {
			t.Parallel()
			f, err := elf.NewFile(bytes.NewReader(p.file()))
			if err != nil {
				t.Fatal(err)
			}
			if f.Machine != p.machine || len(f.Progs) != 1 || f.Entry != f.Progs[0].Vaddr+f.Progs[0].Memsz-uint64(len(p.code)) {
				t.Errorf("header %+v, segments %+v", f.FileHeader, f.Progs)
			}
			path := filepath.Join(t.TempDir(), "trial")
			if err := os.WriteFile(path, p.file(), 0o700); err != nil {
				t.Fatal(err)
			}
			qemu, err := exec.LookPath("qemu-" + emulators()[arch] + "-static")
			if err != nil {
				t.Skip("skipped: needs qemu-user-static")
			}
			err = exec.CommandContext(t.Context(), qemu, path).Run()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitStatus {
				t.Errorf("%s: %v, want exit status %d", qemu, err, exitStatus)
			}
		})
	}
}

func TestExecutes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := Executes(t.Context(), dir, runtime.GOARCH); err != nil {
		if os.Geteuid() != 0 && errors.Is(err, unix.EPERM) {
			t.Skip("skipped: needs root or user namespaces")
		}
		t.Error(err)
	}
	if err := Executes(t.Context(), dir, "pdp11"); err == nil {
		t.Error("there is a program for pdp11")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// emulatedEnv tells TestExecutesEmulated that it is in namespaces of its own,
// and is the interpreter to register.
const emulatedEnv = "HAKO_TEST_INTERPRETER"

// TestExecutesEmulated registers an emulator as a node's owner does, in a user
// namespace, where Linux 6.7 and later have registrations of their own. With or
// without qemu, a program of this machine that only exits stands in for it.
func TestExecutesEmulated(t *testing.T) {
	if interpreter := os.Getenv(emulatedEnv); interpreter != "" {
		emulated(t, interpreter)
		return
	}
	stand := filepath.Join(t.TempDir(), "interpreter")
	if err := os.WriteFile(stand, trialPrograms()[runtime.GOARCH].file(), 0o700); err != nil {
		t.Fatal(err)
	}
	list := []string{stand}
	if qemu, err := exec.LookPath("qemu-" + emulators()[foreignArch()] + "-static"); err == nil {
		list = append(list, qemu)
	}
	for _, interpreter := range list {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestExecutesEmulated$", "-test.v")
		cmd.Env = append(os.Environ(), emulatedEnv+"="+interpreter)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		switch {
		case errors.Is(err, unix.EPERM):
			t.Skip("skipped: needs user namespaces")
		case err != nil:
			t.Errorf("with %s: %v\n%s", interpreter, err, out)
		case bytes.Contains(out, []byte("skipped: ")):
			t.Skip("skipped: needs binfmt_misc in a user namespace (Linux 6.7)")
		}
	}
}

// foreignArch is one that no machine of this architecture executes by itself.
func foreignArch() string {
	if runtime.GOARCH == "arm64" {
		return "riscv64"
	}
	return "arm64"
}

func emulated(t *testing.T, interpreter string) {
	t.Helper()
	dir, binfmt := t.TempDir(), t.TempDir()
	if err := unix.Mount("binfmt_misc", binfmt, "binfmt_misc", 0, ""); err != nil {
		t.Skipf("skipped: mount binfmt_misc: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(binfmt, 0); err != nil {
			t.Error(err)
		}
	})
	register := func(name, flags string) {
		t.Helper()
		machine := trialPrograms()[foreignArch()].file()[18:20]
		line := fmt.Sprintf(`:%s:M:18:\x%02x\x%02x::%s:%s`, name, machine[0], machine[1], interpreter, flags)
		if err := os.WriteFile(filepath.Join(binfmt, "register"), []byte(line), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := Executes(t.Context(), dir, foreignArch()); !errors.Is(err, unix.ENOEXEC) {
		t.Errorf("without an emulator: %v, want ENOEXEC", err)
	}
	register("outside", "")
	if err := Executes(t.Context(), dir, foreignArch()); !errors.Is(err, unix.ENOENT) {
		t.Errorf("with an emulator outside of the image: %v, want ENOENT", err)
	}
	if err := os.WriteFile(filepath.Join(binfmt, "outside"), []byte("-1"), 0); err != nil {
		t.Fatal(err)
	}
	register("fixed", "F")
	if err := Executes(t.Context(), dir, foreignArch()); err != nil {
		t.Errorf("with an emulator: %v", err)
	}
}
