// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package pod runs hako in containers with exactly the rights of an ordinary
// Kubernetes pod: default capabilities, default seccomp profile, a service
// account's mount, a termination log.
package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hako/test/rig"
)

// world is what the tests of this package share.
type world struct {
	*rig.Rig
	pod *rig.Podman
}

// start starts a rig for one test. Images are loaded anew each time, which
// keeps tests apart; Debian roots come from the repository's cache.
func start(t *testing.T, buildkit bool) *world {
	t.Helper()
	rig.Require(t, rig.NeedRoot, rig.NeedPodman, rig.NeedRunc, rig.NeedBusybox)
	r, err := rig.Start(t.Context(), rig.Options{BuildKit: buildkit, Hako: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close rig: %v", err)
		}
	})
	p, err := r.Podman(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &world{Rig: r, pod: p}
}

// scratch is the image that holds hako alone.
func (w *world) scratch(t *testing.T) string {
	t.Helper()
	image, err := w.pod.Scratch(t.Context(), "/kaniko/executor")
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// files writes a build context and returns its directory.
func (w *world) files(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(w.Address(data)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// spec is the container of an ordinary kaniko pod: the context at
// /workspace, the token of a service account below /var/run, the termination
// log, and a directory for what the test wants to see of the result.
func (w *world) spec(t *testing.T, image, bctx string, readOnly bool, args ...string) (s rig.PodSpec, out string) {
	t.Helper()
	out = t.TempDir()
	account := w.files(t, map[string]string{"token": "not a real token\n", "namespace": "default\n", "ca.crt": ""})
	log := filepath.Join(t.TempDir(), "termination-log")
	if err := os.WriteFile(log, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	return rig.PodSpec{
		Image: image,
		Mounts: []rig.Mount{
			{Source: bctx, Target: "/workspace", ReadOnly: readOnly},
			{Source: account, Target: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true},
			{Source: log, Target: "/dev/termination-log"},
			{Source: out, Target: "/result"},
		},
		Command: append([]string{
			"/kaniko/executor", "--context=dir:///workspace", "--destination=" + w.Registry + "/result:1",
			"--insecure-registry=" + w.Registry, "--build-arg=SOURCE_DATE_EPOCH=" + rig.DefaultEpoch, "--progress=plain",
		}, args...),
	}, out
}

// create makes a container and shows its files as they are before it starts.
func (w *world) create(t *testing.T, s rig.PodSpec) (id string, before []string) {
	t.Helper()
	id, err := w.pod.Create(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.pod.Remove(context.WithoutCancel(t.Context()), id); err != nil {
			t.Error(err)
		}
	})
	if err := w.pod.Init(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id, w.snapshot(t, id)
}

// snapshot lists a container's files, without what lies in hako's own
// directory beside the program.
func (w *world) snapshot(t *testing.T, id string) []string {
	t.Helper()
	lines, err := w.pod.Files(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for _, l := range lines {
		if strings.HasPrefix(l, "/kaniko") && !strings.HasPrefix(l, "/kaniko/executor ") {
			continue
		}
		kept = append(kept, l)
	}
	return kept
}

// asFound fails the test if a container's files differ from an earlier list.
func (w *world) asFound(t *testing.T, id string, before []string) {
	t.Helper()
	after := w.snapshot(t, id)
	missing, added := difference(before, after), difference(after, before)
	if len(missing)+len(added) == 0 {
		return
	}
	const most = 20
	t.Errorf("the container is not as it was found:\nbefore:\n  %s\nafter:\n  %s",
		strings.Join(head(missing, most), "\n  "), strings.Join(head(added, most), "\n  "))
}

func difference(a, b []string) []string {
	in := map[string]bool{}
	for _, l := range b {
		in[l] = true
	}
	var only []string
	for _, l := range a {
		if !in[l] {
			only = append(only, l)
		}
	}
	return only
}

func head(lines []string, n int) []string {
	if len(lines) > n {
		return append(lines[:n:n], fmt.Sprintf("... and %d more", len(lines)-n))
	}
	return lines
}
