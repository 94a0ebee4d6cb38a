// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hako/internal/build"
	"hako/internal/progress"
)

// defaultCacheDir is where kaniko looks for base images.
const defaultCacheDir = "/cache"

// baseValues are the flags about the directory of base images.
type baseValues struct{ cacheDir, cacheDirSize string }

func (v *baseValues) addBaseFlags(f *pflag.FlagSet) {
	f.StringVar(&v.cacheDir, "cache-dir", defaultCacheDir, "`DIR` with base images for many builds; see hako warm")
	v.addSizeFlag(f)
}

func (v *baseValues) addSizeFlag(f *pflag.FlagSet) {
	f.StringVar(&v.cacheDirSize, "cache-dir-size", "", "most that --cache-dir may hold, a `SIZE` like 20g (default: all but a tenth of the volume)")
}

// bases turns the flags into options.
func (v *baseValues) bases(isAsked bool) (build.BaseOptions, error) {
	limit, err := parseSize("cache-dir-size", v.cacheDirSize)
	return build.BaseOptions{Dir: v.cacheDir, Asked: isAsked, Limit: limit}, err
}

// warmValues are the flags of kaniko's warmer.
type warmValues struct {
	images, dockerfiles, buildArgs, platforms []string
	cacheTTL                                  time.Duration
	progress, verbosity                       string
	isForced                                  bool
	baseValues
	kanikoValues
	registryValues
}

func (v *warmValues) addFlags(f *pflag.FlagSet) {
	f.SetNormalizeFunc(warmName)
	f.StringArrayVarP(&v.images, "image", "i", nil, "keep the image `NAME`, with a tag or a digest (repeatable)")
	f.StringArrayVarP(&v.dockerfiles, "dockerfile", "d", nil, "keep the images that the Dockerfile at `PATH`, or a URL, names (repeatable)")
	f.StringArrayVar(&v.buildArgs, "build-arg", nil, "`NAME=value` for the Dockerfile, or NAME to take it from the environment (repeatable)")
	f.StringArrayVar(&v.platforms, "platform", nil, "`os/arch[,…]` to keep images for; also --custom-platform (default: this machine's)")
	f.StringVarP(&v.cacheDir, "cache-dir", "c", defaultCacheDir, "`DIR` to keep them in")
	v.addSizeFlag(f)
	f.BoolVarP(&v.isForced, "force", "f", false, "fetch what is there already")
	f.DurationVar(&v.cacheTTL, "cache-ttl", 336*time.Hour, "age from which what was not used is checked, and fetched again if it is broken; 0 is none")
	f.StringVarP(&v.verbosity, "verbosity", "v", "info", "error, warn, info, debug or trace")
	f.StringVar(&v.progress, "progress", "auto", "auto, tty, plain, rawjson, quiet or none")
	f.StringVar(&v.logFormat, "log-format", "color", "of progress: color, text or json (an object a line)")
	f.BoolVar(&v.logTimestamp, "log-timestamp", false, "begin each line of progress with the time")
	v.addRegistryFlags(f)
	v.addMirrorFlags(f)
}

// warmName is canonicalName but for --dockerfile, which is the flag's name here.
func warmName(f *pflag.FlagSet, name string) pflag.NormalizedName {
	if name == "dockerfile" {
		return pflag.NormalizedName(name)
	}
	return canonicalName(f, name)
}

// warmCommand keeps base images for later builds; as warmer it is kaniko's.
func (a *App) warmCommand(isWarmer bool) *cobra.Command {
	var v warmValues
	cmd := &cobra.Command{
		Use:   "warm [flags] [IMAGE...]",
		Short: "Keep base images in a directory that builds share",
		Long: `Keep base images in a directory that builds share, so that a build with the same
--cache-dir downloads no layer of them: manifests, configs, layers and what is
in the layers. By default the directory is /cache; it is made if it is missing.

Images are named as arguments, with --image, or by a Dockerfile: those that its
stages begin with and that it copies or mounts from. What is there already is
not fetched again; what was not used for --cache-ttl is checked first.

Standard output carries a line reference@digest per image. The exit status is 1
if an image failed; of the program called as kaniko's warmer, if all failed.`,
		Example: `  hako warm --cache-dir /cache debian:bookworm golang:1.26
  hako warm --cache-dir /cache --dockerfile Dockerfile --build-arg VERSION=3`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	if isWarmer {
		cmd.Use = "warmer [flags] [IMAGE...]"
		cmd.Example = `  warmer --cache-dir=/cache --image=debian:bookworm --image=golang:1.26`
		cmd.CompletionOptions.DisableDefaultCmd = true
		cmd.SetFlagErrorFunc(flagError)
	}
	f := cmd.Flags()
	v.addFlags(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := applyEnv(f, a.Env, nil); err != nil {
			return err
		}
		if isWarmer {
			v.addMirrorEnv(a.Env)
		}
		v.images = append(v.images, args...)
		return a.runWarm(cmd.Context(), &v, isWarmer)
	}
	return cmd
}

func (a *App) runWarm(ctx context.Context, v *warmValues, isWarmer bool) error {
	opt, mode, err := v.options(a.Env)
	if err != nil {
		return err
	}
	opt.Registry.Program = "hako/" + a.Version
	if a.Warm == nil {
		return errors.New("warm is not part of this program yet")
	}
	a.Stderr = v.logWriter(a.Stderr)
	display, err := progress.NewDisplay(a.Stderr, mode, a.isTerminal)
	if err != nil {
		return usageErrorf("--progress: %v", err)
	}
	list, err := a.Warm(ctx, opt, display)
	if closeErr := display.Close(); closeErr != nil && !errors.Is(closeErr, progress.ErrStalled) {
		err = errors.Join(err, closeErr)
	}
	for _, k := range list {
		if k.Err != nil {
			fmt.Fprintf(a.Stderr, "not kept: %v\n", k.Err)
			continue
		}
		line := k.Ref
		if at := "@" + k.Digest.String(); len(line) < len(at) || line[len(line)-len(at):] != at {
			line += at
		}
		if _, werr := fmt.Fprintln(a.Stdout, line); werr != nil {
			err = errors.Join(err, fmt.Errorf("write reference: %w", werr))
		}
	}
	if failed, ok := errors.AsType[*build.WarmError](err); ok && isWarmer && failed.Failed < failed.All {
		return nil // what failed was told
	}
	return err
}

// options turns flags into options.
func (v *warmValues) options(env build.Env) (opt build.WarmOptions, mode string, err error) {
	if len(v.images)+len(v.dockerfiles) == 0 {
		return opt, "", usageErrorf("no image is named: add --image NAME or --dockerfile PATH")
	}
	if v.cacheTTL < 0 {
		return opt, "", usageErrorf("--cache-ttl=%s: want an age of 0 or more, like 336h", v.cacheTTL)
	}
	opt = build.WarmOptions{Images: v.images, Dockerfiles: v.dockerfiles, Force: v.isForced, TTL: v.cacheTTL, Env: env}
	if opt.Bases, err = v.bases(true); err != nil {
		return opt, "", err
	}
	if opt.Bases.Dir == "" {
		return opt, "", usageErrorf("--cache-dir is empty: want a directory")
	}
	if opt.BuildArgs, err = buildArgs(v.buildArgs, env); err != nil {
		return opt, "", err
	}
	if opt.Platforms, err = parsePlatforms(v.platforms); err != nil {
		return opt, "", err
	}
	if opt.Registry, err = v.registry(); err != nil {
		return opt, "", err
	}
	verbosity, err := parseVerbosity(v.verbosity)
	if err != nil {
		return opt, "", err
	}
	progress := build.Options{Progress: v.progress}
	if v.progress == "auto" && (verbosity == "error" || verbosity == "warn") {
		progress.Progress = "quiet"
	}
	err = v.setLog(&progress)
	return opt, progress.Progress, err
}
