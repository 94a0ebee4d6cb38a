// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// A Dial connects to an address, as [net.Dialer.DialContext] does.
type Dial func(ctx context.Context, network, addr string) (net.Conn, error)

// idleTimeout ends a connection on which nothing moves. Servers that count
// objects say so every few seconds.
const idleTimeout = 2 * time.Minute

// streamConn is one connection for all requests, in turn.
type streamConn struct {
	w     io.Writer
	in    *packetReader
	close func() error
}

func (c *streamConn) greeting() *packetReader { return c.in }

func (c *streamConn) request(_ context.Context, msg []byte) (*packetReader, func(), error) {
	if _, err := c.w.Write(msg); err != nil {
		return nil, nil, fmt.Errorf("send request: %w", err)
	}
	return c.in, func() {}, nil
}

func (c *streamConn) Close() error {
	_, _ = io.WriteString(c.w, "0000") // no more requests; it may be too late to say so
	return c.close()
}

// An idleConn gives up on a connection on which nothing moves, and when its
// context ends.
type idleConn struct{ net.Conn }

func (c idleConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(idleTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c idleConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(idleTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// dial connects to host, with port if the host has none. The connection is
// closed when ctx ends; stop ends that.
func dial(ctx context.Context, d Dial, host, port string) (c net.Conn, stop func() bool, err error) {
	addr := host
	if _, _, err := net.SplitHostPort(host); err != nil {
		addr = net.JoinHostPort(strings.Trim(host, "[]"), port)
	}
	raw, err := d(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	return idleConn{raw}, context.AfterFunc(ctx, func() { _ = raw.Close() }), nil
}

// DialGit connects to a repository over the protocol of git-daemon(1), which
// knows neither encryption nor users.
func DialGit(ctx context.Context, u *URL, d Dial) (*Remote, error) {
	if strings.ContainsRune(u.Path, 0) {
		return nil, errors.New("the repository's path has a zero byte")
	}
	c, stop, err := dial(ctx, d, u.Host, "9418")
	if err != nil {
		return nil, err
	}
	hello := fmt.Sprintf("git-upload-pack %s\x00host=%s\x00\x00version=2\x00", u.Path, u.Host)
	if _, err := fmt.Fprintf(c, "%04x%s", len(hello)+4, hello); err != nil {
		stop()
		return nil, errors.Join(fmt.Errorf("send request: %w", err), c.Close())
	}
	return newRemote(&streamConn{w: c, in: newPacketReader(c), close: func() error {
		stop()
		return c.Close()
	}})
}
