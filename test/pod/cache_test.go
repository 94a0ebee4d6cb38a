// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"strings"
	"testing"

	"hako/test/rig"
)

// TestCacheOnVolume: a cache in a directory on a volume is written while commands
// run in place, and that is not taken for what they did.
func TestCacheOnVolume(t *testing.T) {
	w := start(t, false)
	cache := t.TempDir()
	const dockerfile = "FROM base.test/busybox\nRUN echo 1 > /1\nRUN sleep 4; echo 2 > /2\nRUN echo 3 > /3\n"
	build := func(text string) (rig.PodResult, string) {
		s, _ := w.spec(t, w.scratch(t), w.files(t, map[string]string{"Dockerfile": w.Address(text)}), true, "--cache", "--cache-repo=oci:/store")
		s.Mounts = append(s.Mounts, rig.Mount{Source: cache, Target: "/store"})
		id, _ := w.create(t, s)
		res, err := w.pod.Start(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return res, res.Stderr
	}
	for i, want := range []string{"0 of 3 steps", "3 of 3 steps cached"} {
		res, log := build(dockerfile)
		if res.Exit != 0 || i == 1 && !strings.Contains(log, want) {
			t.Fatalf("build %d: exit status %d\n%s", i+1, res.Exit, log)
		}
	}
	if res, log := build("FROM base.test/busybox\nRUN echo x > /store/x\n"); res.Exit == 0 || !strings.Contains(log, "wrote to /store/x") {
		t.Errorf("what a command writes there: exit status %d\n%s", res.Exit, log)
	}
}
