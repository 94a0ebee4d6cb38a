// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// buildkit builds w with a buildkitd that knows nothing yet.
func (b *bench) buildkit(ctx context.Context, w workload, repo string) (result, error) {
	if err := b.prune(ctx); err != nil {
		return result{}, err
	}
	pid := b.rig.BuildkitdPID()
	b.settle()
	if err := resetHighWater(pid); err != nil {
		return result{}, fmt.Errorf("reset high-water mark: %w", err)
	}
	mark := b.registry.mark()
	watch := watchRun(func() []int { return []int{pid} }, b.disk)
	dir := b.contextDir(w)
	cmd := b.rig.Buildctl(ctx, "build", "--progress=plain", "--frontend=dockerfile.v0",
		"--local=context="+dir, "--local=dockerfile="+dir,
		"--output=type=image,push=true,name="+b.registry.host+"/"+repo+":buildkit")
	began := time.Now()
	log, err := cmd.CombinedOutput()
	res := result{wall: time.Since(began)}
	watch.end(&res)
	if b.options.verbose {
		fmt.Fprintf(os.Stderr, "%s\n", log)
	}
	if err != nil {
		return result{}, fmt.Errorf("buildkit, %s: %w:\n%s", w.name, err, tail(log))
	}
	res.traffic, err = b.registry.since(mark)
	return res, err
}

// prune makes buildkitd forget all and waits until it has: contents go after
// the command has ended.
func (b *bench) prune(ctx context.Context) error {
	// The history of builds keeps their results from being pruned.
	for _, args := range [][]string{{"prune-histories"}, {"prune", "--all"}} {
		if out, err := b.rig.Buildctl(ctx, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, tail(out))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		blobs, err := filepath.Glob(filepath.Join(b.rig.BuildkitdRoot(), "*", "content", "blobs", "sha256", "*"))
		if err != nil {
			return err
		}
		snapshots, err := filepath.Glob(filepath.Join(b.rig.BuildkitdRoot(), "*", "snapshots", "snapshots", "*"))
		if err != nil {
			return err
		}
		if len(blobs)+len(snapshots) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("prune: %d blobs and %d snapshots are left after a minute", len(blobs), len(snapshots))
		case <-time.After(100 * time.Millisecond):
		}
	}
}
