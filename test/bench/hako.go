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
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"hako/test/rig"
)

const executor = "/kaniko/executor"

// hako builds w in a new container of p. Where state is not empty, it is a
// directory for what hako keeps from run to run.
func (b *bench) hako(ctx context.Context, p *rig.Podman, w workload, repo, state string) (_ result, err error) {
	image, err := p.Scratch(ctx, executor)
	if err != nil {
		return result{}, err
	}
	logPath := filepath.Join(b.rig.Dir, "hako-"+repo+".log")
	spec := rig.PodSpec{
		Image: image, Memory: w.memory,
		Command: append([]string{
			executor, "--context=dir:///workspace", "--dockerfile=/workspace/Dockerfile",
			"--destination=" + b.registry.host + "/" + repo + ":hako", "--insecure", "--insecure-pull", "--progress=plain",
		}, b.hakoArgs...),
		Mounts: []rig.Mount{{Source: b.contextDir(w), Target: "/workspace", ReadOnly: true}},
		Args:   []string{"--log-driver=k8s-file", "--log-opt=path=" + logPath},
	}
	if state != "" {
		spec.Command = append(spec.Command, "--work-dir=/state")
		spec.Mounts = append(spec.Mounts, rig.Mount{Source: state, Target: "/state"})
	}
	id, err := p.Create(ctx, spec)
	if err != nil {
		return result{}, err
	}
	defer func() { err = errors.Join(err, p.Remove(context.WithoutCancel(ctx), id)) }()
	res, err := b.letGo(ctx, p, id)
	if err != nil {
		return result{}, err
	}
	code, err := p.ExitCode(ctx, id)
	if err != nil {
		return result{}, err
	}
	log, _ := os.ReadFile(logPath)
	if b.options.verbose {
		fmt.Fprintf(os.Stderr, "%s\n", log)
	}
	if code != "0" {
		return result{}, fmt.Errorf("hako, %s: exit code %s:\n%s", w.name, code, tail(log))
	}
	return res, nil
}

// letGo lets the process of a container that is ready begin, and measures it to
// its end. Podman's own time, before and after, is not hako's.
func (b *bench) letGo(ctx context.Context, p *rig.Podman, id string) (result, error) {
	if err := p.Init(ctx, id); err != nil {
		return result{}, err
	}
	text, err := p.Inspect(ctx, id, "{{.State.Pid}}")
	if err != nil {
		return result{}, err
	}
	pid, err := strconv.Atoi(text)
	if err != nil {
		return result{}, fmt.Errorf("container %s: process id %q", id, text)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return result{}, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	program, err := os.Stat(filepath.Join("/proc", text, "root", executor))
	if err != nil {
		return result{}, fmt.Errorf("look at %s: %w", executor, err)
	}
	cgroup := cgroupOf(pid)
	b.settle()
	mark := b.registry.mark()
	watch := watchRun(func() []int { return processesOf(cgroup, program) }, b.volumeUsed)
	began := time.Now()
	if out, err := exec.CommandContext(ctx, "runc", "start", id).CombinedOutput(); err != nil {
		watch.end(&result{})
		return result{}, fmt.Errorf("runc start: %w: %s", err, out)
	}
	peak, err := wait(ctx, fd, func() int64 { return cgroupPeak(cgroup) })
	res := result{wall: time.Since(began), cgroup: peak}
	watch.end(&res)
	if err != nil {
		return result{}, err
	}
	res.traffic, err = b.registry.since(mark)
	return res, err
}

// wait waits for a process's end; what look has returned last is the result,
// since it may have nothing to look at afterwards.
func wait(ctx context.Context, pidfd int, look func() int64) (last int64, err error) {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 200)
		last = max(last, look())
		switch {
		case n > 0:
			return last, nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return last, fmt.Errorf("wait for container: %w", err)
		case ctx.Err() != nil:
			return last, ctx.Err()
		}
	}
}

func tail(log []byte) []byte { return log[max(0, len(log)-4000):] }
