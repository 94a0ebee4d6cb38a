// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"hako/test/rig"
)

// buildkit builds w with a buildkitd that is warm, as one that runs for months
// is, and knows nothing of what w needs.
func (b *bench) buildkit(ctx context.Context, volume string, w workload, repo string) (_ result, err error) {
	daemon, err := b.rig.Buildkitd(ctx, volume, b.registry.host)
	if err != nil {
		return result{}, err
	}
	defer func() { err = errors.Join(err, daemon.Stop()) }()
	warm := b.contextDir(workload{name: "warm"})
	if out, err := b.buildctl(ctx, daemon, warm, "warm").CombinedOutput(); err != nil {
		return result{}, fmt.Errorf("warm buildkitd: %w: %s", err, tail(out))
	}
	if !w.cached { // with everything that was pushed the cache would go
		if err := b.registry.forget("warm"); err != nil {
			return result{}, err
		}
	}
	pid := daemon.PID()
	b.settle()
	if err := resetHighWater(pid); err != nil {
		return result{}, fmt.Errorf("reset high-water mark: %w", err)
	}
	res, err := b.timed(b.buildctl(ctx, daemon, b.contextDir(w), repo), processOf(pid))
	if err != nil {
		return result{}, fmt.Errorf("buildkit, %s: %w", w.name, err)
	}
	return res, nil
}

// timed runs a build on this machine and measures it and the processes of c.
func (b *bench) timed(cmd *exec.Cmd, c *crowd) (result, error) {
	mark := b.registry.mark()
	watch := watchRun(c, b.volumeUsed)
	began := time.Now()
	log, err := cmd.CombinedOutput()
	res := result{wall: time.Since(began)}
	watch.end(&res)
	if b.options.verbose {
		fmt.Fprintf(os.Stderr, "%s\n", log)
	}
	if err != nil {
		return result{}, fmt.Errorf("%w:\n%s", err, tail(log))
	}
	res.traffic, err = b.registry.since(mark)
	return res, err
}

func (b *bench) buildctl(ctx context.Context, daemon *rig.Daemon, dir, repo string) *exec.Cmd {
	args := []string{
		"build", "--progress=plain", "--frontend=dockerfile.v0", "--local=context=" + dir, "--local=dockerfile=" + dir,
		"--output=type=image,push=true,name=" + b.registry.host + "/" + repo + ":buildkit",
	}
	if repo != "warm" {
		args = append(args, b.buildctlArgs...)
	}
	return daemon.Buildctl(ctx, args...)
}
