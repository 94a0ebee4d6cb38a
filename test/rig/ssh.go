// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
)

// sshSocket listens where an ssh agent would and hangs up on every caller: the
// cases look at the forwarded socket, its mode and its variable, and never
// sign anything.
type sshSocket struct {
	l    net.Listener
	done sync.WaitGroup
}

func listenSSH(ctx context.Context, path string) (*sshSocket, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for ssh agent callers: %w", err)
	}
	if err := os.Chmod(path, 0o777); err != nil { // for builds of other users
		return nil, errors.Join(fmt.Errorf("open ssh agent socket: %w", err), l.Close())
	}
	s := &sshSocket{l: l}
	s.done.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_ = c.Close()
			}
		}
	})
	return s, nil
}

func (s *sshSocket) path() string { return s.l.Addr().String() }

// Close ends the listener and waits for its goroutine.
func (s *sshSocket) Close() error {
	err := s.l.Close()
	s.done.Wait()
	return err
}
