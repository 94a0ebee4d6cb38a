// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// defaultHostname is what commands see with BuildKit.
const defaultHostname = "buildkitsandbox"

// defaultCaps are the capabilities of BuildKit's commands, which are containerd's
// defaults (pkg/oci/spec.go).
func defaultCaps() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// defaultCapMask is the same as a bit mask.
const defaultCapMask = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FSETID | 1<<unix.CAP_FOWNER |
	1<<unix.CAP_MKNOD | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETFCAP |
	1<<unix.CAP_SETPCAP | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_KILL | 1<<unix.CAP_AUDIT_WRITE

const (
	noSuid = unix.MOUNT_ATTR_NOSUID
	noDev  = unix.MOUNT_ATTR_NODEV
	noExec = unix.MOUNT_ATTR_NOEXEC
	rdOnly = unix.MOUNT_ATTR_RDONLY
)

// systemMounts are what every container has (containerd's pkg/oci/mounts.go, less
// the /run that BuildKit takes away).
func (s *Namespace) systemMounts(insecure bool) []confinedMount {
	pts := []string{"newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}
	if s.trial.OneID {
		pts = pts[:3] // group 5 is not mapped
	}
	proc := confinedMount{Type: "proc", Dest: "proc", Flags: noSuid | noExec | noDev}
	if s.trial.BoundProc {
		proc.Type, proc.Bound = "", "/proc"
	}
	kernel := uint64(noSuid | noExec | noDev | rdOnly)
	if insecure {
		kernel &^= rdOnly
	}
	mounts := []confinedMount{
		proc,
		{Type: "tmpfs", Dest: "dev", Options: []string{"mode=755", "size=65536k"}, Flags: noSuid},
		{Type: "devpts", Dest: "dev/pts", Options: pts, Flags: noSuid | noExec},
		{Type: "tmpfs", Dest: "dev/shm", Options: []string{"mode=1777", "size=65536k"}, Flags: noSuid | noExec | noDev},
		{Type: "mqueue", Dest: "dev/mqueue", Flags: noSuid | noExec | noDev},
		{Type: "sysfs", Dest: "sys", Flags: kernel, Bound: "/sys"},
		{Type: "cgroup2", Dest: "sys/fs/cgroup", Flags: kernel, Optional: true},
		{Type: "devices", Dest: "dev"},
	}
	if insecure {
		mounts = append(mounts, confinedMount{Type: "all devices", Dest: "dev"})
	}
	return mounts
}

// networkFiles are /etc/resolv.conf, this machine's, and /etc/hosts as BuildKit's
// (executor/oci/hosts.go).
func (s *Namespace) networkFiles(p *Process) []confinedMount {
	name := s.hostname(p)
	if name == "" {
		name, _ = os.Hostname()
	}
	hosts := fmt.Appendf(nil, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", name)
	for _, h := range p.ExtraHosts {
		hosts = fmt.Appendf(hosts, "%s\t%s\n", h.IP, h.Host)
	}
	const flags = noSuid | noExec | noDev | rdOnly
	return []confinedMount{
		{Dest: "etc/resolv.conf", Data: append([]byte{}, s.opt.ResolvConf...), Mode: 0o644, Flags: flags},
		{Dest: "etc/hosts", Data: hosts, Mode: 0o644, Flags: flags},
	}
}

// hostname returns the name that a command's host gets; "" for none of its own.
func (s *Namespace) hostname(p *Process) string {
	if s.trial.OuterHostname {
		return ""
	}
	if p.Hostname != "" {
		return p.Hostname
	}
	return defaultHostname
}

func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/scsi",
	}
}

func readOnlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// execute runs the command in the mounted root.
func (r *nsRun) execute(ctx context.Context) (peak int64, err error) {
	run := &runner{root: r.live, at: r.mount.path(), memory: r.s.memory}
	stubs, err := noteStubs(run, r.p)
	if err != nil {
		return 0, err
	}
	pre, err := run.prepare(r.p)
	if err != nil {
		return 0, err
	}
	if r.s.trial.OneID && (pre.uid != 0 || pre.gid != 0) {
		return 0, oneIDError(r.p.User)
	}
	pl := &nsPlacer{s: r.s, cwd: r.p.Cwd, root: r.live}
	defer func() { err = errors.Join(err, pl.close()) }()
	if err := pl.place(ctx, r.p); err != nil {
		return 0, err
	}
	c, err := r.s.confinement(r.p, pre, pl)
	if err != nil {
		return 0, err
	}
	peak, err = r.s.start(ctx, c, r.p, r.mount.child, pl.files)
	if e, ok := errors.AsType[*ExitError](err); ok {
		e.OneID = r.s.trial.OneID
	}
	if serr := stubs.remove(); err == nil {
		err = serr
	}
	return peak, err
}

func oneIDError(user string) error {
	return &UnsupportedError{
		What:   "RUN as USER " + user,
		Why:    "only one user id is mapped here, so commands can only run as root",
		Remedy: moreIDs,
	}
}

// confinement describes everything to the process that becomes the command.
func (s *Namespace) confinement(p *Process, pre *prepared, pl *nsPlacer) (*confinement, error) {
	c := &confinement{
		Root: firstFD, Stage: s.stage, Hostname: s.hostname(p),
		Loopback: p.NoNetwork, UID: pre.uid, GID: pre.gid, Groups: pre.groups, OneID: s.trial.OneID,
		Caps: defaultCapMask, Filter: s.filter, Args: p.Args, Env: pre.env, Cwd: pre.cwd, Exe: pre.exe,
	}
	all := append(s.systemMounts(p.Insecure), s.networkFiles(p)...)
	// A mount of the command's own replaces the system's at the same place.
	all = slices.DeleteFunc(all, func(m confinedMount) bool {
		return slices.ContainsFunc(pl.mounts, func(o confinedMount) bool { return o.Dest == m.Dest && !strings.HasSuffix(m.Type, "devices") })
	})
	c.Mounts = append(all, pl.mounts...)
	hidden := func(p string) bool { return s.trial.BoundProc && strings.HasPrefix(p, "/proc/") }
	c.Masked = slices.DeleteFunc(maskedPaths(), hidden)
	c.ReadOnly = slices.DeleteFunc(readOnlyPaths(), hidden)
	if p.Insecure {
		c.Insecure, c.Filter, c.Masked, c.ReadOnly = true, nil, nil, nil
		var err error
		if c.Caps, err = ownCapabilities(); err != nil {
			return nil, err
		}
	}
	for _, l := range p.Limits {
		n, ok := limitNumbers()[l.Name]
		if !ok {
			return nil, fmt.Errorf("resource limit %q: unknown", l.Name)
		}
		c.Limits = append(c.Limits, rlimit{Resource: n, Soft: uint64(l.Soft), Hard: uint64(l.Hard)})
	}
	return c, nil
}

// ownCapabilities returns those that this process has.
func ownCapabilities() (uint64, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, fmt.Errorf("capget: %w", err)
	}
	return uint64(data[1].Effective)<<32 | uint64(data[0].Effective), nil
}

func limitNumbers() map[string]int {
	return map[string]int{
		"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
		"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
		"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
		"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
		"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
	}
}

// start makes the process that becomes the command and waits for it.
func (s *Namespace) start(ctx context.Context, c *confinement, p *Process, root *os.File, files []*os.File) (int64, error) {
	specR, specW, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return 0, errors.Join(err, specR.Close(), specW.Close())
	}
	defer errR.Close()
	defer specW.Close()
	cmd := s.trial.command(p.NoNetwork)
	cmd.Stdin = p.Stdin
	cmd.ExtraFiles = append([]*os.File{specR, errW, root}, files...)
	started := func() error {
		specR.Close()
		errW.Close()
		return handOver(c, p, specW, errR)
	}
	mntns := ""
	reap := func() {}
	if s.trial.BoundProc {
		reap = func() { killNamespace(mntns) }
	}
	w := &watch{cmd: cmd, p: p, memory: s.memory, reap: reap, started: func() error {
		mntns, _ = os.Readlink("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/mnt")
		return started()
	}}
	peak, err := w.run(ctx)
	if cmd.Process == nil {
		err = errors.Join(err, specR.Close(), errW.Close())
	}
	return peak, err
}

// handOver sends the confinement and waits until the command runs.
func handOver(c *confinement, p *Process, specW io.WriteCloser, errR io.Reader) error {
	err := json.NewEncoder(specW).Encode(c)
	if cerr := specW.Close(); err == nil {
		err = cerr
	}
	var ce confineError
	derr := json.NewDecoder(errR).Decode(&ce)
	switch {
	case derr == nil && ce.Exec:
		return startError(p.Args[0], unix.Errno(ce.Errno))
	case derr == nil:
		return &ce
	case !errors.Is(derr, io.EOF):
		return fmt.Errorf("start the command: %w", derr)
	case err != nil && !errors.Is(err, unix.EPIPE):
		return fmt.Errorf("start the command: %w", err)
	}
	return nil
}

// killNamespace ends what is left in a mount namespace, where there is no PID
// namespace that the kernel ends by itself.
func killNamespace(mntns string) {
	own, _ := os.Readlink("/proc/self/ns/mnt")
	if mntns == "" || mntns == own {
		return
	}
	for range 100 {
		procs, _ := filepath.Glob("/proc/[0-9]*/ns/mnt")
		left := false
		for _, f := range procs {
			if l, err := os.Readlink(f); err != nil || l != mntns {
				continue
			}
			if pid, err := strconv.Atoi(strings.Split(f, "/")[2]); err == nil {
				left = true
				_ = unix.Kill(pid, unix.SIGKILL)
				waitBriefly(pid)
			}
		}
		if !left {
			return
		}
	}
}

// stubs are the mount targets, and their parents, that the root does not have.
// The container gets them, and they go again if they stay empty (BuildKit's
// executor/stubs.go).
type stubs struct {
	at    string
	paths []string // deepest first
}

func noteStubs(r *runner, p *Process) (*stubs, error) {
	s := &stubs{at: r.at}
	targets := []string{"etc/resolv.conf", "etc/hosts"}
	for i := range p.Mounts {
		targets = append(targets, absolute(p.Mounts[i].Dest, p.Cwd))
	}
	for _, t := range targets {
		q, err := tree.Resolve(r.root, t, true)
		if err != nil {
			return nil, err
		}
		for ; q != ""; q = tree.Parent(q) {
			if _, err := r.root.Lstat(q); err == nil {
				break
			}
			s.paths = append(s.paths, q)
		}
	}
	slices.SortFunc(s.paths, func(a, b string) int { return strings.Compare(b, a) })
	s.paths = slices.Compact(s.paths)
	return s, nil
}

// absolute returns a mount's target; a relative one is below the working directory.
func absolute(dest, cwd string) string {
	if strings.HasPrefix(dest, "/") {
		return tree.Clean(dest)
	}
	return tree.Join(tree.Clean(cwd), tree.Clean(dest))
}

// remove removes the stubs. The command is over, but it may have replaced parents
// with links: paths are looked up in the root.
func (s *stubs) remove() error {
	root, err := unix.Open(s.at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("remove mount points: %w", err)
	}
	defer unix.Close(root)
	for _, p := range s.paths {
		dir := tree.Parent(p)
		if dir == "" {
			dir = "."
		}
		if err := removeStub(root, dir, tree.Base(p)); err != nil {
			return fmt.Errorf("remove the mount point /%s: %w", p, err)
		}
	}
	return nil
}

func removeStub(root int, dir, name string) error {
	how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	up, err := unix.Openat2(root, dir, how)
	if err != nil {
		return nil // the command has removed or replaced the directory
	}
	defer unix.Close(up)
	var st, parent unix.Stat_t
	if unix.Fstatat(up, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || unix.Fstat(up, &parent) != nil {
		return nil
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		err = unix.Unlinkat(up, name, unix.AT_REMOVEDIR)
	case st.Size == 0:
		err = unix.Unlinkat(up, name, 0)
	default:
		return nil
	}
	if err == unix.ENOTEMPTY {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(up, ".", []unix.Timespec{parent.Atim, parent.Mtim}, 0)
}

// command is the process that becomes a command.
func (t *Trial) command(ownNetwork bool) *exec.Cmd {
	flags := uintptr(unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	if !t.BoundProc {
		flags |= unix.CLONE_NEWPID
	}
	if t.Cgroup {
		flags |= unix.CLONE_NEWCGROUP
	}
	if ownNetwork {
		flags |= unix.CLONE_NEWNET
	}
	return &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{"hako", confineArg}, Env: []string{"GOMAXPROCS=1"},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL, Cloneflags: flags},
	}
}
