// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package cli is the command line: it turns arguments and environment into
// [build.Options], shows what happens, and maps every error to text and exit
// code. Nothing below it reads the environment or prints.
//
// Results go to standard output, one "reference@digest" per line; everything
// else goes to standard error. The last line of a failed build starts with
// "error building image: ", whatever else is printed before it.
//
// Every flag can also be given as HAKO_<FLAG>, upper-case with "_" for "-"; a
// flag on the command line wins. A variable holds one value per line for flags
// that may be repeated: values themselves contain commas.
package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"hako/internal/build"
	"hako/internal/progress"
)

// A Runner runs one build; build.Run is one.
type Runner func(ctx context.Context, opt build.Options, sink progress.Sink) (*build.Result, error)

// An App is one invocation of the program. All it needs is handed in, so that
// several can run in one process.
type App struct {
	Version string
	Env     build.Env
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer

	// TerminationLog is the file for the message of a failed build; "" for none.
	TerminationLog string

	// Build runs "build" and the executor.
	Build Runner
	// Index makes an index of images that exist already.
	Index func(ctx context.Context, opt build.IndexOptions) (*build.Index, error)
	// Push sends an image that lies in a layout or an archive.
	Push func(ctx context.Context, opt build.PushOptions, sink progress.Sink) ([]build.Pushed, error)
	// Warm keeps base images for later builds.
	Warm func(ctx context.Context, opt build.WarmOptions, sink progress.Sink) ([]build.Warmed, error)
	// Diff compares two images and reports whether they are equal.
	Diff func(ctx context.Context, opt DiffOptions) (equal bool, err error)
	// Doctor finds out what this place allows.
	Doctor func(ctx context.Context, opt build.Options) (*build.Diagnosis, error)
	// Restore puts back what an interrupted build in place left parked.
	Restore func(ctx context.Context, opt build.Options) error

	asExecutor bool // the program's file is called executor
}

// DiffOptions are the arguments of "hako diff".
type DiffOptions struct {
	A, B     string // references, OCI layouts or archives
	Format   string // "text" or "json"
	Ignore   []string
	Registry build.Registry
	Platform string
	Env      build.Env
	Stdout   io.Writer
}

// Main runs the command that args ask for, args[0] being the program's name,
// and returns its exit code.
func (a *App) Main(ctx context.Context, args []string) int {
	if helper, ok := helperPersonality(args); ok {
		return a.runHelper(ctx, helper, args[1:])
	}
	name, rest := personality(args)
	a.asExecutor = len(args) > 0 && filepath.Base(args[0]) == "executor"
	var root *cobra.Command
	switch name {
	case "executor":
		root = a.executorCommand()
	case "warmer":
		root = a.warmCommand(true)
	default:
		root = a.rootCommand()
	}
	root.SetArgs(rest)
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil {
		a.printError(cmd, err)
	}
	return exitCode(ctx, err)
}

// personality finds out as what the program was called: the name of the file
// decides, and "hako executor …" is the executor too. The arguments returned
// are those after the name. In its own image the program has no other name than
// executor, so there a command's name as first argument makes it hako again.
func personality(args []string) (name string, rest []string) {
	if len(args) == 0 {
		return "hako", nil
	}
	name, rest = strings.TrimSuffix(filepath.Base(args[0]), ".exe"), args[1:]
	if name != "executor" && len(rest) > 0 && rest[0] == "executor" {
		name, rest = "executor", rest[1:]
	} else if name == "executor" && len(rest) > 0 && slices.Contains([]string{"auth", "build", "diff", "doctor", "index", "login", "plan", "push", "restore", "version", "warm"}, rest[0]) {
		name = "hako"
	}
	if rest == nil {
		rest = []string{} // cobra takes nil for "look at os.Args"
	}
	return name, rest
}

func (a *App) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "hako",
		Short: "Build container images from Dockerfiles inside an ordinary Kubernetes pod",
		Long: `hako builds container images from Dockerfiles inside an ordinary Kubernetes pod:
no daemon, no privileges, nothing to install on the node.

Called as "executor" (or "hako executor") it takes the flags of kaniko's executor.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Example: `  hako build --push -t registry.example.com/app:1.4 .   build and push
  hako plan --push -t registry.example.com/app:1.4 .    say what that would do
  hako doctor -d registry.example.com/app:1.4           may this account push there? what would RUN do here?
  source <(hako completion bash)                        complete commands and flags`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(a.buildCommand(), a.planCommand(), a.pushCommand(), a.diffCommand(), a.doctorCommand(), a.indexCommand(), a.restoreCommand(), a.versionCommand(), a.authCommand(), a.loginCommand(), a.warmCommand(false), a.personalitiesCommand())
	root.AddCommand(&cobra.Command{
		Use:                "executor",
		Short:              "Build as kaniko's executor does, with its flags",
		DisableFlagParsing: true,
		Run:                func(*cobra.Command, []string) {}, // Main takes it before cobra does
	})
	return root
}

func unknownCommand(cmd *cobra.Command, name string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	if near := nearest(name, names); near != "" {
		return usageErrorf("unknown command %q; did you mean %q?", name, near)
	}
	return usageErrorf("unknown command %q; there are %s", name, strings.Join(names, ", "))
}

func (a *App) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.Stdout, "hako %s\n", a.Version)
			return err
		},
	}
}

func (a *App) restoreCommand() *cobra.Command {
	var v buildValues
	cmd := &cobra.Command{
		Use:    "restore",
		Short:  "Put back what an interrupted build left moved away",
		Hidden: true,
		Args:   cobra.NoArgs,
	}
	v.addPlaceFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if a.Restore == nil {
			return fmt.Errorf("restore is not part of this program yet")
		}
		if err := applyEnv(cmd.Flags(), a.Env, nil); err != nil {
			return err
		}
		opt, err := v.placeOptions(a)
		if err != nil {
			return err
		}
		opt.Executor = a.asExecutor
		return a.Restore(cmd.Context(), opt)
	}
	return cmd
}
