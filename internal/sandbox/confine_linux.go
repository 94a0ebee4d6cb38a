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
	Hostname string // "" leaves it as it is
	Mounts   []confinedMount
	// Masked and ReadOnly paths are hidden and protected as BuildKit does.
	Masked, ReadOnly []string
	// Loopback asks for the loopback interface of a new network namespace.
	Loopback bool
	UID, GID uint32
	Groups   []uint32
	// OneID: a single id is mapped, and the kernel refuses setgroups.
	OneID bool
	Caps  uint64
	// Insecure: the command keeps Caps whoever it runs as, and may use devices.
	Insecure bool
	Filter   []unix.SockFilter
	Limits   []rlimit
	Args     []string
	Env      []string
	Cwd      string
	// Exe is the program's path in the root. Without one nothing is executed:
	// a trial.
	Exe string
}

type rlimit struct {
	Resource   int
	Soft, Hard uint64
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

const setHostname = "set the host name"

type execError struct{ errno unix.Errno }

func (e *execError) Error() string { return e.errno.Error() }

// enter makes the root and becomes the command.
func (c *confinement) enter() error {
	unix.Umask(0)
	if c.Hostname != "" {
		if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
			return fmt.Errorf("%s: %w", setHostname, err)
		}
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
	if c.Insecure {
		if err := unix.MountSetattr(root, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NODEV}); err != nil {
			return fmt.Errorf("allow devices: %w", err)
		}
	}
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
	if c.Insecure { // else another user than root loses them
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("keep capabilities: %w", err)
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
	if uid == 0 || c.Insecure {
		if err := c.setCapabilities(); err != nil {
			return err
		}
	}
	// A change of user has cleared it.
	return unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
}

// setCapabilities limits capabilities to those of the command. Insecure ones are
// also ambient, so that a program without any of its own gets them.
func (c *confinement) setCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	lo, hi := uint32(c.Caps), uint32(c.Caps>>32)
	data := [2]unix.CapUserData{{Effective: lo, Permitted: lo}, {Effective: hi, Permitted: hi}}
	if c.Insecure {
		data[0].Inheritable, data[1].Inheritable = lo, hi
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("limit capabilities: %w", err)
	}
	for n := range 64 {
		if !c.Insecure || c.Caps&(1<<n) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(n), 0, 0); err != nil {
			return fmt.Errorf("raise capability %d: %w", n, err)
		}
	}
	return nil
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
