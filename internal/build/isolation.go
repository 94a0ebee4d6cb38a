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

// The sandboxes, as --isolation names them.
const (
	isolationAuto      = "auto"
	isolationInPlace   = "inplace"
	isolationNamespace = "namespace"
)

// unsupported tells what of a command the sandbox of this kind cannot honour. It is
// asked before the first command runs.
func unsupported(op *pb.ExecOp, platform *pb.Platform, kind string) error {
	switch {
	case isForeign(platform):
		return &sandbox.UnsupportedError{
			What:   "RUN for " + platform.OS + "/" + platform.Architecture,
			Why:    "this machine is linux/" + runtime.GOARCH + ", and has no emulator for " + platform.Architecture + " that an image's commands can use",
			Remedy: remedyForeign(platform),
		}
	case kind == isolationInPlace:
		return unsupportedInPlace(op)
	}
	return nil
}

func insecureError(why, remedy string) error {
	return &sandbox.UnsupportedError{What: "RUN --security=insecure", Why: why, Remedy: remedy}
}

// insecure is the entitlement that lets commands have all rights that there are.
const insecure = "security.insecure"

// unsupportedInPlace is the part that needs namespaces and mounts.
func unsupportedInPlace(op *pb.ExecOp) error {
	switch {
	case op.Security == pb.SecurityMode_INSECURE:
		return insecureError("a command cannot get more rights than this container has (capset: EPERM)", "remove it, or build in a privileged container")
	case op.Network == pb.NetMode_NONE:
		return &sandbox.UnsupportedError{
			What: "RUN --network=none", Why: "taking the network away from a command needs a network namespace (unshare: EPERM)",
			Remedy: "remove --network=none, or build where user namespaces are allowed",
		}
	case op.Meta.Hostname != "":
		return &sandbox.UnsupportedError{
			What: "--hostname", Why: "the host name is the container's (sethostname: EPERM)", Remedy: "remove it",
		}
	case len(op.Meta.Ulimit) > 0:
		return &sandbox.UnsupportedError{
			What: "--ulimit", Why: "resource limits are the container's (setrlimit: EPERM)", Remedy: "set them where the container is defined",
		}
	}
	for _, m := range op.Mounts {
		switch {
		case m.TmpfsOpt.GetSize() <= 0:
		case m.Dest == "/dev/shm":
			return &sandbox.UnsupportedError{
				What: "--shm-size", Why: "the size of /dev/shm is the container's (mount: EPERM)", Remedy: "set it where the container is defined",
			}
		default:
			return &sandbox.UnsupportedError{
				What: "RUN --mount=type=tmpfs,size=", Why: "limiting its size needs a mount (EPERM)", Remedy: "remove size=",
			}
		}
	}
	return nil
}

// describe says in one line where commands will run, and why there.
func describe(opt *Options, kind, why string) string {
	switch {
	case kind == isolationNamespace:
		return "namespace sandbox (" + why + ")"
	case opt.Isolation == isolationInPlace:
		return "inplace sandbox, as asked for"
	case why != "":
		return "inplace sandbox (no namespaces here: " + why + "; hako doctor says more)"
	}
	return "inplace sandbox (this container's own root; hako doctor says more)"
}

// limits says what the machine has, for the first line.
func limits() string {
	s := []string{fmt.Sprintf("%d CPUs", runtime.GOMAXPROCS(0))}
	if n := sandbox.MemoryLimit(); n > 0 {
		s = append(s, fmt.Sprintf("%d MiB memory", n>>20))
	}
	return strings.Join(s, ", ")
}

// commandMemory is what a command is taken to need where memory is limited.
const commandMemory = 512 << 20

// maxCommands is how many commands may run at a time: more than there are CPUs, since
// many wait for a network or a disk, and no more than the memory is good for.
func maxCommands() int {
	n := max(4, 2*runtime.GOMAXPROCS(0))
	if limit := sandbox.MemoryLimit(); limit > 0 {
		n = min(n, max(1, int(limit/commandMemory)))
	}
	return n
}
