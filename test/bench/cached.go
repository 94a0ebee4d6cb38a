// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// cachedWorkloads are builds that were done before on another machine: all that
// is left of it is in a registry.
func cachedWorkloads(big, busybox, repo string, logMiB int) []workload {
	return []workload{
		{
			name: "W6", what: "a second build of 20 steps in 4 stages on the big base, from a cache in the registry",
			dockerfile: twentySteps(big), base: repo, files: 10, bytes: 1_000_000, memory: limit, target: 1, cached: true,
		},
		{
			name: "W6b", what: fmt.Sprintf("the same with %d MiB in a cached layer, the last COPY changed", logMiB),
			dockerfile: fmt.Sprintf("FROM %s\nRUN logtext %d > /text\nRUN echo 1 > /one\nCOPY f0/0 /last\n", busybox, logMiB),
			base:       "busybox", files: 1, bytes: 1000, memory: limit, target: 1, cached: true, changes: "f0/0",
		},
	}
}

// twentySteps is a Dockerfile of 20 steps whose layers have about a megabyte.
func twentySteps(base string) string {
	var s strings.Builder
	for i := range 3 {
		fmt.Fprintf(&s, "FROM %s AS s%d\nCOPY f0/%d /in\n", base, i, i)
		for k := range 4 {
			fmt.Fprintf(&s, "RUN head -c 1000000 /dev/urandom > /random%d\n", k)
		}
	}
	fmt.Fprintf(&s, "FROM %s\n", base)
	for i := range 3 {
		fmt.Fprintf(&s, "COPY --from=s%d /random0 /from%d\n", i, i)
	}
	s.WriteString("COPY f0/9 /last\nRUN cat /last > /copy\n")
	return s.String()
}

// cachedRuns measures the second of two builds, with hako and with BuildKit, each
// with a cache of its own. Nothing local is left of the first.
func (b *bench) cachedRuns(ctx context.Context, w workload, on base) ([]row, error) {
	r := row{name: w.name, what: w.what, memory: w.memory, target: w.target, againstBuildKit: true}
	for i := range b.options.n {
		if b.options.engine != "buildkit" {
			res, err := b.cachedHako(ctx, w, on)
			if err != nil {
				return nil, err
			}
			r.hako = append(r.hako, res)
		}
		if b.options.engine != "hako" {
			res, err := b.cachedBuildKit(ctx, w, on)
			if err != nil {
				return nil, err
			}
			r.buildkit = append(r.buildkit, res)
		}
		b.logf("%s run %d: %s", w.name, i+1, latest(r))
	}
	return []row{r}, nil
}

// cachedHako does the first build on the host, where it is faster, and the second
// in a pod: they have nothing in common but the registry.
func (b *bench) cachedHako(ctx context.Context, w workload, on base) (res result, err error) {
	repo := strings.ToLower(w.name) + "-hako-cache"
	args := b.hakoArgs
	defer func() { b.hakoArgs = args }()
	b.hakoArgs = append(slices.Clone(args), "--cache=true", "--cache-repo="+b.registry.host+"/"+repo)
	err = b.withVolume(ctx, func(volume string) error {
		_, err := b.once(ctx, w, on, "hako", func(ctx context.Context, w workload, repo string) (result, error) {
			return b.hakoOnHost(ctx, w, repo, filepath.Join(volume, "work"))
		})
		return err
	})
	if err != nil {
		return result{}, err
	}
	back, err := b.change(w)
	if err != nil {
		return result{}, err
	}
	r := row{}
	err = b.withVolume(ctx, func(volume string) error { return b.hakoRuns(ctx, volume, w, on, []*row{&r}) })
	if err = errors.Join(err, back()); err != nil {
		return result{}, err
	}
	return r.hako[0], b.registry.forget(repo)
}

func (b *bench) cachedBuildKit(ctx context.Context, w workload, on base) (res result, err error) {
	repo := strings.ToLower(w.name) + "-buildkit-cache"
	ref := "type=registry,ref=" + b.registry.host + "/" + repo + ":cache"
	build := func(more ...string) (res result, err error) {
		b.buildctlArgs = more
		defer func() { b.buildctlArgs = nil }()
		err = b.withVolume(ctx, func(volume string) (err error) {
			res, err = b.once(ctx, w, on, "buildkit", func(ctx context.Context, w workload, repo string) (result, error) {
				return b.buildkit(ctx, volume, w, repo)
			})
			return err
		})
		return res, err
	}
	if _, err := build("--export-cache=" + ref + ",mode=max"); err != nil {
		return result{}, err
	}
	back, err := b.change(w)
	if err != nil {
		return result{}, err
	}
	res, err = build("--import-cache=" + ref)
	return res, errors.Join(err, back(), b.registry.forget(repo))
}

// change changes the file that the workload's second build has otherwise, and
// returns how to undo it.
func (b *bench) change(w workload) (back func() error, err error) {
	if w.changes == "" {
		return func() error { return nil }, nil
	}
	path := filepath.Join(b.contextDir(w), w.changes)
	old, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return func() error { return os.WriteFile(path, old, 0o644) }, os.WriteFile(path, append(old, "changed"...), 0o644)
}
