// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// confineArg marks the process that becomes a command of the namespace sandbox.
// It is started in new namespaces, gets a confinement on descriptor 3, makes the
// root, drops rights and executes the command. Errors go to descriptor 4, which
// closes by itself when the command starts.
const confineArg = "--hako-confine"

const (
	confineSpec = 3
	confineErr  = 4
	firstFD     = 5 // the root; those of mounts follow
)

// A confinement is all that the confining process has to know. Descriptors are
// numbers in that process.
type confinement struct {
	// Root is a detached mount: what the command gets as /. Stage is an existing
	// directory outside to attach it at.
	Root     int
	Stage    string
	Hostname string
	Mounts   []confinedMount
	// Masked and ReadOnly paths are hidden and protected as BuildKit does.
	Masked, ReadOnly []string
	// Loopback asks for the loopback interface of a new network namespace.
	Loopback bool
	UID, GID uint32
	Groups   []uint32
	// OneID: a single id is mapped, and the kernel refuses setgroups.
	OneID  bool
	Caps   uint64
	Filter []unix.SockFilter
	Limits []rlimit
	Args   []string
	Env    []string
	Cwd    string
	// Exe is the program's path in the root. Without one nothing is executed:
	// a trial.
	Exe string
}

type rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// A confinedMount is a mount in the command's root.
type confinedMount struct {
	// FD is a detached mount to attach; 0 if Type and Options describe a new
	// file system, "devices" the usual nodes of /dev.
	FD      int
	Type    string
	Options []string
	Dest    string
	// File: the target is a file.
	File bool
	Data []byte // content of a secret or a system file, which is on tmpfs
	Mode uint32
	UID  uint32
	GID  uint32
	// Flags are of mount_setattr(2).
	Flags uint64
	// Optional mounts may be refused by the kernel.
	Optional bool
	// Bound is what is shown instead if the kernel refuses a file system of its
	// own: /proc and /sys where parts of the outer ones are hidden, as in most
	// containers (mount_too_revealing in fs/namespace.c).
	Bound string
}

// A confineError crosses the pipe.
type confineError struct {
	Step  string
	Msg   string
	Errno int
	// Exec: the program itself could not be executed.
	Exec bool
}

func (e *confineError) Error() string { return e.Step + ": " + e.Msg }

// Unwrap returns the kernel's error.
func (e *confineError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return unix.Errno(e.Errno)
}

// confine becomes the command. If it returns, that is the exit code.
func confine() int {
	// Capabilities and the filter are a thread's, and the thread that calls
	// execve gives the process its own.
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	keepFiles()
	var c confinement
	err := json.NewDecoder(os.NewFile(confineSpec, "confinement")).Decode(&c)
	if err != nil {
		err = fmt.Errorf("read the confinement: %w", err)
	} else {
		err = c.enter()
	}
	if err == nil && c.Exe == "" {
		return 0
	}
	ce := &confineError{Step: "confine", Msg: fmt.Sprint(err)}
	if x, ok := errors.AsType[*execError](err); ok {
		ce.Exec, err = true, x.errno
		ce.Step, ce.Msg = c.Exe, x.errno.Error()
	}
	if n, ok := errors.AsType[unix.Errno](err); ok {
		ce.Errno = int(n)
	}
	_ = json.NewEncoder(os.NewFile(confineErr, "errors")).Encode(ce)
	return 125
}

type execError struct{ errno unix.Errno }

func (e *execError) Error() string { return e.errno.Error() }

// enter makes the root and becomes the command.
func (c *confinement) enter() error {
	unix.Umask(0)
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	// Nothing that is mounted from here on gets out.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := c.attachRoot(); err != nil {
		return err
	}
	if c.Loopback {
		if err := raiseLoopback(); err != nil {
			return fmt.Errorf("bring up the loopback interface: %w", err)
		}
	}
	if err := c.protect(); err != nil {
		return err
	}
	if err := unix.Chdir(path.Join("/", c.Cwd)); err != nil {
		return fmt.Errorf("change to the working directory %s: %w", c.Cwd, err)
	}
	unix.Umask(0o022)
	for _, l := range c.Limits {
		if err := unix.Setrlimit(l.Resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
			return fmt.Errorf("set resource limit %d: %w", l.Resource, err)
		}
	}
	if err := c.dropRights(); err != nil {
		return err
	}
	if c.Exe == "" {
		return nil
	}
	err := syscall.Exec(c.Exe, c.Args, c.Env)
	n, _ := errors.AsType[unix.Errno](err)
	return &execError{n}
}

// attachRoot puts the root together outside of /, then goes into it for good.
func (c *confinement) attachRoot() error {
	if err := unix.MoveMount(c.Root, "", unix.AT_FDCWD, c.Stage, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach the root: %w", err)
	}
	unix.Close(c.Root)
	root, err := unix.Open(c.Stage, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the root: %w", err)
	}
	defer unix.Close(root)
	for i := range c.Mounts {
		m := &c.Mounts[i]
		if err := m.attach(root); err != nil && !m.Optional {
			return fmt.Errorf("mount /%s: %w", m.Dest, err)
		}
	}
	if err := unix.Fchdir(root); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	// The old root is put on top of the new one and taken off again, so no
	// directory for it is needed (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	return unix.Chdir("/")
}

// attach mounts m in the root. The target is looked up by the kernel within the
// root, in the state that earlier mounts have made, and made if it is missing.
func (m *confinedMount) attach(root int) error {
	if m.Type == "devices" {
		return attachDevices(root)
	}
	fd := m.FD
	file := m.File
	var err error
	switch {
	case fd != 0:
	case m.Data != nil:
		fd, err = m.dataMount()
		file = true
	default:
		if m.Type != "" {
			fd, err = newFilesystem(m.Type, m.Options)
		}
		if m.Bound != "" && (m.Type == "" || err != nil) {
			fd, err = unix.OpenTree(unix.AT_FDCWD, m.Bound, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		}
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if m.Flags != 0 {
		// What is shown instead of a file system of its own has mounts below it.
		err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: m.Flags})
		if err != nil && m.Bound == "" {
			return fmt.Errorf("set attributes: %w", err)
		}
	}
	to, err := ensureTarget(root, m.Dest, file, 0)
	if err != nil {
		return fmt.Errorf("make the target: %w", err)
	}
	defer unix.Close(to)
	return unix.MoveMount(fd, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// newFilesystem makes a mount that is attached nowhere yet.
func newFilesystem(fstype string, options []string) (int, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, o := range options {
		k, v, ok := cutOption(o)
		if ok {
			err = unix.FsconfigSetString(fs, k, v)
		} else {
			err = unix.FsconfigSetFlag(fs, k)
		}
		if err != nil {
			return -1, fmt.Errorf("option %s: %w", o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

func cutOption(o string) (key, value string, ok bool) {
	for i := range o {
		if o[i] == '=' {
			return o[:i], o[i+1:], true
		}
	}
	return o, "", false
}

// dataMount makes a file on a tmpfs of its own, attached over the stage's parent
// for as long as it takes to clone the file's mount out of it: a secret never
// touches a disk.
func (m *confinedMount) dataMount() (int, error) {
	fs, err := newFilesystem("tmpfs", []string{"mode=0700"})
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	f, err := unix.Openat(fs, "data", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return -1, err
	}
	file := os.NewFile(uintptr(f), m.Dest)
	_, err = file.Write(m.Data)
	if err == nil {
		err = unix.Fchown(f, int(m.UID), int(m.GID))
	}
	if err == nil {
		err = unix.Fchmod(f, m.Mode)
	}
	if cerr := file.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return -1, err
	}
	// A mount can only be cloned where it is attached; /proc is certain to be a
	// directory, and is left at once.
	const at = "/proc"
	if err := unix.MoveMount(fs, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, at+"/data", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if uerr := unix.Unmount(at, unix.MNT_DETACH); err == nil && uerr != nil {
		err = uerr
	}
	return fd, err
}

// attachDevices shows the usual devices, which are the outer ones.
func attachDevices(root int) error {
	for _, d := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		fd, err := unix.OpenTree(unix.AT_FDCWD, "/dev/"+d, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
		to, err := ensureTarget(root, "dev/"+d, true, 0)
		if err == nil {
			err = unix.MoveMount(fd, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
			unix.Close(to)
		}
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	dev, err := openInRoot(root, "dev", unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
		"core": "/proc/kcore", "ptmx": "pts/ptmx",
	} {
		if _, err := os.Lstat("/proc/kcore"); err != nil && name == "core" {
			continue // as runc
		}
		if err := unix.Symlinkat(to, dev, name); err != nil && err != unix.EEXIST {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func openInRoot(root int, p string, flags int) (int, error) {
	how := &unix.OpenHow{
		Flags:   uint64(unix.O_PATH | unix.O_CLOEXEC | flags),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(root, p, how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// ensureTarget opens the mount target at p, made with its parents if it does not
// exist, also where a dangling link leads.
func ensureTarget(root int, p string, file bool, depth int) (int, error) {
	fd, err := openInRoot(root, p, 0)
	if err != unix.ENOENT || depth > 40 {
		return fd, err
	}
	dir, name := path.Split(path.Clean("/" + p))
	if dir = path.Clean(dir)[1:]; dir == "" {
		dir = "."
	}
	up, err := ensureTarget(root, dir, false, depth+1)
	if err != nil {
		return -1, err
	}
	defer unix.Close(up)
	if file {
		var f int
		if f, err = unix.Openat(up, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o755); err == nil {
			unix.Close(f)
		}
	} else {
		err = unix.Mkdirat(up, name, 0o755)
	}
	if err == unix.EEXIST {
		buf := make([]byte, unix.PathMax)
		n, lerr := unix.Readlinkat(up, name, buf)
		if lerr != nil {
			return -1, err
		}
		to := string(buf[:n])
		if !path.IsAbs(to) {
			to = path.Join("/", dir, to)
		}
		return ensureTarget(root, to[1:], file, depth+1)
	}
	if err != nil {
		return -1, err
	}
	return openInRoot(root, p, 0)
}

// protect hides and write-protects the kernel's files that a container has no
// business with.
func (c *confinement) protect() error {
	for _, p := range c.ReadOnly {
		fd, err := unix.OpenTree(unix.AT_FDCWD, p, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err == unix.ENOENT {
			continue
		}
		if err == nil {
			err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		}
		if err == nil {
			err = unix.MoveMount(fd, "", unix.AT_FDCWD, p, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		if err != nil {
			return fmt.Errorf("protect %s: %w", p, err)
		}
		unix.Close(fd)
	}
	for _, p := range c.Masked {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			continue
		}
		if err := mask(p, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
			return fmt.Errorf("hide %s: %w", p, err)
		}
	}
	return nil
}

func mask(p string, dir bool) error {
	var fd int
	var err error
	if dir {
		if fd, err = newFilesystem("tmpfs", []string{"size=0"}); err == nil {
			err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		}
	} else {
		fd, err = unix.OpenTree(unix.AT_FDCWD, "/dev/null", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.MoveMount(fd, "", unix.AT_FDCWD, p, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// raiseLoopback brings up lo, as container runtimes do in a network of its own.
func raiseLoopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

// dropRights gives up all rights but those of the command. The filter comes
// while the right to install one without no_new_privs (which would break setuid
// programs) is still there; it allows what follows.
func (c *confinement) dropRights() error {
	for n := range 64 {
		if c.Caps&(1<<n) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err == unix.EINVAL {
			break // past the kernel's last one
		} else if err != nil {
			return fmt.Errorf("drop capability %d: %w", n, err)
		}
	}
	if !c.OneID {
		if err := rawSetgroups(c.Groups); err != nil {
			return fmt.Errorf("set groups: %w", err)
		}
	}
	if len(c.Filter) > 0 {
		prog := unix.SockFprog{Len: uint16(len(c.Filter)), Filter: &c.Filter[0]}
		if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
			return fmt.Errorf("install the system call filter: %w", e)
		}
	}
	gid, uid := uintptr(c.GID), uintptr(c.UID)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
		return fmt.Errorf("become group %s: %w", strconv.Itoa(int(gid)), e)
	}
	// For another user than root this clears what is permitted and effective.
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return fmt.Errorf("become user %s: %w", strconv.Itoa(int(uid)), e)
	}
	if uid == 0 {
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		lo, hi := uint32(c.Caps), uint32(c.Caps>>32)
		data := [2]unix.CapUserData{{Effective: lo, Permitted: lo}, {Effective: hi, Permitted: hi}}
		if err := unix.Capset(&hdr, &data[0]); err != nil {
			return fmt.Errorf("limit capabilities: %w", err)
		}
	}
	// A change of user has cleared it.
	return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
}

func rawSetgroups(groups []uint32) error {
	var p unsafe.Pointer
	if len(groups) > 0 {
		p = unsafe.Pointer(&groups[0])
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(p), 0); e != 0 {
		return e
	}
	return nil
}
