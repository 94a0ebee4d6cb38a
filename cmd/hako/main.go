// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Command hako builds container images from Dockerfiles inside an ordinary
// Kubernetes pod.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"hako/internal/cli"
	"hako/internal/sandbox"
)

var version string // set by the Makefile; empty means: ask the build info

func main() {
	args, supervisor := sandbox.Init(os.Args)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // pods have little memory, and most of our time is not in the heap
	}
	ctx, stop := cli.WithSignals(context.Background(), os.Exit)
	code := cli.Main(ctx, version, args, supervisor, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
