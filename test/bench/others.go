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
	"slices"
	"strings"

	"hako/test/rig"
)

// otherBuilders are those that are measured beside BuildKit where they are
// installed, and the arguments with which they make an image of as many layers.
func otherBuilders() map[string][]string {
	return map[string][]string{
		"buildah": {"build", "--layers", "--isolation=oci", "--network=host"},
		"podman":  {"build", "--network=host"},
	}
}

// othersFor returns the names of the builders to measure w with.
func (b *bench) othersFor(w workload) []string {
	if b.options.engine != "all" || !slices.Contains([]string{"W1", "W2", "W3", "W4", "W5"}, w.name) {
		return nil
	}
	var names []string
	for name := range otherBuilders() {
		if _, err := exec.LookPath(name); err == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// otherRuns runs each of the other builders once, as root on this machine with an
// empty storage.
func (b *bench) otherRuns(ctx context.Context, w workload, on base, into *row) error {
	for _, builder := range b.othersFor(w) {
		err := b.withVolume(ctx, func(volume string) (err error) {
			p, err := b.rig.PodmanIn(filepath.Join(volume, "other"))
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.Close()) }()
			res, err := b.once(ctx, w, on, builder, func(ctx context.Context, w workload, repo string) (result, error) {
				return b.other(ctx, p, builder, w, repo)
			})
			if err == nil {
				into.others[builder] = append(into.others[builder], res)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) other(ctx context.Context, p *rig.Podman, builder string, w workload, repo string) (result, error) {
	path, err := exec.LookPath(builder)
	if err != nil {
		return result{}, err
	}
	program, err := os.Stat(path)
	if err != nil {
		return result{}, err
	}
	ref := b.registry.host + "/" + repo + ":" + builder
	cmd := p.Builder(ctx, path, otherBuilders()[builder], ref, b.contextDir(w))
	b.settle()
	res, err := b.timed(cmd, processesRunning(program))
	if err != nil {
		return result{}, fmt.Errorf("%s, %s: %w", builder, w.name, err)
	}
	return res, nil
}

// othersTable is what the other builders took; empty if none was measured.
func othersTable(rows []row) string {
	var out strings.Builder
	for _, r := range rows {
		for _, builder := range []string{"buildah", "podman"} {
			runs := r.others[builder]
			if len(runs) == 0 {
				continue
			}
			hako := median(r.hako, seconds)
			fmt.Fprintf(&out, "| %s | %s | %.2f | %.2f | %.0f |\n", r.name, builder, median(runs, seconds), hako/median(runs, seconds), greatest(runs, engineMiB))
		}
	}
	if out.Len() == 0 {
		return ""
	}
	return "\nOther builders, as root on the host with an empty storage, build and push:\n\n| workload | builder | s | hako's time to it | memory MiB |\n|---|---|---|---|---|\n" + out.String()
}
