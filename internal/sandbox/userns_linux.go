// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	osuser "os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// An ordinary user becomes root in a user namespace of their own: with
// subordinate ids, as newuidmap(1) grants them, or with their own id alone. The
// whole engine runs in it, so that unpacking, RUN and reading changes all see
// the owners that the image has.
const (
	// gateArg waits for the ids to be mapped, then executes the program anew: the
	// kernel gives a process the rights of its user namespace when it executes
	// something as root, which it only is when that id is mapped.
	gateArg = "--hako-gate"
	// mappedArg is engineArg in such a namespace.
	mappedArg = "--hako-mapped"
	// enteredArg is the same for root, who has asked for it.
	enteredArg = "--hako-entered"
	// tryArg tries the namespace sandbox and prints a tryAnswer.
	tryArg = "--hako-try"
	// sweepArg removes what killed builds have left.
	sweepArg = "--hako-sweep"
)

// gateFD is where the gate is told that ids are mapped.
const gateFD = 4

// An idMaps says how to map ids. Without ranges it is the user's own id alone.
type idMaps struct {
	uids, gids []user.SubID
	// same are root's: all ids that there are, as they are.
	sameUIDs, sameGIDs []syscall.SysProcIDMap
}

// sameIDs returns the maps of root, who needs nobody to grant them.
func sameIDs() *idMaps {
	same := func(file string) (out []syscall.SysProcIDMap) {
		for _, l := range readIDMap(file) {
			var m syscall.SysProcIDMap
			var outside int
			if n, _ := fmt.Sscan(l, &m.ContainerID, &outside, &m.Size); n == 3 {
				m.HostID = m.ContainerID
				out = append(out, m)
			}
		}
		return out
	}
	return &idMaps{sameUIDs: same("uid_map"), sameGIDs: same("gid_map")}
}

// findIDs returns the maps of this user.
func findIDs() *idMaps {
	if os.Geteuid() == 0 {
		return sameIDs()
	}
	m := &idMaps{}
	uid := os.Getuid()
	name := strconv.Itoa(uid)
	if u, err := osuser.LookupId(name); err == nil {
		name = u.Username
	}
	mine := func(s user.SubID) bool { return s.Name == name || s.Name == strconv.Itoa(uid) }
	uids, uerr := user.ParseSubIDFileFilter("/etc/subuid", mine)
	gids, gerr := user.ParseSubIDFileFilter("/etc/subgid", mine)
	_, nuerr := exec.LookPath("newuidmap")
	_, ngerr := exec.LookPath("newgidmap")
	if errors.Join(uerr, gerr, nuerr, ngerr) == nil && len(uids) > 0 && len(gids) > 0 {
		m.uids, m.gids = uids, gids
	}
	return m
}

// enter starts cmd, whose program is this one and whose first argument is
// mappedArg, as root of a new user namespace.
func (m *idMaps) enter(ctx context.Context, cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	if len(m.sameUIDs) > 0 {
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = m.sameUIDs, m.sameGIDs
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
		return cmd.Start()
	}
	if len(m.uids) == 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		return cmd.Start()
	}
	gateR, gateW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer gateR.Close()
	defer gateW.Close()
	for len(cmd.ExtraFiles) < gateFD-3 {
		cmd.ExtraFiles = append(cmd.ExtraFiles, nil)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, gateR)
	cmd.Args = append([]string{cmd.Args[0], gateArg}, cmd.Args[1:]...)
	if err := cmd.Start(); err != nil {
		return err
	}
	err = errors.Join(
		mapIDs(ctx, "newuidmap", cmd.Process.Pid, os.Getuid(), m.uids),
		mapIDs(ctx, "newgidmap", cmd.Process.Pid, os.Getgid(), m.gids))
	if err == nil {
		_, err = gateW.Write([]byte{1})
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	return nil
}

// mapIDs has a privileged program write the map of a process: own becomes 0, what
// is granted follows from 1 on.
func mapIDs(ctx context.Context, program string, pid, own int, ranges []user.SubID) error {
	args := []string{strconv.Itoa(pid), "0", strconv.Itoa(own), "1"}
	next := int64(1)
	for _, r := range ranges {
		args = append(args, strconv.FormatInt(next, 10), strconv.FormatInt(r.SubID, 10), strconv.FormatInt(r.Count, 10))
		next += r.Count
	}
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("map subordinate ids: %s: %w: %s", program, err, bytes.TrimSpace(out))
	}
	return nil
}

// gate waits and becomes the program with args. It returns only if that
// fails.
func gate(args, env []string) {
	f := os.NewFile(gateFD, "gate")
	if n, err := f.Read(make([]byte, 1)); n != 1 || err != nil {
		return // whoever holds the gate says why
	}
	unix.CloseOnExec(gateFD)
	err := syscall.Exec("/proc/self/exe", args, env)
	fmt.Fprintf(os.Stderr, "error building image: start: %v\n", err)
}

// A tryAnswer crosses from the process that tried.
type tryAnswer struct {
	Trial *Trial
	Err   string
	Errno int
}

// tryAsUser lets a child that enters a user namespace try the sandbox.
func tryAsUser(ctx context.Context, workDir string) (*Trial, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{"hako", mappedArg, tryArg, workDir}
	cmd.Stdout, cmd.Stderr = &out, io.Discard
	if err := findIDs().enter(ctx, cmd); err != nil {
		if pe, ok := errors.AsType[*os.PathError](err); ok {
			err = fmt.Errorf("unshare(CLONE_NEWUSER): %w", pe.Err)
		}
		return nil, err
	}
	werr := cmd.Wait()
	var a tryAnswer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		return nil, fmt.Errorf("try a user namespace: %w", errors.Join(werr, err))
	}
	if a.Err != "" {
		return nil, &confineError{Step: "in a user namespace", Msg: a.Err, Errno: a.Errno}
	}
	return a.Trial, nil
}

// answerTry is the child's side.
func answerTry(workDir string) {
	t, err := tryHere(context.Background(), workDir)
	a := tryAnswer{Trial: t}
	if err != nil {
		a.Err = err.Error()
		if n, ok := errors.AsType[unix.Errno](err); ok {
			a.Errno = int(n)
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(a)
}

// initialNamespace is the user namespace that a machine boots with: its number is a
// constant of the kernel (PROC_USER_INIT_INO).
const initialNamespace = "user:[4026531837]"

// inUserNamespace tells whether this process is in another one. One that maps
// all ids to themselves does not show by its map.
func inUserNamespace() bool {
	if ns, err := os.Readlink("/proc/self/ns/user"); err == nil {
		return ns != initialNamespace
	}
	m := readIDMap("uid_map")
	return len(m) > 0 && m[0] != "0 0 4294967295"
}

// readIDMap returns the lines of a map of this process's ids.
func readIDMap(name string) []string {
	b, err := os.ReadFile("/proc/self/" + name)
	if err != nil {
		return nil
	}
	var out []string
	for l := range strings.Lines(string(b)) {
		out = append(out, strings.Join(strings.Fields(l), " "))
	}
	return out
}
