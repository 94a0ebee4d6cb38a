// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// A Running is a started container.
type Running struct {
	cmd            *exec.Cmd
	stdout, stderr output
}

// output is a buffer that may be read while it is written.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Attach starts a container and returns at once.
func (p *Podman) Attach(ctx context.Context, id string) (*Running, error) {
	r := &Running{cmd: p.cmd(ctx, "start", "--attach", "--sig-proxy=false", id)}
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	return r, nil
}

// Said waits until the container has printed text.
func (r *Running) Said(ctx context.Context, text string) error {
	for !strings.Contains(r.stdout.String()+r.stderr.String(), text) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %q: %w; printed so far:\n%s%s", text, ctx.Err(), r.stdout.String(), r.stderr.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Wait waits for the container's end. An exit status is no error.
func (r *Running) Wait() (PodResult, error) {
	err := r.cmd.Wait()
	res := PodResult{Stdout: r.stdout.String(), Stderr: r.stderr.String()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		res.Exit = exit.ExitCode()
		return res, nil
	}
	return res, err
}
