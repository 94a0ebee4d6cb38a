// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Command demo builds an example image with bin/hako against a registry in this
// process, so that nothing but Go is needed to see hako work: make demo.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	if err := demo(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func demo(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "hako-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	host, stop, err := startRegistry(ctx)
	if err != nil {
		return err
	}
	defer stop()

	base, err := pushBase(ctx, dir, host)
	if err != nil {
		return fmt.Errorf("make base image: %w", err)
	}
	p := choosePlace(ctx, dir)
	defer p.clean()
	say("base     %s/base:1, %s", host, base.what)
	say("RUN      %s", p.why)
	bctx := filepath.Join(dir, "context")
	if err := writeContext(bctx, host, base, p.canRun); err != nil {
		return fmt.Errorf("write build context: %w", err)
	}
	first, second := host+"/app:1", host+"/app:2"
	out, err := p.build(ctx, bctx, first)
	if err != nil {
		return fmt.Errorf("build: %w", err)
	}
	say("\nbuilt    %s", strings.TrimSpace(out))
	say("\nand again, with another greeting:")
	if err := os.WriteFile(filepath.Join(bctx, greeting), []byte("hello again\n"), 0o644); err != nil {
		return err
	}
	if _, err := p.build(ctx, bctx, second, "--quiet"); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	if err := showDiff(ctx, first, second); err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	say(`
next     bin/hako build -o oci,dest=app.tar DIR          your own Dockerfile, into an archive
         bin/hako build --push -t REGISTRY/NAME:TAG DIR  … or into a registry
         bin/hako diff OLD NEW                           what differs between two images, as above
         bin/hako doctor                                 what this place allows
         docs/architecture.md                            how it works`)
	return nil
}

// showDiff compares two results.
func showDiff(ctx context.Context, a, b string) error {
	cmd := exec.CommandContext(ctx, filepath.Join("bin", "hako"), "diff", "--insecure-pull", a, b)
	say("\n$ %s\n", strings.Join(cmd.Args, " "))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	err := cmd.Run()
	// 1 is diff's way to say that there are differences.
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		err = nil
	}
	return err
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// startRegistry serves a registry on a free port of the loopback interface.
func startRegistry(ctx context.Context) (host string, stop func(), err error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("start registry: %w", err)
	}
	srv := &http.Server{Handler: registry.New(registry.Logger(quiet())), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // ends with Close
	}()
	return l.Addr().String(), func() {
		_ = srv.Close()
		<-done
	}, nil
}
