// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

func signalName(n int) string {
	if s := unix.SignalName(unix.Signal(n)); s != "" {
		return s
	}
	return "unknown"
}

// ownMemory is the most memory that this process has had, in bytes.
func ownMemory() int64 {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) != nil {
		return 0
	}
	return ru.Maxrss << 10
}

// Explain tells what the image lacks.
func (e *StartError) Explain() string {
	switch {
	case e.Code == 127 && (e.Name == "/bin/sh" || e.Name == "/bin/bash"):
		return fmt.Sprintf(" why     RUN without brackets runs in %s, which this image does not have\n try     RUN [\"program\", \"argument\"], SHELL, or a base with a shell", e.Name)
	case e.Code == 127 && strings.Contains(e.Name, "/"):
		return " try     check the path; a file with a #! line needs its interpreter too"
	case e.Code == 127:
		return " try     install it in this stage, check PATH, or write RUN without brackets for a shell's own commands"
	}
	return " why     it is not a file that this user may execute on this platform\n try     chmod +x, or a base of this platform"
}

// Explain tells where to write instead.
func (e *VolumeError) Explain() string {
	return fmt.Sprintf(" why     %s is a volume of this container: what is written there is not part of the image\n"+
		" try     write somewhere else, or start hako without a volume at %s;\n"+
		"         RUN --mount=type=cache,target=%s … if the image need not have it", e.Volume, e.Volume, e.Volume)
}

// Moved tells whether this container's own files were moved away.
func (s *InPlace) Moved() bool { return s.parked }

// A UserError is returned for a USER that cannot be found in the image.
type UserError struct {
	User string
	Err  error
}

func (e *UserError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *UserError) Unwrap() error { return e.Err }

// Explain tells how to have such a user.
func (e *UserError) Explain() string {
	return fmt.Sprintf(" why     USER %s has to be in the image's /etc/passwd, its group in /etc/group, before the first RUN under it\n"+
		" try     RUN adduser … before USER, or a number: USER 1000:1000 needs no entry", e.User)
}
