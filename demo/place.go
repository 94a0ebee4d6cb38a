// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A place is somewhere to run hako.
type place struct {
	canRun bool   // RUN steps too
	why    string // … and why, or why not
	engine *engine
}

// An engine starts containers.
type engine struct {
	program string
	env     []string
	// image names the container's root in the form that the engine takes.
	image []string
	clean func()
}

// choosePlace decides where the build runs. RUN in place rearranges the root of
// the container it is in, which must never be that of a machine somebody works
// on: so it needs a container.
func choosePlace(ctx context.Context, dir string) place {
	root := filepath.Join(dir, "root")
	if err := makeRoot(root); err != nil {
		return place{why: "left out: " + err.Error()}
	}
	var reasons []string
	for _, try := range []func(context.Context, string) (*engine, error){podman, podmanWithRunc, docker} {
		e, err := try(ctx, root)
		if err == nil {
			if err = e.works(ctx); err == nil {
				return place{canRun: true, why: "in a " + filepath.Base(e.program) + " container with default rights", engine: e}
			}
			e.clean()
		}
		reasons = append(reasons, err.Error())
	}
	return place{why: "left out, because it needs a container:\n         " + strings.Join(reasons, "\n         ")}
}

// makeRoot makes a root that holds hako and nothing else, as its own image does.
func makeRoot(root string) error {
	program, err := os.ReadFile(filepath.Join("bin", "hako"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, "kaniko"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "kaniko", "executor"), program, 0o755)
}

func podman(_ context.Context, root string) (*engine, error) {
	program, err := exec.LookPath("podman")
	if err != nil {
		return nil, errors.New("podman is not here")
	}
	return &engine{program: program, image: []string{"--rootfs", root}, clean: func() {}}, nil
}

// podmanWithRunc is for machines that are containers themselves: there crun may
// not raise resource limits, and no systemd makes control groups.
func podmanWithRunc(ctx context.Context, root string) (*engine, error) {
	e, err := podman(ctx, root)
	if err != nil {
		return nil, errors.New("… nor with other settings")
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return nil, errors.New("runc is not here")
	}
	const settings = `[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
`
	conf := filepath.Join(filepath.Dir(root), "containers.conf")
	e.env = []string{"CONTAINERS_CONF=" + conf}
	return e, os.WriteFile(conf, []byte(settings), 0o600)
}

// docker takes images only, so the root is made one.
func docker(ctx context.Context, root string) (*engine, error) {
	program, err := exec.LookPath("docker")
	if err != nil {
		return nil, errors.New("docker is not here")
	}
	const image = "hako-demo:tmp"
	// Its daemon may hang; the machine's tar is as good as any.
	tar := exec.CommandContext(ctx, "tar", "-C", root, "-cf", "-", "kaniko")
	data, err := tar.Output()
	if err != nil {
		return nil, fmt.Errorf("tar: %w", err)
	}
	load := exec.CommandContext(ctx, program, "import", "-", image)
	load.Stdin = bytes.NewReader(data)
	if out, err := load.CombinedOutput(); err != nil {
		return nil, errors.New("docker takes no image here: " + firstLine(string(out)))
	}
	clean := func() { _ = exec.CommandContext(context.WithoutCancel(ctx), program, "rmi", image).Run() }
	return &engine{program: program, image: []string{"--entrypoint=", image}, clean: clean}, nil
}

// command runs hako with args in a container that is removed afterwards.
func (e *engine) command(ctx context.Context, volumes, args []string) *exec.Cmd {
	all := append([]string{"run", "--rm", "--network=host", "--security-opt=label=disable"}, volumes...)
	all = append(append(all, e.image...), "/kaniko/executor")
	cmd := exec.CommandContext(ctx, e.program, append(all, args...)...)
	cmd.Env = append(os.Environ(), e.env...)
	return cmd
}

func (e *engine) works(ctx context.Context) error {
	if out, err := e.command(ctx, nil, []string{"version"}).CombinedOutput(); err != nil {
		return fmt.Errorf("%s runs no container here: %s", filepath.Base(e.program), firstLine(string(out)))
	}
	return nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// build runs hako and returns its standard output.
func (p place) build(ctx context.Context, bctx, ref string, more ...string) (string, error) {
	flags := append([]string{"--insecure", "--insecure-pull", "--reproducible", "--destination", ref}, more...)
	cmd := exec.CommandContext(ctx, filepath.Join("bin", "hako"), append([]string{"build", bctx}, flags...)...)
	if p.engine != nil {
		cmd = p.engine.command(ctx, []string{"--volume", bctx + ":/workspace:ro"}, append([]string{"--context=/workspace"}, flags...))
	}
	say("\n$ %s\n", strings.Join(cmd.Args, " "))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	err := cmd.Run()
	return out.String(), err
}

func (p place) clean() {
	if p.engine != nil {
		p.engine.clean()
	}
}
