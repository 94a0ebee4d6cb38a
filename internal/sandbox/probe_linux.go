// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Examine finds out what this place allows. It leaves nothing behind, and moves
// nothing: what would be renamed is learned from a rename that cannot succeed.
func Examine(ctx context.Context, opt ProbeOptions) *Probe {
	p := &Probe{OS: runtime.GOOS, Arch: runtime.GOARCH, UID: os.Getuid(), GID: os.Getgid(), CPUs: runtime.GOMAXPROCS(0)}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		p.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	mounts := readMounts()
	p.Runtime = guessRuntime(opt.Env, mounts)
	p.rights()
	p.memory()
	scratch, err := os.MkdirTemp(opt.WorkDir, "probe")
	if err != nil {
		// Without a work directory the rest can still be tried elsewhere.
		if scratch, err = os.MkdirTemp("", "hako-probe"); err != nil {
			scratch = ""
		}
	}
	if scratch != "" {
		defer os.RemoveAll(scratch)
	}
	p.Abilities = abilities(ctx, scratch)
	p.examineRoot(opt.WorkDir, mounts)
	p.examineParking(ctx, opt.WorkDir, mounts)
	return p
}

// A mountLine is a line of mountinfo.
type mountLine struct {
	path, fstype, options string
}

// readMounts returns the mounts of this process, in the kernel's order.
func readMounts() []mountLine {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	return parseMounts(b)
}

func parseMounts(b []byte) []mountLine {
	var out []mountLine
	for l := range strings.Lines(string(b)) {
		left, right, ok := strings.Cut(strings.TrimSpace(l), " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 6 || len(g) < 3 {
			continue
		}
		out = append(out, mountLine{path: unescapeOctal(f[4]), fstype: g[0], options: f[5] + "," + g[2]})
	}
	return out
}

// unescapeOctal undoes the kernel's \040 for a space and the like.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// guessRuntime names what runs this container, from what runtimes leave.
func guessRuntime(env func(string) string, mounts []mountLine) string {
	var engine, root string
	for _, m := range mounts {
		if m.path == "/" && m.fstype == "overlay" {
			root = m.options
		}
	}
	exists := func(p string) bool {
		_, err := os.Lstat(p)
		return err == nil
	}
	switch {
	case strings.Contains(root, "io.containerd"):
		engine = "containerd"
	case exists("/run/.containerenv") || env("container") == "podman":
		engine = "podman"
	case exists("/.dockerenv") || strings.Contains(root, "/docker/"):
		engine = "docker"
	case strings.Contains(root, "containers/storage"):
		engine = "CRI-O or podman"
	}
	if env("KUBERNETES_SERVICE_HOST") != "" || exists("/var/run/secrets/kubernetes.io/serviceaccount") {
		if engine == "" {
			return "Kubernetes pod"
		}
		return "Kubernetes pod, " + engine
	}
	if engine == "" && root != "" {
		return "a container of an unknown runtime"
	}
	return engine
}

// rights reads what the kernel says of this process.
func (p *Probe) rights() {
	b, _ := os.ReadFile("/proc/self/status")
	status := make(map[string]string)
	for l := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(l, ":"); ok {
			status[k] = strings.TrimSpace(v)
		}
	}
	p.CapMask = strings.TrimLeft(status["CapEff"], "0")
	mask, err := strconv.ParseUint(status["CapEff"], 16, 64)
	if err == nil && mask == 0 {
		p.CapMask = "0"
	}
	p.Capabilities = capNames(mask)
	p.NoNewPrivs = status["NoNewPrivs"] == "1"
	p.Seccomp = map[string]string{"0": "off", "1": "strict", "2": "filter"}[status["Seccomp"]]
	// The machine's own namespace maps all ids to themselves.
	if m, err := os.ReadFile("/proc/self/uid_map"); err == nil {
		p.UserNamespace = strings.Join(strings.Fields(string(m)), " ") != "0 0 4294967295"
	}
	p.AppArmor, p.SELinux = "off", "off"
	label, err := os.ReadFile("/proc/self/attr/current")
	text := strings.TrimSpace(string(bytes.TrimRight(label, "\x00\n")))
	if err == nil && text != "" {
		if strings.Count(text, ":") >= 3 {
			p.SELinux = text
		} else if text != "unconfined" {
			p.AppArmor = strings.TrimSuffix(text, " (enforce)")
		}
	}
}

// capNames names the capabilities of a mask, those of capabilities(7).
func capNames(mask uint64) []string {
	names := []string{
		"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
		"linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
		"sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
		"sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
		"mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
		"checkpoint_restore",
	}
	out := []string{}
	for i := range 64 {
		if mask&(1<<i) == 0 {
			continue
		}
		if i < len(names) {
			out = append(out, names[i])
		} else {
			out = append(out, fmt.Sprintf("cap_%d", i))
		}
	}
	return out
}

func (p *Probe) memory() {
	p.MemoryLimit = MemoryLimit()
	b, err := os.ReadFile("/sys/fs/cgroup/memory.oom.group")
	if err == nil {
		group := strings.TrimSpace(string(b)) == "1"
		p.OOMGroup = &group
	}
}

// abilities tries, in the directory dir, what a build may need.
func abilities(ctx context.Context, dir string) []Ability {
	file := filepath.Join(dir, "file")
	noDir := dir == ""
	if !noDir {
		_ = os.WriteFile(file, nil, 0o600)
	}
	tries := []struct {
		name     string
		needsDir bool
		do       func() error
	}{
		{"chroot", false, func() error { return inChild(ctx, &syscall.SysProcAttr{Chroot: "/"}) }},
		{"mknod", true, func() error {
			return unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
		}},
		{"chown", true, func() error { return unix.Chown(file, 1, 1) }},
		{"setxattr", true, func() error { return unix.Setxattr(file, "user.hako", []byte("1"), 0) }},
		{"setcap", true, func() error { return unix.Setxattr(file, "security.capability", fileCapability(), 0) }},
		{"mount", true, func() error { return tryMount(filepath.Join(dir, "mount")) }},
		{"unshare(mount)", false, func() error { return inChild(ctx, &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}) }},
		{"unshare(user)", false, func() error { return inChild(ctx, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}) }},
	}
	var out []Ability
	for _, t := range tries {
		a := Ability{Name: t.name}
		err := errors.New("no directory can be written")
		if !noDir || !t.needsDir {
			err = t.do()
		}
		if err == nil {
			a.OK = true
		} else {
			a.Why = errnoName(err)
		}
		out = append(out, a)
	}
	return out
}

// inChild tells whether a child process can be made with attr. The program it
// is to execute does not exist: to get as far as finding that out, everything
// asked for must have been granted.
func inChild(ctx context.Context, attr *syscall.SysProcAttr) error {
	cmd := exec.CommandContext(ctx, "/proc/self/no-such-program")
	cmd.SysProcAttr = attr
	err := cmd.Run()
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err == nil {
		return errors.New("a program that does not exist ran")
	}
	return err
}

func tryMount(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4k"); err != nil {
		return err
	}
	return unix.Unmount(dir, unix.MNT_DETACH)
}

// fileCapability is a struct vfs_cap_data of revision 2 that grants nothing.
func fileCapability() []byte {
	b := make([]byte, 20)
	b[3] = 2
	return b
}

// errnoName returns the name of the errno in err, such as EPERM.
func errnoName(err error) string {
	if e, ok := errors.AsType[unix.Errno](err); ok {
		if n := unix.ErrnoName(e); n != "" {
			return n
		}
	}
	return err.Error()
}
