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
	"path/filepath"
)

// volumeSize is more than any workload needs. The file has holes.
const volumeSize = 40 << 30

// withVolume calls f with the path of a new ext4 filesystem, which is thrown
// away afterwards. Each run has its own: on ext4 a file cannot take the inode
// of one that went in the last minutes, and looking for another in a
// filesystem where the run before has deleted 100,000 files takes ten times as
// long as the rest of creating it.
func (b *bench) withVolume(ctx context.Context, f func(dir string) error) (err error) {
	dir := filepath.Join(b.rig.Dir, "v")
	end, err := b.mountVolume(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	return f(dir)
}

// mountVolume mounts a new filesystem at dir; end throws it away.
func (b *bench) mountVolume(ctx context.Context, dir string) (end func() error, err error) {
	image := dir + ".img"
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, volumeSize), os.MkdirAll(dir, 0o755)); err != nil {
		return nil, fmt.Errorf("make volume: %w", err)
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", image},
		{"mount", "-o", "loop,noinit_itable", image, dir},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("make volume: %s: %w: %s", args[0], err, out), os.Remove(image))
		}
	}
	return func() error {
		out, err := exec.CommandContext(context.WithoutCancel(ctx), "umount", dir).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("unmount volume: %w: %s", err, out)
		}
		return errors.Join(err, os.Remove(image))
	}, nil
}
