// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// terminationLog is where Kubernetes reads a container's last message from.
const terminationLog = "/dev/termination-log"

type supervisor struct {
	cmd    *exec.Cmd
	ids    *idMaps // of the engine's user namespace; nil if it has none of ours
	pipe   *os.File
	memory *memory
	ooms   int64 // processes that the memory limit had killed before
	// tells is set for kaniko's personality, which tells Kubernetes how it ended,
	// unless the digest is to go there.
	tells bool
	// enters: the engine has asked for a user namespace.
	enters bool
}

func (s *supervisor) run(args []string) int {
	// PR_SET_PDEATHSIG counts the thread that forked as the parent.
	runtime.LockOSThread()
	s.memory = openMemory()
	s.ooms = s.memory.kills()
	s.tells = slices.Contains([]string{filepath.Base(args[0]), args[min(1, len(args)-1)]}, "executor") &&
		!slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, terminationLog) })
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	done, err := s.engine(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "error building image: start: %v\n", err)
		return 1
	}
	// A terminal sends its signals to both of us.
	_, terr := unix.IoctlGetTermios(0, unix.TCGETS)
	for {
		select {
		case sig := <-sigs:
			n, ok := sig.(unix.Signal)
			if ok && (terr != nil || n != unix.SIGINT && n != unix.SIGQUIT) {
				_ = s.cmd.Process.Signal(n)
			}
		case ws := <-done:
			told := s.end()
			if ws.Signaled() || s.enters || !strings.HasPrefix(told, tellEnter+" ") {
				return s.finish(ws, told)
			}
			s.enters = true
			if done, err = s.engine(args); err != nil {
				fmt.Fprintf(os.Stderr, "error building image: start in a user namespace: %v\n", err)
				return 1
			}
		}
	}
}

// engine starts the engine and returns a channel that tells how it ended.
func (s *supervisor) engine(args []string) (<-chan unix.WaitStatus, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	s.pipe = r
	if err := s.start(args, w); err != nil {
		return nil, err
	}
	done := make(chan unix.WaitStatus, 1)
	pid := s.cmd.Process.Pid
	go func() { done <- reapUntil(pid) }()
	return done, nil
}

// end ends what the engine left running and returns what it told.
func (s *supervisor) end() string {
	killDescendants()
	told, _ := io.ReadAll(s.pipe)
	s.pipe.Close()
	return string(told)
}

// start starts the engine. An ordinary user's gets a user namespace, if the
// kernel gives one: without it only what needs no rights can be done. Root's gets
// one if it has asked for it.
func (s *supervisor) start(args []string, w *os.File) error {
	command := func(arg string) *exec.Cmd {
		return &exec.Cmd{
			Path: "/proc/self/exe", Args: append([]string{args[0], arg}, args[1:]...),
			Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, ExtraFiles: []*os.File{w},
			SysProcAttr: &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM},
		}
	}
	if s.enters {
		s.ids, s.cmd = sameIDs(), command(enteredArg)
		return s.ids.enter(context.Background(), s.cmd)
	}
	if os.Geteuid() != 0 {
		for _, ids := range []*idMaps{findIDs(), {}} {
			s.ids, s.cmd = ids, command(mappedArg)
			if ids.enter(context.Background(), s.cmd) == nil {
				return nil
			}
		}
	}
	s.ids, s.cmd = nil, command(engineArg)
	return s.cmd.Start()
}

// clean does what the engine was to do in the end, and says what became of this
// container.
func (s *supervisor) clean(told string) string {
	state := "this container's files were not touched"
	done := make(map[string]bool)
	for l := range strings.Lines(told) {
		what, dir, _ := strings.Cut(strings.TrimSuffix(l, "\n"), " ")
		if done[l] {
			continue
		}
		done[l] = true
		switch {
		case what == tellRestore:
			state = "this container's files are back as they were"
			if err := Restore(dir); err != nil {
				state = fmt.Sprintf("this container's files are NOT all back (%v): hako restore tries again", err)
			}
		case what == tellSweep && s.ids == nil:
			sweep(dir)
		case what == tellSweep:
			cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"hako", mappedArg, sweepArg, dir}}
			if s.ids.enter(context.Background(), cmd) == nil {
				_ = cmd.Wait()
			}
		}
	}
	return state
}

// reapUntil reaps children, adopted ones too, until pid is among them.
func reapUntil(pid int) unix.WaitStatus {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || got == pid {
			return ws
		}
	}
}

// finish restores the container if the engine was killed.
func (s *supervisor) finish(ws unix.WaitStatus, told string) int {
	if !ws.Signaled() {
		return ws.ExitStatus()
	}
	state := s.clean(told)
	code, kind := 128+int(ws.Signal()), "killed"
	if limit := s.memory.limit(); s.memory.kills() > s.ooms && limit > 0 {
		kind = "oom"
		fmt.Fprintf(os.Stderr, " why     out of memory: the container's limit is %d MiB\n try     resources.limits.memory: %s\n", limit>>20, quantity(2*limit))
	}
	fmt.Fprintf(os.Stderr, " state   nothing was tagged; %s\nerror building image: hako was killed by signal %d (%s)\n", state, ws.Signal(), signalName(int(ws.Signal())))
	if s.tells {
		// What the engine itself would have written.
		if f, err := os.OpenFile(terminationLog, os.O_WRONLY|os.O_TRUNC, 0); err == nil {
			fmt.Fprintf(f, "{\"kind\":%q,\"exit\":%d}\n", kind, code)
			f.Close()
		}
	}
	return code
}

// killDescendants kills every child, and so, as orphans come to us, every
// descendant. It is bounded: what cannot be killed for a second is left.
func killDescendants() {
	deadline := time.Now().Add(2 * time.Second)
	for time.Now().Before(deadline) {
		pids := children(os.Getpid())
		if len(pids) == 0 {
			return
		}
		for _, p := range pids {
			_ = unix.Kill(p, unix.SIGKILL)
		}
		for _, p := range pids {
			waitBriefly(p)
		}
	}
}

// waitBriefly reaps pid, waiting a little for it to die.
func waitBriefly(pid int) {
	for range 50 {
		got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if got == pid || err != nil && err != unix.EINTR {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// children returns the processes whose parent is pid, from /proc.
func children(pid int) []int {
	var out []int
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	for _, n := range names {
		if n[0] < '0' || n[0] > '9' {
			continue
		}
		b, err := os.ReadFile("/proc/" + n + "/stat")
		if err != nil {
			continue
		}
		// The name in parentheses may hold anything; fields follow the last ")".
		s := string(b)
		var state string
		var ppid, id int
		if _, err := fmt.Sscan(s[strings.LastIndexByte(s, ')')+1:], &state, &ppid); err != nil || ppid != pid {
			continue
		}
		if _, err := fmt.Sscan(n, &id); err == nil {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// Unrelated returns a process of this container that is neither an ancestor of
// this one nor a child of it, nor a thread of the kernel; 0 if there is none.
// Its files would be moved away under it.
func Unrelated() int {
	related := map[int]bool{0: true}
	for p := os.Getpid(); p > 0 && !related[p]; p = parentOf(p) {
		related[p] = true
	}
	names, err := readNames(unix.AT_FDCWD, "/proc")
	if err != nil {
		return 0
	}
	for _, n := range names {
		pid, err := strconv.Atoi(n)
		if err != nil || related[pid] {
			continue
		}
		for q := pid; ; q = parentOf(q) {
			if q == os.Getpid() {
				break // started by us
			}
			if q <= 1 || q == 2 {
				if exe, err := os.Readlink("/proc/" + n + "/exe"); err == nil && filepath.Base(exe) != "pause" {
					return pid
				}
				break
			}
		}
	}
	return 0
}

// parentOf returns the parent of a process, 0 if there is none.
func parentOf(pid int) int {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	var state string
	var ppid int
	s := string(b)
	_, _ = fmt.Sscan(s[strings.LastIndexByte(s, ')')+1:], &state, &ppid)
	return ppid
}
