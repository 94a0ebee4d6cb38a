// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package gitserver

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
)

// SSH is an ssh server that runs git-upload-pack for who has the key.
type SSH struct {
	Addr    string
	HostKey ssh.PublicKey
	Key     ed25519.PrivateKey // the one that it lets in

	root     string
	listener net.Listener
	config   *ssh.ServerConfig
	done     sync.WaitGroup
}

// ServeSSH starts a server for the repositories below root.
func ServeSSH(ctx context.Context, root string) (*SSH, error) {
	_, host, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	hostSigner, err := ssh.NewSignerFromKey(host)
	if err != nil {
		return nil, err
	}
	allowed, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	s := &SSH{HostKey: hostSigner.PublicKey(), Key: key, root: root}
	s.config = &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if !bytes.Equal(k.Marshal(), allowed.Marshal()) {
			return nil, errors.New("unknown key")
		}
		return &ssh.Permissions{}, nil
	}}
	s.config.AddHostKey(hostSigner)
	if s.listener, err = new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, err
	}
	s.Addr = s.listener.Addr().String()
	s.done.Go(func() {
		for {
			c, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.done.Go(func() {
				defer c.Close()
				s.serve(ctx, c)
			})
		}
	})
	return s, nil
}

// KnownHosts returns the server's line for known_hosts.
func (s *SSH) KnownHosts() string {
	host, port, _ := net.SplitHostPort(s.Addr)
	return fmt.Sprintf("[%s]:%s %s", host, port, ssh.MarshalAuthorizedKey(s.HostKey))
}

// Close ends the server and waits for its connections.
func (s *SSH) Close() error {
	err := s.listener.Close()
	s.done.Wait()
	return err
}

func (s *SSH) serve(ctx context.Context, c net.Conn) {
	conn, chans, reqs, err := ssh.NewServerConn(c, s.config)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	s.done.Go(func() { ssh.DiscardRequests(reqs) })
	for n := range chans {
		if n.ChannelType() != "session" {
			_ = n.Reject(ssh.UnknownChannelType, "sessions only")
			continue
		}
		ch, requests, err := n.Accept()
		if err != nil {
			return
		}
		s.session(ctx, ch, requests)
		_ = ch.Close()
	}
}

// session runs the one command of a session.
func (s *SSH) session(ctx context.Context, ch ssh.Channel, requests <-chan *ssh.Request) {
	env := Env()
	for r := range requests {
		switch r.Type {
		case "env":
			var v struct{ Name, Value string }
			if ssh.Unmarshal(r.Payload, &v) == nil && v.Name == "GIT_PROTOCOL" {
				env = append(env, v.Name+"="+v.Value)
			}
			_ = r.Reply(true, nil)
		case "exec":
			var v struct{ Command string }
			_ = r.Reply(ssh.Unmarshal(r.Payload, &v) == nil, nil)
			status := s.run(ctx, ch, v.Command, env)
			_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status)}))
			return
		default:
			_ = r.Reply(false, nil)
		}
	}
}

func (s *SSH) run(ctx context.Context, ch ssh.Channel, command string, env []string) int {
	arg, ok := strings.CutPrefix(command, "git-upload-pack ")
	if !ok {
		return 127
	}
	path := filepath.Join(s.root, filepath.Clean("/"+strings.Trim(arg, "'")))
	cmd := exec.CommandContext(ctx, "git", "-c", "safe.directory=*", "upload-pack", path)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, ch, ch.Stderr()
	// A pipe of our own: Run would wait until the client has no more to say.
	in, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return 126
	}
	s.done.Go(func() {
		_, _ = io.Copy(in, ch)
		_ = in.Close()
	})
	if cmd.Wait() != nil {
		return 1
	}
	return 0
}
