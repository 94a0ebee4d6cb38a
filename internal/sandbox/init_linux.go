// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// engineArg marks the process that builds; the one that was started only
// supervises it.
const engineArg = "--hako-engine"

// Init is called first in main. For commands that may run things in place it
// does not return: this process becomes the supervisor, which is small, starts the program
// again as its child (the engine), forwards signals, reaps what is orphaned,
// and puts the container back if the engine is killed. In the engine Init
// returns the arguments and a pipe by which the engine tells what to restore.
func Init(args []string) ([]string, *os.File) {
	if len(args) > 1 && args[1] == engineArg {
		// RUN is root beside us: without this it could read our memory.
		_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
		unix.CloseOnExec(3)
		return append([]string{args[0]}, args[2:]...), os.NewFile(3, "supervisor")
	}
	if os.Geteuid() != 0 || !wantsEngine(args) {
		return args, nil
	}
	s := &supervisor{}
	os.Exit(s.run(args)) //nolint:forbidigo // the supervisor is a program of its own
	return nil, nil
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
