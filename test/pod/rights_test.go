// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"strings"
	"testing"

	"hako/test/rig"
)

// The container must have the rights of an ordinary pod and not one more, or
// all else in this package proves nothing.
func TestRights(t *testing.T) {
	w := start(t, false)
	image, err := w.pod.BusyboxPod(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	run := func(command string) rig.PodResult {
		t.Helper()
		res, err := w.pod.Run(t.Context(), rig.PodSpec{Image: image, Command: []string{"/bin/sh", "-c", command}})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	if got := run("grep CapEff /proc/self/status").Stdout; strings.TrimSpace(got) != "CapEff:\t"+rig.PodCapabilities {
		t.Errorf("capabilities: got %q, want %s", got, rig.PodCapabilities)
	}
	for _, command := range []string{
		"mount -t tmpfs none /tmp", "mount --bind /tmp /srv", "unshare -m true", "unshare -U true", "unshare -p -f true",
	} {
		if res := run(command); res.Exit == 0 || !strings.Contains(res.Stderr, "ermi") && !strings.Contains(res.Stderr, "denied") {
			t.Errorf("%s: exit %d, %q; want it refused", command, res.Exit, res.Stderr)
		}
	}
	for _, command := range []string{"chroot / true", "mknod /x c 1 3", "chown 5:6 /tmp"} {
		if res := run(command); res.Exit != 0 {
			t.Errorf("%s: exit %d, %q; want it allowed", command, res.Exit, res.Stderr)
		}
	}
}

// TestUnfiltered builds in a pod as most kubelets make it, without a filter of
// system calls, so that it could enter a user namespace: it stays in place,
// where a RUN makes device nodes as it does under kaniko.
func TestUnfiltered(t *testing.T) {
	w := start(t, false)
	s, _ := w.spec(t, w.scratch(t), w.files(t, map[string]string{"Dockerfile": "FROM base.test/busybox\nRUN mknod /null c 1 3\n"}), true)
	s.Args = append(s.Args, "--security-opt=seccomp=unconfined")
	res, err := w.pod.Run(t.Context(), s)
	if err != nil || res.Exit != 0 || !strings.Contains(res.Stderr, "inplace sandbox (no namespaces here: only a user namespace") {
		t.Errorf("%v, exit status %d\n%s", err, res.Exit, res.Stderr)
	}
}
