// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"strings"
	"testing"
)

// The container's own /etc/resolv.conf does not get into an image by being moved,
// where the runtime has mounted none that would be busy.
func TestMovedSystemFile(t *testing.T) {
	w := start(t, false)
	image := w.scratch(t)
	for command, fails := range map[string]bool{
		"mv /etc/resolv.conf /stolen":                   true,
		"ln /etc/resolv.conf /stolen":                   true,
		"rm /etc/resolv.conf":                           false,
		"echo x > /etc/new && mv /etc/new /etc/renamed": false,
	} {
		dockerfile := w.Address("FROM base.test/busybox\nRUN " + command + "\n")
		s, _ := w.spec(t, image, w.files(t, map[string]string{"Dockerfile": dockerfile}), true)
		s.Args = append(s.Args, "--dns=none")
		res, err := w.pod.Run(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if (res.Exit != 0) != fails || fails && !strings.Contains(res.Stderr, "moved or linked /etc/resolv.conf") {
			t.Errorf("%s: exit status %d\n%s", command, res.Exit, res.Stderr)
		}
	}
}
