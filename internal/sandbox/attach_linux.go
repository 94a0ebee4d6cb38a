// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

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

// attach mounts m in the root. The target is looked up by the kernel within the
// root, in the state that earlier mounts have made, and made if it is missing.
func (m *confinedMount) attach(root int) error {
	switch m.Type {
	case "devices":
		return attachDevices(root)
	case "all devices":
		return makeDevices(root)
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

// dataMount makes a file on a tmpfs of its own, attached for as long as it takes
// to clone the file's mount out of it: a secret never touches a disk.
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

// makeDevices makes the nodes of BuildKit's insecure commands
// (util/entitlements/security).
func makeDevices(root int) error {
	dev, err := openInRoot(root, "dev", unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	if err := unix.Mkdirat(dev, "net", 0o755); err != nil {
		return fmt.Errorf("net: %w", err)
	}
	for name, minor := range map[string]uint32{"kmsg": 11, "cuse": 203, "fuse": 229, "kvm": 232, "net/tun": 200, "loop-control": 237} {
		major := uint32(10) // misc
		if name == "kmsg" {
			major = 1 // mem
		}
		if err := unix.Mknodat(dev, name, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor))); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for n := range uint32(freeLoop() + 8) {
		name := fmt.Sprintf("loop%d", n)
		if err := unix.Mknodat(dev, name, unix.S_IFBLK|0o666, int(unix.Mkdev(7, n))); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// freeLoop returns the number of a loop device that nobody uses, 0 if the kernel does
// not tell.
func freeLoop() int {
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.LOOP_CTL_GET_FREE, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
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
