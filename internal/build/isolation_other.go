// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package build

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/moby/buildkit/solver/pb"

	"hako/internal/ops"
	"hako/internal/sandbox"
)

// A room has no sandbox on this system.
type room struct {
	opt      *Options
	contexts *contexts
	network  *network
	outside  *sandbox.Outside
	own      []string
	clamp    *time.Time
	logf     func(format string, args ...any)
	moved    bool
}

func newRoom(_ context.Context, opt *Options, c *contexts, n *network, logf func(string, ...any)) *room {
	return &room{opt: opt, contexts: c, network: n, logf: logf}
}

func (r *room) possible() error {
	return &NoSandboxError{Why: "commands of an image need Linux, and this is " + runtime.GOOS, Remedy: []string{"run hako in a Linux container"}}
}

func (r *room) start(context.Context) (ops.Sandbox, error) { return nil, r.possible() }
func (r *room) namespace(context.Context) (string, error)  { return "", r.possible() }
func (r *room) inPlace() error                             { return r.possible() }
func (r *room) unsupported(*pb.ExecOp, *pb.Platform) error { return r.possible() }
func (r *room) serial() bool                               { return false }
func (r *room) describe() string                           { return "" }
func (r *room) oneID() bool                                { return false }
func (r *room) need([]string)                              {}
func (r *room) putBack() error                             { return nil }
func (r *room) verified() error                            { return nil }
func (r *room) close() error                               { return nil }

func enter(context.Context, *Options) error { return nil }

func staysInPlace(*Options) bool { return false }

func workDir(opt *Options) string {
	if opt.WorkDir != "" {
		return opt.WorkDir
	}
	d, err := os.UserCacheDir()
	if err != nil {
		d = os.TempDir()
	}
	return filepath.Join(d, "hako")
}
