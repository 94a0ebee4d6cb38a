// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

const foreignProgram = `package main

import (
	"os"
	"runtime"
)

func main() {
	if err := os.WriteFile("/out", []byte(runtime.GOARCH), 0o644); err != nil {
		panic(err)
	}
}
`

// TestForeign runs a command of another platform. What has to come of it depends
// on whether the machine that the test is on has an emulator.
func TestForeign(t *testing.T) {
	w := start(t, false)
	arch := "arm64"
	if runtime.GOARCH == arch {
		arch = "amd64"
	}
	bctx := w.files(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY prog /\nRUN [\"/prog\"]\n", "prog.go": foreignProgram})
	prog := filepath.Join(bctx, "prog")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", prog, filepath.Join(bctx, "prog.go"))
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s, _ := w.spec(t, w.scratch(t), bctx, true, "--platform=linux/"+arch)
	res, err := w.pod.Run(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit != 0 {
		for _, want := range []string{"Dockerfile:3", "has no emulator for " + arch, "--index-tag", "tonistiigi/binfmt"} {
			if !strings.Contains(res.Stderr, want) {
				t.Errorf("the message has no %q:\n%s", want, res.Stderr)
			}
		}
		return
	}
	if got := w.contents(t, strings.TrimSpace(res.Stdout))["out"]; got != arch {
		t.Errorf("the command was run as %q, want %q", got, arch)
	}
}
