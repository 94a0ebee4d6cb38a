// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux && runtimes

package kubernetes

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stateVar has the directory with the cluster's state; it is set within the
// namespaces.
const stateVar = "HAKO_TEST_KUBERNETES_STATE"

func TestMain(m *testing.M) {
	state := os.Getenv(stateVar)
	if state == "" {
		os.Exit(outside())
	}
	if err := isolate(state); err != nil {
		fmt.Fprintln(os.Stderr, "test/kubernetes:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// outside runs this program again as the first process of its own namespaces,
// and removes what outlives those: files and control groups.
func outside() int {
	code, err := runIsolated()
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/kubernetes:", err)
		return 1
	}
	return code
}

func runIsolated() (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("a kubelet needs root")
	}
	for program, from := range map[string]string{"runc": "runc", "ip": "iproute2", "/bin/busybox": "busybox-static", "/usr/lib/cni/bridge": "containernetworking-plugins"} {
		if _, err := exec.LookPath(program); err != nil {
			return 1, fmt.Errorf("needs the Debian package %s: %w", from, err)
		}
	}
	state, err := os.MkdirTemp("", "hako-kube-")
	if err != nil {
		return 1, err
	}
	groups, err := controlGroups(filepath.Base(state))
	if err != nil {
		return 1, errors.Join(err, os.RemoveAll(state))
	}
	defer func() {
		for _, g := range groups {
			err = errors.Join(err, removeGroup(g))
		}
		if os.Getenv("KEEP") == "" {
			err = errors.Join(err, os.RemoveAll(state))
		}
	}()
	runtime.LockOSThread() // Pdeathsig is sent when the starting thread ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stateVar+"="+state, "TMPDIR="+state)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// controlGroups makes a group of the given name in every hierarchy, for the
// kubelet to stay in.
func controlGroups(name string) ([]string, error) {
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	var groups []string
	for sc := bufio.NewScanner(mounts); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if f[2] != "cgroup" && f[2] != "cgroup2" {
			continue
		}
		g := filepath.Join(f[1], name)
		if err := os.Mkdir(g, 0o755); err != nil {
			return groups, err
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// removeGroup removes a control group and those below it. The processes in it
// have been killed, and may take a moment to go.
func removeGroup(g string) error {
	var dirs []string
	err := filepath.WalkDir(g, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		err := unix.Rmdir(dirs[i])
		for end := time.Now().Add(10 * time.Second); err == unix.EBUSY && time.Now().Before(end); err = unix.Rmdir(dirs[i]) {
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			return fmt.Errorf("remove control group %s: %w", dirs[i], err)
		}
	}
	return nil
}

// The addresses of the pods' network.
const (
	podNetwork = "10.77.0.0/24"
	nodeIP     = "10.77.0.1"
)

// isolate gives the namespaces that this process is the first one of what the
// cluster needs, and hides from it what is the machine's.
func isolate(state string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range []string{"var", "var.work", "proc", "sysctl"} {
		if err := os.Mkdir(filepath.Join(state, dir), 0o755); err != nil {
			return err
		}
	}
	in := func(name string) string { return filepath.Join(state, name) }
	mounts := []struct{ kind, target, options string }{
		{"proc", "/proc", ""},
		// One more with nothing mounted over it: the kernel asks for that
		// before a user namespace gets a /proc.
		{"proc", in("proc"), ""},
		{"tmpfs", "/run", "mode=755"},
		{"overlay", "/var", "lowerdir=/var,upperdir=" + in("var") + ",workdir=" + in("var.work")},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.kind, m.target, m.kind, 0, m.options); err != nil {
			return fmt.Errorf("mount %s at %s: %w", m.kind, m.target, err)
		}
	}
	if err := hideSysctls(in("sysctl")); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "hako0", "type", "bridge"},
		{"address", "add", nodeIP + "/24", "dev", "hako0"},
		{"link", "set", "hako0", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// hideSysctls shows the kubelet the settings that it wants to see, which it
// would change for the whole machine otherwise.
func hideSysctls(dir string) error {
	for name, value := range map[string]string{
		"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
		"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
	} {
		file := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, "/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("hide %s: %w", name, err)
		}
	}
	return nil
}
