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

// A Daemon is a buildkitd beside the rig's own. The caller stops it.
type Daemon struct{ b *buildkitd }

// Buildkitd starts a buildkitd that keeps everything in dir and speaks plain
// HTTP with the given registries, host:port.
func (r *Rig) Buildkitd(ctx context.Context, dir string, registries ...string) (*Daemon, error) {
	b, err := r.startBuildkitd(ctx, dir, registries...)
	if err != nil {
		return nil, err
	}
	return &Daemon{b}, nil
}

// Buildctl is buildctl talking to the daemon.
func (d *Daemon) Buildctl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, d.b.ctl, append([]string{"--addr", d.b.addr}, args...)...)
}

// PID is the daemon's process id.
func (d *Daemon) PID() int { return d.b.cmd.Process.Pid }

// Stop ends the daemon and what it has mounted.
func (d *Daemon) Stop() error { return d.b.stop() }

// PodmanIn sets up a container storage of its own in dir. The caller closes it.
func (r *Rig) PodmanIn(dir string) (*Podman, error) { return newPodman(r, dir) }

// Close removes the storage's containers and unmounts them.
func (p *Podman) Close() error { return p.close() }

// Inspect returns what podman inspect says in the given format.
func (p *Podman) Inspect(ctx context.Context, id, format string) (string, error) {
	return p.do(ctx, "inspect", "--format", format, id)
}

// Go starts a container and does not wait for its end.
func (p *Podman) Go(ctx context.Context, id string) error {
	_, err := p.do(ctx, "start", id)
	return err
}

// ExitCode waits for a container's end and returns its exit code.
func (p *Podman) ExitCode(ctx context.Context, id string) (string, error) {
	return p.do(ctx, "wait", id)
}
