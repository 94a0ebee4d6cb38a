// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"hako/internal/build"
	"hako/internal/progress"
	"hako/internal/sandbox"
)

// Main runs the program with the process's environment and returns its exit
// code. An empty version is looked up in what the Go tool recorded; supervisor
// is what sandbox.Init returned.
func Main(ctx context.Context, version string, args []string, supervisor *sandbox.Supervisor, stdin io.Reader, stdout, stderr io.Writer) int {
	app := &App{
		Version: versionOf(version),
		Env:     environ(),
		Stdin:   stdin,
		Stdout:  stdout,
		Stderr:  stderr,

		TerminationLog: TerminationLog,
		Diff:           compare,
		Build: func(ctx context.Context, opt build.Options, sink progress.Sink) (*build.Result, error) {
			opt.Supervisor = supervisor
			return build.Run(ctx, opt, sink)
		},
		Index:   build.CreateIndex,
		Push:    build.Push,
		Warm:    build.Warm,
		Doctor:  build.Diagnose,
		Restore: func(_ context.Context, opt build.Options) error { return build.Restore(opt) },
	}
	return app.Main(ctx, args)
}

// environ takes the snapshot of the environment that the whole program uses.
func environ() build.Env {
	env := build.Env{}
	for _, item := range os.Environ() {
		// Windows has names that start with "=".
		if name, value, ok := strings.Cut(item, "="); ok && name != "" {
			env[name] = value
		}
	}
	return env
}

func versionOf(version string) string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	return strings.Trim(info.Main.Version, "()")
}
