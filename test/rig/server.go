// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A server is a tool that runs and answers.
type server struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed once the process has been waited for
}

// Serve runs a tool that listens on a loopback address, which args make of a free
// port, and returns the address once it is taken. The tool ends with the rig.
func (r *Rig) Serve(ctx context.Context, tool string, env []string, args func(port string) []string) (address string, err error) {
	program, err := r.tool(ctx, tool)
	if err != nil {
		return "", err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a port for %s: %w", tool, err)
	}
	address = l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	if err := l.Close(); err != nil {
		return "", err
	}
	s := &server{cmd: exec.CommandContext(context.WithoutCancel(ctx), program, args(port)...), exited: make(chan struct{})}
	s.cmd.Dir, s.cmd.Env = r.Dir, append(append(os.Environ(), "OTEL_TRACES_EXPORTER=none"), env...)
	var out bytes.Buffer
	s.cmd.Stdout, s.cmd.Stderr = &out, &out
	if err := s.cmd.Start(); err != nil {
		return "", fmt.Errorf("start %s: %w", tool, err)
	}
	go func() {
		_ = s.cmd.Wait() // it is told to end
		close(s.exited)
	}()
	r.servers = append(r.servers, s)
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			return address, conn.Close()
		}
		select {
		case <-s.exited:
			return "", fmt.Errorf("%s ended: %s", tool, out.Bytes())
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *server) stop() error {
	err := s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
	case <-time.After(10 * time.Second):
		err = errors.Join(err, s.cmd.Process.Kill())
		<-s.exited
	}
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return err
}

const distributionConfig = `version: 0.1
log:
  level: error
storage:
  filesystem:
    rootdirectory: %q
http:
  addr: 127.0.0.1:%s
  secret: rig
`

// Distribution starts the reference registry, empty, and returns its address.
func (r *Rig) Distribution(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp(r.Dir, "distribution-")
	if err != nil {
		return "", fmt.Errorf("make the registry's directory: %w", err)
	}
	config := filepath.Join(dir, "config.yml")
	var writeErr error
	host, err := r.Serve(ctx, "registry", nil, func(port string) []string {
		writeErr = os.WriteFile(config, fmt.Appendf(nil, distributionConfig, filepath.Join(dir, "data"), port), 0o600)
		return []string{"serve", config}
	})
	if err = errors.Join(writeErr, err); err != nil {
		return "", err
	}
	resp, err := http.Get("http://" + host + "/v2/") //nolint:noctx // it answers at once
	if err != nil {
		return "", fmt.Errorf("ask the registry: %w", err)
	}
	return host, resp.Body.Close()
}
