// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"

	"hako/internal/build"
	"hako/internal/layer"
	"hako/internal/ops"
	"hako/internal/registry"
	"hako/internal/sandbox"
	"hako/internal/solver"
	"hako/internal/source"
	"hako/internal/tree"
)

// TerminationLog is where Kubernetes reads a container's last message from,
// unless the pod says otherwise.
const TerminationLog = "/dev/termination-log"

// openTermination opens the file for a failed build's message before anything
// moves; nil if there is none or the digest goes there. It is never made: a
// file of that name that nobody mounted is nobody's.
func (a *App) openTermination(opt *build.Options) *os.File {
	if !opt.Executor || a.TerminationLog == "" {
		return nil
	}
	for _, used := range []string{opt.DigestFile, opt.ImageNameDigestFile, opt.ImageNameTagDigestFile, opt.MetadataFile} {
		if used == a.TerminationLog {
			return nil
		}
	}
	f, err := os.OpenFile(a.TerminationLog, os.O_WRONLY, 0)
	if err != nil {
		return nil
	}
	return f
}

// A terminationMessage is what a machine needs to know of a failed build.
type terminationMessage struct {
	Step string `json:"step,omitempty"` // "Dockerfile:14"
	Kind string `json:"kind"`
	Exit int    `json:"exit"`
}

// writeTermination says in a line what failed. That it cannot be written
// changes nothing about the failure.
func writeTermination(f *os.File, err error, exit int) {
	b, jerr := json.Marshal(terminationMessage{Step: newFailure(err).where(), Kind: kindOf(err), Exit: exit})
	if jerr != nil {
		return
	}
	_ = f.Truncate(0)
	_, _ = f.WriteAt(append(b, '\n'), 0)
}

// kindOf names what went wrong. The words are an interface: they may be added
// to, never changed.
func kindOf(err error) string {
	if k := runKind(err); k != "" {
		return k
	}
	if e, ok := errors.AsType[*registry.Error](err); ok {
		return registryKind(e)
	}
	_, isStatus := errors.AsType[*source.HTTPStatusError](err)
	_, isDNS := errors.AsType[*net.DNSError](err)
	_, isNet := errors.AsType[*net.OpError](err)
	_, isMissing := errors.AsType[*ops.NotFoundError](err)
	_, hasChanged := errors.AsType[*tree.SizeError](err)
	_, isStep := errors.AsType[*solver.VertexError](err)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "disk-full"
	case hasChanged, errors.Is(err, layer.ErrChanged):
		return "context-changed"
	case errors.Is(err, layer.ErrDigestMismatch):
		return "corrupt"
	case isStatus, isDNS, isNet:
		return "network"
	case isMissing:
		return "file-not-found"
	case !isStep && newFailure(err).where() != "":
		return "dockerfile"
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.Is(err, fs.ErrPermission):
		return "permission"
	}
	return "error"
}

func runKind(err error) string {
	if e, ok := errors.AsType[*sandbox.ExitError](err); ok {
		switch {
		case e.OOM:
			return "oom"
		case e.Signal != 0:
			return "signal"
		}
		return "exit"
	}
	_, isUnsupported := errors.AsType[*sandbox.UnsupportedError](err)
	_, isNoSandbox := errors.AsType[*build.NoSandboxError](err)
	if isUnsupported || isNoSandbox {
		return "unsupported"
	}
	return sandboxKind(err)
}

func registryKind(e *registry.Error) string {
	switch {
	case errors.Is(e, registry.ErrDenied):
		return "denied"
	case errors.Is(e, registry.ErrNotFound):
		return "image-not-found"
	case errors.Is(e, registry.ErrRateLimited):
		return "rate-limited"
	case errors.Is(e, registry.ErrWrongContent):
		return "corrupt"
	case e.Op == "push":
		return "push"
	}
	return "pull"
}
