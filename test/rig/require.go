// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"os"
	"os/exec"
	"testing"
)

// A Need is something of the machine that a test cannot do without.
type Need string

// The needs that tests have.
const (
	NeedRoot       Need = "root"
	NeedRunc       Need = "runc"
	NeedPodman     Need = "podman"
	NeedBusybox    Need = "busybox"
	NeedMmdebstrap Need = "mmdebstrap"
	NeedStrace     Need = "strace"
	NeedUidmap     Need = "newuidmap"
)

// Require skips t, naming the reason, where a need is not met. With CI=true a
// skip would hide a hole, so there it is a failure.
func Require(t testing.TB, needs ...Need) {
	t.Helper()
	for _, need := range needs {
		reason := need.missing()
		if reason == "" {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI must provide it: %s", reason)
		}
		t.Skipf("skipped: %s", reason)
	}
}

func (n Need) missing() string {
	if n == NeedRoot {
		if os.Geteuid() != 0 {
			return "needs root (buildkitd and podman with a pod's rights)"
		}
		return ""
	}
	if _, err := exec.LookPath(string(n)); err != nil {
		return "needs the program " + string(n)
	}
	return ""
}
