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
	end, err := endOf(ctx, p, id)
	if err != nil {
		return result{}, err
	}
	if end.oom && res.kills == 0 {
		res.kills = 1
	}
	log, _ := os.ReadFile(logPath)
	if b.options.verbose {
		fmt.Fprintf(os.Stderr, "%s\n", log)
	}
	if end.code != 0 {
		return res, fmt.Errorf("hako, %s: %s:\n%s", w.name, end.text(res.kills), tail(log))
	}
	return res, nil
}

// hakoOnHost builds w on this machine, in namespaces, with its files below work.
func (b *bench) hakoOnHost(ctx context.Context, w workload, repo, work string) (result, error) {
	program, err := os.Stat(b.rig.HakoBin)
	if err != nil {
		return result{}, err
	}
	cmd := exec.CommandContext(ctx, b.rig.HakoBin, append([]string{
		"build", "--isolation=namespace", "--work-dir=" + work, "--destination=" + b.registry.host + "/" + repo + ":hako",
		"--insecure", "--insecure-pull", "--progress=plain", b.contextDir(w),
	}, b.hakoArgs...)...)
	b.settle()
	res, err := b.timed(cmd, processesRunning(program))
	if err != nil {
		return result{}, fmt.Errorf("hako, %s: %w", w.name, err)
	}
	return res, nil
}

// An end is how a container's first process ended.
type end struct {
	code int
	oom  bool
}

// endOf asks podman how a container ended, whose process is gone.
func endOf(ctx context.Context, p *rig.Podman, id string) (end, error) {
	if _, err := p.ExitCode(ctx, id); err != nil { // waits for podman to know
		return end{}, err
	}
	text, err := p.Inspect(ctx, id, "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}")
	if err != nil {
		return end{}, err
	}
	var e end
	var status string
	if _, err := fmt.Sscan(text, &status, &e.code, &e.oom); err != nil {
		return end{}, fmt.Errorf("end of container %s: %q: %w", id, text, err)
	}
	if status != "exited" && status != "stopped" {
		return end{}, fmt.Errorf("container %s is still %q after its end", id, text)
	}
	return e, nil
}

// text describes an end; kills are the processes that the memory limit has killed.
func (e end) text(kills int64) string {
	s := fmt.Sprintf("exit code %d", e.code)
	if e.code > 128 {
		s += fmt.Sprintf(" (signal %d)", e.code-128)
	}
	if e.oom || kills > 0 {
		s += ", out of memory"
	}
	return s
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
	watch := watchRun(processesOf(cgroup, program), b.volumeUsed)
	began, err := begin(ctx, p, id, pid, program)
	if err != nil {
		watch.end(&result{})
		return result{}, err
	}
	var kills int64
	peak, err := wait(ctx, fd, func() int64 {
		kills = max(kills, cgroupKills(cgroup))
		return cgroupPeak(cgroup)
	})
	res := result{wall: time.Since(began), cgroup: peak, kills: kills}
	watch.end(&res)
	if err != nil {
		return result{}, err
	}
	res.traffic, err = b.registry.since(mark)
	return res, err
}

// begin lets a container's process begin and returns the time at which its
// program did: podman takes its own time before and after. Started past podman,
// its end would not be known to anyone.
func begin(ctx context.Context, p *rig.Podman, id string, pid int, program os.FileInfo) (time.Time, error) {
	started := make(chan error, 1)
	go func() { started <- p.Go(ctx, id) }()
	for {
		info, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil || os.SameFile(info, program) { // it runs, or has come and gone
			return time.Now(), <-started
		}
		select {
		case err := <-started:
			return time.Now(), err
		case <-time.After(time.Millisecond):
		}
	}
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
