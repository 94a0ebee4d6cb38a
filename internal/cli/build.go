// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/console"
	"github.com/spf13/cobra"

	"hako/internal/build"
	"hako/internal/progress"
)

// buildCommand is "hako build", which speaks docker's and kaniko's flags alike.
func (a *App) buildCommand() *cobra.Command {
	var v buildValues
	cmd := &cobra.Command{
		Use:   "build [flags] [CONTEXT]",
		Short: "Build an image from a Dockerfile",
		Long: `Build an image from a Dockerfile.

CONTEXT is the directory the Dockerfile's COPY reads from (default "."), or "-"
for a tar on standard input. Standard output carries a line reference@digest per
destination and nothing else.

Every flag can be given as HAKO_<FLAG> too, like HAKO_BUILD_ARG; a variable holds
one value per line. Flags of kaniko and of docker build that have nothing to do
here are accepted.`,
		Example: `  hako build --push -t registry.example.com/app:1.4 .
  hako build -o oci,dest=app.tar .
  hako build --no-push --target test .`,
		Args: cobra.MaximumNArgs(1),
	}
	known := v.addFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := v.setContext(cmd, args, a.Env); err != nil {
			return err
		}
		return a.runBuild(cmd.Context(), &v, known, false)
	}
	return cmd
}

// setContext takes the flags from the environment and the context from args.
func (v *buildValues) setContext(cmd *cobra.Command, args []string, env build.Env) error {
	if err := applyEnv(cmd.Flags(), env, nil); err != nil {
		return err
	}
	if len(args) == 1 {
		if cmd.Flags().Changed("context") {
			return usageErrorf("the context is given twice: %q and --context %q", args[0], v.context)
		}
		v.context = args[0]
	}
	return nil
}

// executorCommand is kaniko's executor: the same flags, with its defaults.
func (a *App) executorCommand() *cobra.Command {
	var v buildValues
	cmd := &cobra.Command{
		Use:   "executor [flags]",
		Short: "Build an image as kaniko's executor does",
		Long: `Build an image from a Dockerfile and push it, with the flags of kaniko's executor.

Every flag can be given as HAKO_<FLAG> too, like HAKO_DESTINATION; a variable holds
one value per line. Variables of kaniko, like KANIKO_NO_PUSH and KANIKO_DIR, are
read as well.`,
		Example:       `  executor --context dir:///workspace --destination registry.example.com/app:1.4`,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetFlagErrorFunc(flagError)
	known := v.addFlags(cmd)
	setDefault(cmd, "context", "/workspace/")
	setDefault(cmd, "file", "Dockerfile")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := applyEnv(cmd.Flags(), a.Env, kanikoVariables()); err != nil {
			return err
		}
		if err := v.setKanikoEnv(a.Env); err != nil {
			return err
		}
		v.addMirrorEnv(a.Env)
		return a.runBuild(cmd.Context(), &v, known, true)
	}
	return cmd
}

func setDefault(cmd *cobra.Command, name, value string) {
	f := cmd.Flags().Lookup(name)
	f.DefValue = value
	_ = f.Value.Set(value) // a string takes every value
}

// runBuild is what both commands do once the flags are known.
func (a *App) runBuild(ctx context.Context, v *buildValues, known []*knownFlag, executor bool) error {
	for _, k := range known {
		if err := k.check(); err != nil {
			return err
		}
	}
	opt, err := v.options(a)
	if err != nil {
		return err
	}
	opt.Executor = executor
	if err := checkOptions(&opt); err != nil {
		return err
	}
	if a.Build == nil {
		return errors.New("building is not part of this program yet")
	}
	a.Stderr = v.logWriter(a.Stderr)
	if note := featureFlags(a.Env); executor && note != "" {
		fmt.Fprintln(a.Stderr, note)
	}
	if v.printPlan && opt.Call == build.CallBuild {
		if err := a.showPlan(ctx, opt); err != nil {
			return err
		}
	}
	if opt.Verbosity == "debug" || opt.Verbosity == "trace" {
		for _, k := range known {
			if note := k.note(); note != "" {
				fmt.Fprintln(a.Stderr, note)
			}
		}
	}
	a.hintAtStdin(&opt)
	return a.showBuild(ctx, opt)
}

// showBuild runs the build under a display and prints what it came to.
func (a *App) showBuild(ctx context.Context, opt build.Options) error {
	display, err := progress.NewDisplay(a.Stderr, opt.Progress, a.isTerminal)
	if err != nil {
		return usageErrorf("--progress: %v", err)
	}
	termination := a.openTermination(&opt)
	if termination != nil {
		defer termination.Close()
	}
	for _, s := range opt.Secrets {
		display.Redact(s.Value)
	}
	result, err := a.Build(ctx, opt, display)
	// A terminal that went away is no reason to call a finished build failed.
	if closeErr := display.Close(); closeErr != nil && !errors.Is(closeErr, progress.ErrStalled) {
		err = errors.Join(err, closeErr)
	}
	if result != nil && result.Plan != nil {
		err = errors.Join(err, writePlan(a.Stdout, result.Plan, opt.CallFormat))
	}
	if err != nil {
		err = cleanError{err, display}
		if termination != nil {
			writeTermination(termination, err, exitCode(ctx, err))
		}
		return err
	}
	if opt.Cache.Explain && result.Plan == nil {
		writeOutcomes(a.Stderr, result.Cache)
	}
	if !isQuiet(opt.Progress) && result.Plan == nil {
		fmt.Fprintln(a.Stderr, summaryLine(result.Summary))
	}
	return a.printResult(&opt, result)
}

// printResult writes the answer or the references to standard output, unless
// that carries the image itself.
func (a *App) printResult(opt *build.Options, result *build.Result) error {
	out := a.Stdout
	if slices.ContainsFunc(opt.Outputs, func(o build.Output) bool { return o.Dest == "-" }) {
		out = a.Stderr
	}
	if _, err := out.Write(result.Answer); err != nil {
		return fmt.Errorf("write answer: %w", err)
	}
	for _, p := range result.Pushed {
		if _, err := fmt.Fprintf(out, "%s@%s\n", p.Ref, p.Digest); err != nil {
			return fmt.Errorf("write reference: %w", err)
		}
	}
	if result.Status != 0 {
		return statusError(result.Status)
	}
	return nil
}

// cleanError shows an error without the values of secrets.
type cleanError struct {
	error
	display *progress.Display
}

func (e cleanError) Error() string { return e.display.Clean(e.error.Error()) }

func (e cleanError) Unwrap() error { return e.error }

func isQuiet(mode string) bool { return mode == "quiet" || mode == "none" || mode == "rawjson" }

// isTerminal reports whether w can be redrawn. TERM=dumb says that it cannot.
func (a *App) isTerminal(w io.Writer) bool {
	return a.Env.Get("TERM") != "dumb" && isConsole(w)
}

// isConsole reports whether a stream is a terminal.
func isConsole(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := console.ConsoleFromFile(f)
	return err == nil
}

// summaryLine is the closing line of a build; figures not known are left out.
func summaryLine(s build.Summary) string {
	parts := []string{fmt.Sprintf("built in %.1fs", s.Elapsed.Seconds())}
	if s.Steps > 0 && s.Cached > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d steps cached", s.Cached, s.Steps))
	}
	if s.Downloaded > 0 || s.Uploaded > 0 {
		parts = append(parts, fmt.Sprintf("down %s, up %s", decimal(s.Downloaded), decimal(s.Uploaded)))
	}
	var here []string
	if s.PeakMemory > 0 {
		here = append(here, fmt.Sprintf("hako memory %d MiB", s.PeakMemory>>20))
	}
	if s.DiskHigh > 0 {
		here = append(here, "disk "+decimal(s.DiskHigh))
	}
	if len(here) > 0 {
		parts = append(parts, strings.Join(here, ", "))
	}
	return strings.Join(parts, " · ")
}

// decimal prints bytes with units of 1000, as registries and disks are counted.
func decimal(n int64) string {
	const units = "kMGT"
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1000, 0
	for f >= 999.5 && unit < len(units)-1 {
		f, unit = f/1000, unit+1
	}
	if f < 10 {
		return fmt.Sprintf("%.1f %cB", f, units[unit])
	}
	return fmt.Sprintf("%.0f %cB", f, units[unit])
}
