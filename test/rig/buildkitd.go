// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// buildkitd is the reference builder: a process of its own with its own root
// and socket, known to no other client of the machine.
type buildkitd struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed once the process has been waited for
	root   string
	addr   string
	ctl    string // buildctl
	log    string
}

const buildkitdConfig = `root = %q
insecure-entitlements = ["network.host", "security.insecure"]
[log]
  level = "warn"
[grpc]
  address = [%q]
[cdi]
  specDirs = [%q]
[worker.containerd]
  enabled = false
[worker.oci]
  enabled = true
  snapshotter = "overlayfs"
  networkMode = "host"
  gc = false
`

const buildkitdRegistry = `[registry.%q]
  http = true
`

func (r *Rig) startBuildkitd(ctx context.Context, dir string, registries ...string) (*buildkitd, error) {
	daemon, err := r.tool(ctx, "buildkitd")
	if err != nil {
		return nil, err
	}
	ctl, err := r.tool(ctx, "buildctl")
	if err != nil {
		return nil, err
	}
	b := &buildkitd{
		root:   filepath.Join(dir, "bk"),
		addr:   "unix://" + filepath.Join(dir, "bk.sock"),
		ctl:    ctl,
		log:    filepath.Join(dir, "bk.log"),
		exited: make(chan struct{}),
	}
	config := filepath.Join(dir, "buildkitd.toml")
	text := fmt.Sprintf(buildkitdConfig, b.root, b.addr, filepath.Join(dir, "no-devices"))
	for _, host := range append([]string{r.Registry}, registries...) {
		text += fmt.Sprintf(buildkitdRegistry, host)
	}
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("write buildkitd config: %w", err)
	}
	log, err := os.Create(b.log)
	if err != nil {
		return nil, fmt.Errorf("create buildkitd log: %w", err)
	}
	defer log.Close()
	// Without the context's end: the daemon must be asked, not killed, so that
	// it unmounts what it mounted.
	b.cmd = exec.CommandContext(context.WithoutCancel(ctx), daemon, "--config", config)
	b.cmd.Stdout, b.cmd.Stderr = log, log
	// A group of its own, so that an interrupt of the test does not reach it
	// before the test has ended its builds; gone with us if we are killed.
	b.cmd.Env = append(os.Environ(), "TMPDIR="+dir) // it leaves empty directories there
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := b.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start buildkitd: %w", err)
	}
	go func() {
		defer close(b.exited)
		_ = b.cmd.Wait()
	}()
	if err := b.ready(ctx); err != nil {
		return nil, errors.Join(err, b.stop())
	}
	return b, nil
}

func (b *buildkitd) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		out, err := exec.CommandContext(ctx, b.ctl, "--addr", b.addr, "debug", "workers").CombinedOutput()
		if err == nil {
			return nil
		}
		select {
		case <-b.exited:
			log, _ := os.ReadFile(b.log)
			return fmt.Errorf("start buildkitd: it ended:\n%s", log)
		case <-ctx.Done():
			return fmt.Errorf("wait for buildkitd: %w: %s", err, bytes.TrimSpace(out))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// stop ends the daemon and unmounts whatever it left behind.
func (b *buildkitd) stop() error {
	select {
	case <-b.exited:
		log, _ := os.ReadFile(b.log)
		return errors.Join(fmt.Errorf("buildkitd ended by itself:\n%s", log), unmountBelow(b.root))
	default:
	}
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-b.exited:
	case <-time.After(30 * time.Second):
		_ = b.cmd.Process.Kill()
		<-b.exited
	}
	return unmountBelow(b.root)
}

// unmountBelow unmounts everything mounted below dir, the deepest first.
func unmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	lines := strings.Split(string(data), "\n")
	var errs []error
	for i := len(lines) - 1; i >= 0; i-- {
		fields := strings.Fields(lines[i])
		if len(fields) < 5 || !strings.HasPrefix(fields[4], dir+"/") {
			continue
		}
		if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", fields[4], err))
		}
	}
	return errors.Join(errs...)
}
