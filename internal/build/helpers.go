// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"hako/internal/keychain"
	"hako/internal/sandbox"
)

// helpers runs credential helper programs. They are looked for before anything
// moves, and run in the tree that they were found in: while an image's root is
// in /, that is where the container's own files are parked.
type helpers struct {
	env      Env
	outside  *sandbox.Outside
	timeout  time.Duration
	self     os.FileInfo // this very program, nil if not known
	programs map[string]*os.File
}

// helperTimeout is how long a helper may take; some sign in over the network.
const helperTimeout = 30 * time.Second

func newHelpers(env Env, outside *sandbox.Outside) *helpers {
	h := &helpers{env: env, outside: outside, timeout: helperTimeout, programs: make(map[string]*os.File)}
	if path, err := os.Executable(); err == nil {
		h.self, _ = os.Stat(path) // without it hako would be started for itself
	}
	return h
}

func (h *helpers) close() error {
	var errs []error
	for _, f := range h.programs {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// open looks for the program of a helper. That there is none is an error when it
// is needed; hako's own image has it under the names of some, which then is none.
func (h *helpers) open(name string) error {
	if name != filepath.Base(name) || h.programs[name] != nil {
		return nil
	}
	for _, dir := range filepath.SplitList(h.env.Get("PATH")) {
		if !filepath.IsAbs(dir) {
			continue
		}
		for _, ext := range exeSuffixes() {
			path := filepath.Join(dir, "docker-credential-"+name+ext)
			fi, err := os.Stat(path)
			if err != nil || !fi.Mode().IsRegular() || ext == "" && fi.Mode()&0o111 == 0 {
				continue
			}
			if h.self != nil && os.SameFile(fi, h.self) {
				return nil
			}
			f, err := os.Open(path)
			if err != nil {
				return fmt.Errorf("open the credential helper: %w", err)
			}
			h.programs[name] = f
			return nil
		}
	}
	return nil
}

// run implements keychain.Helper.
func (h *helpers) run(ctx context.Context, name, server string) (user, secret string, err error) {
	f := h.programs[name]
	if f == nil {
		return "", "", keychain.ErrNoHelper
	}
	for n := 0; ; n++ {
		var out []byte
		err = h.outside.Use(func(dir string) error {
			out, err = h.start(ctx, f, dir, server)
			return err
		})
		// When a RUN ends, so do all processes besides hako's own.
		if n < 3 && ctx.Err() == nil && wasKilled(err) {
			continue
		}
		if err != nil {
			return "", "", helperError(out, err)
		}
		return keychain.ParseHelper(out)
	}
}

// maxHelperOutput is far more than any token has.
const maxHelperOutput = 1 << 20

// start runs the program once. dir is where its tree is, "" for /.
func (h *helpers) start(ctx context.Context, f *os.File, dir, server string) ([]byte, error) {
	path, remove, err := placeProgram(f, dir)
	if err != nil {
		return nil, err
	}
	defer remove()
	cause := fmt.Errorf("no answer within %v", h.timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, h.timeout, cause)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "get")
	cmd.Env = h.env.Environ()
	cmd.Stdin = strings.NewReader(server)
	out := &limitedBuffer{limit: maxHelperOutput}
	cmd.Stdout, cmd.Stderr = out, io.Discard
	cmd.WaitDelay = time.Second // a child of its may hold the pipes
	if dir != "" {
		chroot(cmd, dir)
	}
	err = cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return out.Bytes(), err
}

// limitedBuffer keeps the first bytes of what is written.
type limitedBuffer struct {
	bytes.Buffer
	limit int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), b.limit-b.Len())])
	return len(p), nil
}

// wasKilled tells whether somebody else ended the program, or saw its end
// instead of us, or whether another process that is being started still has our
// copy of it open.
func wasKilled(err error) bool {
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return !e.Exited()
	}
	return errors.Is(err, syscall.ECHILD) || errors.Is(err, syscall.ETXTBSY)
}

// helperError takes what the program says of its failure, which by docker's
// protocol is on its standard output.
func helperError(out []byte, err error) error {
	if e, ok := errors.AsType[*exec.ExitError](err); ok && e.Exited() {
		return keychain.HelperFailure(out, err)
	}
	return err
}
