// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// engineArg marks the process that builds; the one that was started only
// supervises it.
const engineArg = "--hako-engine"

// Init is called first in main. For commands that may run things it does not
// return: this process becomes the supervisor, which is small, starts the program
// again as its child (the engine), for an ordinary user in a user namespace, forwards
// signals, reaps what is orphaned, and cleans up behind an engine that was killed.
// In the engine Init returns the arguments and the supervisor. The processes that
// become a command, or prepare something, do not return either.
func Init(args []string) ([]string, *Supervisor) {
	if len(args) < 2 {
		return args, nil
	}
	switch args[1] {
	case confineArg:
		os.Exit(confine()) //nolint:forbidigo // see above
	case gateArg:
		// The environment goes on as it is.
		gate(append([]string{args[0]}, args[2:]...), os.Environ()) //nolint:forbidigo // see above
		os.Exit(125)                                               //nolint:forbidigo // see above
	case mappedArg, enteredArg, engineArg:
		rest := append([]string{args[0]}, args[2:]...)
		if len(rest) == 3 && helper(rest[1], rest[2]) {
			os.Exit(0) //nolint:forbidigo // it was all there is to do
		}
		// RUN is root beside us: without this it could read our memory.
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
		// Becoming root of a user namespace has cleared it.
		_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0)
		keepFiles()
		return rest, &Supervisor{pipe: os.NewFile(3, "supervisor"), Mapped: args[1] == mappedArg, Entered: args[1] == enteredArg}
	}
	if !wantsEngine(args) {
		return args, nil
	}
	s := &supervisor{}
	os.Exit(s.run(args)) //nolint:forbidigo // the supervisor is a program of its own
	return nil, nil
}

// Enter ends this process; the supervisor starts it again as root of a user
// namespace, where it has rights that this container's root lacks. Nothing must
// have been done or opened yet. It returns only if that is not possible.
func (s *Supervisor) Enter() error {
	if s == nil || s.Entered || s.Mapped {
		return errors.New("enter a user namespace: nobody to start this program again")
	}
	if err := s.tell(tellEnter, "a user namespace"); err != nil {
		return err
	}
	os.Exit(0) //nolint:forbidigo // see above
	return nil
}

// keepFiles sees to it that no program started from here gets open files but those
// that it is given: who started hako may have left some open.
func keepFiles() {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	names, _ := readNames(unix.AT_FDCWD, "/proc/self/fd") // before Linux 5.11
	for _, n := range names {
		if fd, err := strconv.Atoi(n); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// helper does one of the small jobs that need a user namespace, if name is one.
func helper(name, dir string) bool {
	switch name {
	case tryArg:
		answerTry(dir)
	case sweepArg:
		sweep(dir)
	default:
		return false
	}
	return true
}

// wantsEngine tells whether the command may run something in place.
func wantsEngine(args []string) bool {
	if len(args) == 0 {
		return false
	}
	if filepath.Base(args[0]) == "executor" {
		return true
	}
	return len(args) > 1 && (args[1] == "build" || args[1] == "executor")
}
