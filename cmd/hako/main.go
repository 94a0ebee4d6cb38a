// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Command hako builds container images from Dockerfiles inside an ordinary
// Kubernetes pod.
package main

import (
	"context"
	"os"

	"hako/internal/cli"
)

var version string // set by the Makefile; empty means: ask the build info

func main() {
	// The re-exec entry points of package sandbox belong here, before all else.
	ctx, stop := cli.WithSignals(context.Background(), os.Exit)
	code := cli.Main(ctx, version, os.Args, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
