// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
)

// Exec runs a command in a container that runs. An exit status is no error.
func (p *Podman) Exec(ctx context.Context, id string, command ...string) (PodResult, error) {
	cmd := p.cmd(ctx, append([]string{"exec", id}, command...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	res := PodResult{Stdout: stdout.String(), Stderr: stderr.String()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		res.Exit = exit.ExitCode()
		return res, nil
	}
	return res, err
}
