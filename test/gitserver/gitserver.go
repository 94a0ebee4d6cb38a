// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

// Package gitserver serves real repositories to tests: git's own programs do
// the serving, over HTTP, ssh and the protocol of git-daemon.
package gitserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Config are variables with which git gives the same commits every time and
// reads no configuration of the machine.
func Config() []string {
	return []string{
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "LC_ALL=C",
		"GIT_AUTHOR_NAME=Author", "GIT_AUTHOR_EMAIL=author@example.test", "GIT_AUTHOR_DATE=1600000000 +0200",
		"GIT_COMMITTER_NAME=Committer", "GIT_COMMITTER_EMAIL=committer@example.test", "GIT_COMMITTER_DATE=1600000060 +0200",
	}
}

// Env is the environment with [Config].
func Env() []string { return append(os.Environ(), Config()...) }

// Script runs a shell script in dir, in that environment, and returns its
// output without the last newline.
func Script(ctx context.Context, dir, script string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "sh", "-euc", script)
	cmd.Dir, cmd.Env = dir, Env()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %q: %w\n%s", script, err, stderr.String())
	}
	return strings.TrimRight(out.String(), "\n"), nil
}

// HTTP returns a handler that serves the repositories below root. Without v2
// only the first version of the protocol is spoken.
func HTTP(ctx context.Context, root string, v2 bool) (http.Handler, error) {
	out, err := exec.CommandContext(ctx, "git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("find git: %w", err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env: []string{
			"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !v2 {
			r.Header.Del("Git-Protocol")
		}
		backend.ServeHTTP(w, r)
	}), nil
}

// Daemon runs git-daemon for the repositories below root and returns its
// address. Stop ends it.
func Daemon(ctx context.Context, root string) (addr string, stop func() error, err error) {
	addr, err = freeAddress(ctx)
	if err != nil {
		return "", nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "git", "daemon", "--export-all", "--reuseaddr", "--base-path="+root, "--listen="+host, "--port="+port, root)
	cmd.Env = append(Env(), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("start git daemon: %w", err)
	}
	stop = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		_ = cmd.Wait() // it was told to end
		return err
	}
	for range 200 {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			return addr, stop, c.Close()
		}
		select {
		case <-ctx.Done():
			return "", nil, errors.Join(ctx.Err(), stop())
		case <-time.After(25 * time.Millisecond):
		}
	}
	return "", nil, errors.Join(errors.New("git daemon does not answer"), stop())
}

func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
