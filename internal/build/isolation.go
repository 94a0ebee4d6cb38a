// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/moby/buildkit/solver/pb"

	"hako/internal/sandbox"
)

// A NoSandboxError is returned for the first RUN where none can be run.
type NoSandboxError struct {
	Why    string
	Remedy []string
}

func (e *NoSandboxError) Error() string { return "no way to run commands here: " + e.Why }

// Explain tells which settings would help.
func (e *NoSandboxError) Explain() string {
	s := " FROM, COPY, ADD, ENV … work here; RUN does not.\n any one of these is enough:"
	for _, r := range e.Remedy {
		s += "\n   " + r
	}
	return s
}

// unsupported tells what of a command the in-place sandbox cannot honour. It is
// asked before the first command runs.
func unsupported(op *pb.ExecOp, platform *pb.Platform, possible error) error {
	if possible != nil {
		return possible
	}
	meta := op.Meta
	switch {
	case platform != nil && (platform.Architecture != runtime.GOARCH || platform.OS != "linux"):
		return &sandbox.UnsupportedError{
			What: "RUN for " + platform.OS + "/" + platform.Architecture, Why: "this machine is linux/" + runtime.GOARCH,
			Remedy: "build on a machine of that platform, or let only stages FROM --platform=$BUILDPLATFORM run commands",
		}
	case op.Network == pb.NetMode_NONE:
		return &sandbox.UnsupportedError{
			What: "RUN --network=none", Why: "taking the network away from a command needs a network namespace (unshare: EPERM)",
			Remedy: "remove --network=none, or build where user namespaces are allowed",
		}
	case op.Security != pb.SecurityMode_SANDBOX:
		return &sandbox.UnsupportedError{What: "RUN --security=insecure", Why: "a command cannot get more rights than this container has", Remedy: "remove it"}
	case meta.Hostname != "":
		return &sandbox.UnsupportedError{
			What: "--hostname", Why: "the host name is the container's (sethostname: EPERM)", Remedy: "remove it",
		}
	}
	for _, m := range op.Mounts {
		if m.TmpfsOpt.GetSize() > 0 {
			return &sandbox.UnsupportedError{
				What: "RUN --mount=type=tmpfs,size=", Why: "limiting its size needs a mount (EPERM)", Remedy: "remove size=",
			}
		}
	}
	return nil
}

// describe says in one line where commands will run.
func describe(executor bool) string {
	if executor {
		return "inplace sandbox (this container's own root; hako doctor says more)"
	}
	return "inplace sandbox, as asked for"
}

// limits says what the machine has, for the first line.
func limits() string {
	s := []string{fmt.Sprintf("%d CPUs", runtime.GOMAXPROCS(0))}
	if n := sandbox.MemoryLimit(); n > 0 {
		s = append(s, fmt.Sprintf("%d MiB memory", n>>20))
	}
	return strings.Join(s, ", ")
}
