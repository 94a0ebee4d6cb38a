// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// SSHOptions say how a server is reached over ssh.
type SSHOptions struct {
	Dial Dial
	// Agent connects to the agent that has the keys; nil if there is none.
	Agent func(context.Context) (net.Conn, error)
	// KnownHosts are files of known_hosts(5); the first that knows a host
	// decides.
	KnownHosts [][]byte
}

// ErrNoAgent is in the error for an ssh server without keys to show it.
var ErrNoAgent = errors.New("there is no ssh agent and no key")

// defaultUser is who logs in if the URL names nobody: all the large hosts know
// this one.
const defaultUser = "git"

// DialSSH connects to a repository over ssh.
func DialSSH(ctx context.Context, u *URL, opt SSHOptions) (*Remote, error) {
	if opt.Agent == nil {
		return nil, ErrNoAgent
	}
	client, closeAll, err := login(ctx, u, opt, parseKnownHosts(opt.KnownHosts))
	if err != nil {
		return nil, err
	}
	c, err := uploadPack(client, u.Path)
	if err != nil {
		return nil, errors.Join(err, closeAll())
	}
	end := c.close
	c.close = func() error {
		_ = end() // the connection's end is the session's
		return closeAll()
	}
	return newRemote(c)
}

func login(ctx context.Context, u *URL, opt SSHOptions, known *knownHosts) (*ssh.Client, func() error, error) {
	sock, err := opt.Agent(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to the ssh agent: %w", err)
	}
	c, stop, err := dial(ctx, opt.Dial, u.Host, "22")
	if err != nil {
		return nil, nil, errors.Join(err, sock.Close())
	}
	closeAll := func() error {
		stop()
		err := c.Close()
		if errors.Is(err, net.ErrClosed) {
			err = nil
		}
		return errors.Join(err, sock.Close())
	}
	addr := u.Host
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), "22")
	}
	user := u.User.Username()
	if user == "" {
		user = defaultUser
	}
	conn, chans, reqs, err := ssh.NewClientConn(c, addr, &ssh.ClientConfig{
		User:              user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeysCallback(agent.NewClient(sock).Signers)},
		HostKeyCallback:   known.check,
		HostKeyAlgorithms: known.algorithms(addr),
	})
	if err != nil {
		return nil, nil, errors.Join(sshError(err), closeAll())
	}
	return ssh.NewClient(conn, chans, reqs), closeAll, nil
}

// sshError returns the reason why a host was not trusted, if that is it: the ssh
// package says more around it. It has no type for keys that are refused.
func sshError(err error) error {
	var h *HostKeyError
	if errors.As(err, &h) {
		return h
	}
	if strings.Contains(err.Error(), "unable to authenticate") {
		return &LoginError{Err: err}
	}
	return err
}

// A LoginError is returned if the server accepts none of the agent's keys.
type LoginError struct{ Err error }

func (e *LoginError) Error() string { return e.Err.Error() }

// Unwrap returns what the ssh package said.
func (e *LoginError) Unwrap() error { return e.Err }

// uploadPack starts the service on the server.
func uploadPack(client *ssh.Client, path string) (*streamConn, error) {
	s, err := client.NewSession()
	if err != nil {
		return nil, err
	}
	// Servers that do not accept the variable speak the first version.
	_ = s.Setenv("GIT_PROTOCOL", "version=2")
	var stderr limitedBuffer
	s.Stderr = &stderr
	w, err := s.StdinPipe()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	r, err := s.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.Start("git-upload-pack " + shellQuote(path)); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &streamConn{w: w, in: newPacketReader(&sshOutput{r: r, session: s, stderr: &stderr}), close: s.Close}, nil
}

// sshOutput is a command's output. If it ends without any, what the command
// said on its other output is the reason.
type sshOutput struct {
	r       io.Reader
	session *ssh.Session
	stderr  *limitedBuffer
	seen    bool
}

func (o *sshOutput) Read(p []byte) (int, error) {
	n, err := o.r.Read(p)
	o.seen = o.seen || n > 0
	if errors.Is(err, io.EOF) && !o.seen {
		_ = o.session.Wait() // until all of stderr is there
		if text := o.stderr.text(); text != "" {
			return n, &RemoteError{Text: text}
		}
	}
	return n, err
}

// A limitedBuffer keeps the beginning of what is written to it.
type limitedBuffer struct{ b bytes.Buffer }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	if room := 4<<10 - l.b.Len(); room > 0 {
		l.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (l *limitedBuffer) text() string { return strings.TrimSpace(l.b.String()) }

// shellQuote returns s as one word of the server's shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
