// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Command demo builds an example image with bin/hako against a registry in this
// process, so that nothing but Go is needed to see hako work: make demo.
package main

import (
	"bytes"
	"context"
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
	say("base     %s/base:1, %s", host, base.what)
	say("RUN      %s", p.why)
	bctx := filepath.Join(dir, "context")
	if err := writeContext(bctx, host, base, p.canRun); err != nil {
		return fmt.Errorf("write build context: %w", err)
	}
	ref := host + "/app:1"
	out, err := p.build(ctx, dir, bctx, ref)
	if err != nil {
		return fmt.Errorf("build: %w", err)
	}
	say("\nbuilt    %s", strings.TrimSpace(out))
	say(`
next     bin/hako build -o oci,dest=app.tar DIR     your own Dockerfile, into an archive
         bin/hako build --push -t REGISTRY/NAME:TAG DIR
         bin/hako doctor                            what this place allows
         docs/architecture.md                       how it works`)
	return nil
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

// A place is somewhere to run hako.
type place struct {
	canRun bool   // RUN steps too
	podman string // path of podman, "" to run hako here
	why    string
}

// choosePlace decides where the build runs. RUN steps in place rearrange the
// root of the container they are in, which must never be that of a machine
// somebody works on: so they need a container.
func choosePlace(ctx context.Context, dir string) place {
	podman, err := exec.LookPath("podman")
	if err != nil {
		return place{why: "left out: it needs a container, and podman is not here"}
	}
	// A root that holds hako and nothing else, as in hako's own image.
	root := filepath.Join(dir, "root")
	if err := copyFile(filepath.Join("bin", "hako"), filepath.Join(root, "kaniko", "executor"), 0o755); err != nil {
		return place{why: "left out: " + err.Error()}
	}
	cmd := exec.CommandContext(ctx, podman, "run", "--rm", "--network=host", "--ulimit=host", "--rootfs", root, "/kaniko/executor", "--help")
	if out, err := cmd.CombinedOutput(); err != nil {
		return place{why: "left out: podman runs no container here: " + firstLine(string(out))}
	}
	return place{canRun: true, podman: podman, why: "in a podman container with default rights"}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// build runs hako and returns its standard output.
func (p place) build(ctx context.Context, dir, bctx, ref string) (string, error) {
	bin, err := filepath.Abs(filepath.Join("bin", "hako"))
	if err != nil {
		return "", err
	}
	flags := []string{"--insecure", "--insecure-pull", "--destination", ref}
	cmd := exec.CommandContext(ctx, bin, append([]string{"build", bctx}, flags...)...)
	if p.podman != "" {
		root := filepath.Join(dir, "root")
		args := []string{
			"run", "--rm", "--network=host", "--ulimit=host", "--security-opt=label=disable",
			"--volume", bctx + ":/workspace:ro", "--rootfs", root, "/kaniko/executor", "--context=/workspace",
		}
		cmd = exec.CommandContext(ctx, p.podman, append(args, flags...)...)
	}
	say("\n$ %s\n", strings.Join(cmd.Args, " "))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	err = cmd.Run()
	return out.String(), err
}
