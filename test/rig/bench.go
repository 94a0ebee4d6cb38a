// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"context"
	"os/exec"
)

// Tool returns a program of the tools module, built if need be.
func (r *Rig) Tool(ctx context.Context, name string) (string, error) { return r.tool(ctx, name) }

// Buildctl is buildctl talking to the rig's buildkitd.
func (r *Rig) Buildctl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, r.buildkit.ctl, append([]string{"--addr", r.buildkit.addr}, args...)...)
}

// BuildkitdPID is the process id of the rig's buildkitd, and BuildkitdRoot its
// directory.
func (r *Rig) BuildkitdPID() int { return r.buildkit.cmd.Process.Pid }

// BuildkitdRoot is where the rig's buildkitd keeps all it has.
func (r *Rig) BuildkitdRoot() string { return r.buildkit.root }

// Inspect returns what podman inspect says in the given format.
func (p *Podman) Inspect(ctx context.Context, id, format string) (string, error) {
	return p.do(ctx, "inspect", "--format", format, id)
}

// ExitCode waits for a container's end and returns its exit code.
func (p *Podman) ExitCode(ctx context.Context, id string) (string, error) {
	return p.do(ctx, "wait", id)
}
