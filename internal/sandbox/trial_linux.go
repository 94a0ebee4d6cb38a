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
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// A Trial is what trying the namespace sandbox has shown.
type Trial struct {
	// UserNamespace: this process is not in the machine's own user namespace.
	UserNamespace bool
	// OneID: it has one user id in it.
	OneID bool
	// BoundProc: the kernel gives no /proc of its own here, so commands see this
	// process's, and there is no PID namespace.
	BoundProc bool
	// Plain says why overlayfs cannot be had, so that roots are plain directories;
	// empty if it can.
	Plain string
	// OuterHostname: commands see this container's host name, since a filter refuses
	// sethostname to whoever was started without CAP_SYS_ADMIN.
	OuterHostname bool
	// Enter says why root has to enter a user namespace first, see
	// [Supervisor.Enter]; empty if that is not so.
	Enter string
	// Cgroup namespaces exist.
	Cgroup bool
}

// TryNamespace tries all that the namespace sandbox does, but for a command, with
// its files below workDir. The error says what this place does not allow.
func TryNamespace(ctx context.Context, workDir string) (*Trial, error) {
	if os.Geteuid() != 0 {
		return tryAsUser(ctx, workDir)
	}
	t, err := tryHere(ctx, workDir)
	if err == nil || !errors.Is(err, unix.EPERM) {
		return t, err
	}
	// Root of a container may lack the right to make namespaces (CAP_SYS_ADMIN), and
	// get it in a user namespace.
	t, uerr := tryAsUser(ctx, workDir)
	if uerr != nil {
		return nil, fmt.Errorf("%w, and %w", err, uerr)
	}
	t.Enter = err.Error()
	return t, nil
}

// IsAdmin tells whether this process has CAP_SYS_ADMIN, which making mounts and all
// namespaces but one takes.
func IsAdmin() bool {
	caps, err := ownCapabilities()
	return err == nil && caps&(1<<unix.CAP_SYS_ADMIN) != 0
}

// MakesDevices tells whether commands that stay where this process is can make
// device nodes, which no user namespace but the machine's own allows.
func MakesDevices() bool {
	caps, err := ownCapabilities()
	return err == nil && caps&(1<<unix.CAP_MKNOD) != 0 && !inUserNamespace()
}

// tryHere tries it without a new user namespace.
func tryHere(ctx context.Context, workDir string) (*Trial, error) {
	t := &Trial{}
	t.readIDs()
	if _, err := os.Stat("/proc/self/ns/cgroup"); err == nil {
		_, err = os.Stat("/sys/fs/cgroup/cgroup.controllers")
		t.Cgroup = err == nil
	}
	base := filepath.Join(workDir, "work", "ns")
	if err := os.MkdirAll(base, 0o711); err != nil {
		return nil, fmt.Errorf("make the work directory: %w", err)
	}
	c, err := claimDir(base)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.release() }()
	for {
		err := t.try(ctx, c.dir)
		if err == nil {
			return t, nil
		}
		noOverlay, isOverlay := errors.AsType[*overlayError](err)
		switch {
		case isOverlay && t.Plain == "":
			t.Plain = noOverlay.Error()
		case !t.BoundProc && errors.Is(err, unix.EPERM) && strings.Contains(err.Error(), "/proc:"):
			t.BoundProc = true
		case !t.OuterHostname && errors.Is(err, unix.EPERM) && strings.Contains(err.Error(), setHostname+":"):
			t.OuterHostname = true
		default:
			return nil, err
		}
	}
}

func (t *Trial) readIDs() {
	lines := readIDMap("uid_map")
	t.UserNamespace = inUserNamespace()
	t.OneID = len(lines) == 1 && strings.HasSuffix(lines[0], " 1")
}

// try makes a root as a command would get it and lets a process enter it.
func (t *Trial) try(ctx context.Context, dir string) error {
	name, err := os.MkdirTemp(dir, "t")
	if err != nil {
		return err
	}
	stage := filepath.Join(name, "stage")
	for _, d := range []string{stage, filepath.Join(name, "base")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	m, err := t.tryRoot(ctx, name, stage)
	if err != nil {
		return err
	}
	defer func() { _ = m.close() }()
	s := &Namespace{trial: t}
	c := &confinement{
		Root: firstFD, Stage: stage, Hostname: s.hostname(&Process{}), Mounts: s.systemMounts(false), OneID: t.OneID, Caps: defaultCapMask,
		Masked: maskedPaths(), ReadOnly: readOnlyPaths(), Cwd: "/",
	}
	if t.BoundProc {
		c.Masked, c.ReadOnly = nil, nil
	}
	return t.enter(c, m.child)
}

// An overlayError says why overlayfs cannot be used here.
type overlayError struct{ err error }

func (e *overlayError) Error() string { return "overlayfs: " + e.err.Error() }

// Unwrap returns the cause.
func (e *overlayError) Unwrap() error { return e.err }

// tryRoot makes the directory base below dir a root.
func (t *Trial) tryRoot(ctx context.Context, dir, stage string) (*detached, error) {
	base := filepath.Join(dir, "base")
	if t.Plain != "" {
		return detachPlain(base)
	}
	// A name that is removed shows that whiteouts can be made, a directory in place
	// of another that attributes can be kept.
	err := errors.Join(os.WriteFile(filepath.Join(base, "gone"), nil, 0o644), os.Mkdir(filepath.Join(base, "anew"), 0o755))
	if err != nil {
		return nil, err
	}
	r := newRoots(ctx, dir, stage, t.UserNamespace)
	defer func() { _ = r.close() }()
	m, err := r.mount(&stack{dirs: []string{"base"}}, "up")
	if err != nil {
		return nil, &overlayError{err}
	}
	gone, anew := filepath.Join(m.path(), "gone"), filepath.Join(m.path(), "anew")
	if err := os.Remove(gone); err != nil {
		return nil, errors.Join(&overlayError{fmt.Errorf("remove a file: %w", err)}, m.close())
	}
	if err = os.Remove(anew); err == nil {
		err = os.Mkdir(anew, 0o755)
	}
	if err != nil {
		return nil, errors.Join(&overlayError{fmt.Errorf("make a directory anew: %w", err)}, m.close())
	}
	return m, nil
}

// enter runs a process that goes into the root and ends.
func (t *Trial) enter(c *confinement, root *os.File) error {
	runtime.LockOSThread() // see watch.run
	defer runtime.UnlockOSThread()
	specR, specW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer specW.Close()
	defer specR.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer errR.Close()
	cmd := t.command(false)
	cmd.ExtraFiles = []*os.File{specR, errW, root}
	err = cmd.Start()
	errW.Close()
	if err != nil {
		if pe, ok := errors.AsType[*os.PathError](err); ok {
			err = pe.Err
		}
		return fmt.Errorf("clone with new namespaces: %w", err)
	}
	if err := json.NewEncoder(specW).Encode(c); err != nil && !errors.Is(err, unix.EPIPE) {
		_ = cmd.Process.Kill()
	}
	specW.Close()
	msg, _ := io.ReadAll(errR)
	werr := cmd.Wait()
	var ce confineError
	if json.Unmarshal(msg, &ce) == nil && ce.Step != "" {
		return &ce
	}
	if werr != nil {
		return fmt.Errorf("try a root in new namespaces: %w", werr)
	}
	return nil
}

// String describes the place in a few words.
func (t *Trial) String() string {
	var s []string
	switch {
	case t.OneID:
		s = append(s, "user namespace with one id")
	case t.Enter != "":
		s = append(s, "user namespace, for want of rights outside one ("+t.Enter+")")
	case t.UserNamespace:
		s = append(s, "user namespace")
	}
	if t.Plain == "" {
		s = append(s, "overlayfs")
	} else {
		s = append(s, "plain directories ("+t.Plain+")")
	}
	if t.BoundProc {
		s = append(s, "this container's /proc")
	}
	if t.OuterHostname {
		s = append(s, "its host name")
	}
	return strings.Join(s, ", ")
}
