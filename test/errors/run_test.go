// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package faults

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"hako/test/rig"
)

// flags are what every build is given, and then the case's own.
func (p *place) flags() []string {
	list := []string{"--progress=quiet", "--insecure-registry=" + p.w.Registry}
	d := p.one("destination")
	if d == "" {
		d = "base.test/result/" + p.name + ":1"
	}
	if d != "none" {
		list = append(list, "--destination="+p.expand(d))
	}
	for _, f := range p.options["flags"] {
		for _, word := range strings.Fields(f) {
			list = append(list, p.expand(word))
		}
	}
	return list
}

// onMachine runs a build without RUN on this machine.
func (w *world) onMachine(ctx context.Context, t *testing.T, p *place) said {
	t.Helper()
	args := append([]string{"build", "--work-dir=" + filepath.Join(p.dir, "store")}, p.flags()...)
	cmd := exec.CommandContext(ctx, w.HakoBin, append(args, "context")...)
	cmd.Dir = p.dir
	cmd.Env = []string{"PATH=/nowhere", "HOME=" + filepath.Join(p.dir, "home")}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return said{exit: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
}

// inPod runs a build in a container with an ordinary pod's rights, as its first
// process or as the child of a shell.
func (w *world) inPod(ctx context.Context, t *testing.T, p *place) said {
	t.Helper()
	log := filepath.Join(p.dir, "termination-log")
	// As the kubelet makes it.
	if err := errors.Join(writeFile(log, "", 0o666), os.Chmod(log, 0o666)); err != nil {
		t.Fatal(err)
	}
	pod, image := w.pod, w.scratch
	if size := p.one("disk"); size != "" {
		pod, image = w.onDisk(ctx, t, size)
	}
	s := rig.PodSpec{
		Image:   image,
		Memory:  p.one("memory"),
		Command: append([]string{"/kaniko/executor", "--context=dir:///workspace"}, p.flags()...),
		Mounts: []rig.Mount{
			{Source: filepath.Join(p.dir, "context"), Target: "/workspace", ReadOnly: true},
			{Source: filepath.Join(p.dir, "home"), Target: "/home-of-test", ReadOnly: true},
			{Source: log, Target: "/dev/termination-log"},
			{Source: filepath.Join(p.dir, "out"), Target: "/out"},
		},
		Env: []string{"HOME=/home-of-test"},
	}
	for _, a := range p.options["podargs"] {
		s.Args = append(s.Args, strings.Fields(p.expand(a))...)
	}
	if p.one("place") == "shell" {
		s.Image = w.shell
		s.Command = append([]string{"/bin/sh", "-c", `"$@"; code=$?; ` + p.expand(p.one("after")) + "\nexit $code", "sh"}, s.Command...)
	}
	id, err := pod.Create(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pod.Remove(context.WithoutCancel(ctx), id); err != nil {
			t.Error(err)
		}
	})
	if err := pod.Init(ctx, id); err != nil {
		t.Fatal(err)
	}
	before := snapshot(ctx, t, pod, id)
	res, err := pod.Start(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	asFound(t, before, snapshot(ctx, t, pod, id))
	message, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return said{exit: res.Exit, stdout: res.Stdout, stderr: res.Stderr, termination: string(message)}
}

// onDisk sets up a container storage, with hako's image in it, on a file system
// of the given size.
func (w *world) onDisk(ctx context.Context, t *testing.T, size string) (*rig.Podman, string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk.img")
	dir, err := os.MkdirTemp(w.Dir, "") // podman wants short names
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"truncate", "-s", size, image}, {"mkfs.ext4", "-q", "-F", "-m", "0", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.WithoutCancel(ctx), "umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	pod, err := w.PodmanIn(filepath.Join(dir, "p"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pod.Close(); err != nil {
			t.Error(err)
		}
	})
	ref, err := pod.Scratch(ctx, "/kaniko/executor", "/kaniko/bin/hako")
	if err != nil {
		t.Fatal(err)
	}
	return pod, ref
}

// snapshot lists a container's files, but for hako's own directory.
func snapshot(ctx context.Context, t *testing.T, pod *rig.Podman, id string) []string {
	t.Helper()
	lines, err := pod.Files(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, "/kaniko") && !strings.HasPrefix(l, "/kaniko/executor ")
	})
}

// checkResult compares what an accepted input became: the lines of the image's
// files at the given paths with the case's section "result".
func (w *world) checkResult(ctx context.Context, t *testing.T, c *testCase, paths []string) {
	t.Helper()
	ref, err := name.ParseReference(w.Registry+"/result/"+c.name+":1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		t.Error(err)
		return
	}
	rc := mutate.Extract(img)
	defer rc.Close()
	lines, err := list(rc, strings.Fields(strings.Join(paths, " ")))
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(lines, "")
	if *update {
		c.set("result", got)
		if err := c.update(said{stderr: c.section("stderr"), termination: c.section("termination")}); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(c.section("result"), got); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
}

// list describes the files of a tar whose paths begin with one of prefixes.
func list(r io.Reader, prefixes []string) ([]string, error) {
	var lines []string
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			slices.Sort(lines)
			return lines, nil
		}
		if err != nil {
			return nil, err
		}
		n := "/" + strings.Trim(h.Name, "/")
		if !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(n, p) }) {
			continue
		}
		data, err := io.ReadAll(io.LimitReader(tr, 40))
		if err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("%s %c %04o %s%q\n", n, h.Typeflag, h.Mode, h.Linkname, data))
	}
}
