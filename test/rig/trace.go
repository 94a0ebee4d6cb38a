// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Trace follows every process of a container that Init has made ready, from
// before its program begins. What they ask of the kernel about files is written
// to path, a line each: "PID<COMMAND> CALL(ARGUMENTS", descriptors with their
// paths. wait returns when the container has ended.
//
// It looks in from outside: inside, a process that is not dumpable cannot be
// attached to.
func (p *Podman) Trace(ctx context.Context, id, path string) (wait func() error, err error) {
	pid, err := p.Inspect(ctx, id, "{{.State.Pid}}")
	if err != nil {
		return nil, err
	}
	said := &output{}
	cmd := exec.CommandContext(ctx, "strace", "--follow-forks", "--attach="+pid, "--output="+path, "--trace=%file,fchdir",
		"--decode-fds=path", "--decode-pids=comm", "--string-limit=4096")
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start strace: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for !strings.Contains(said.String(), " attached") {
		select {
		case err := <-ended:
			return nil, fmt.Errorf("strace: %w: %s", errors.Join(err, ctx.Err()), said.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return func() error {
		err := <-ended
		if _, serr := os.Stat(path); serr != nil {
			err = errors.Join(err, serr)
		}
		if err != nil {
			return fmt.Errorf("strace: %w: %s", err, said.String())
		}
		return nil
	}, nil
}
