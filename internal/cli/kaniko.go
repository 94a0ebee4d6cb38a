// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"hako/internal/build"
	"hako/internal/progress"
)

// kanikoValues are flags that came with kaniko, or that docker has and kaniko's
// users ask for.
type kanikoValues struct {
	singleSnapshot, logTimestamp bool
	printPlan                    bool
	ignorePaths                  []string
	imageFormat, iidFile         string
	snapshotMode                 string
	logFormat                    string
	builderOutput, benchmarkFile string
}

func (v *kanikoValues) addKanikoFlags(f *pflag.FlagSet) {
	f.BoolVar(&v.singleSnapshot, "single-snapshot", false, "make one layer of all that is added to the base image; also --squash")
	f.StringVar(&v.snapshotMode, "snapshot-mode", "", "`MODE` of finding changes: full looks at every file after each RUN in place, not only where the kernel tells of them")
	f.StringArrayVar(&v.ignorePaths, "ignore-path", nil, "leave `PATH` and what is below out of new layers; * ? [] match in a name (repeatable)")
	f.StringVar(&v.imageFormat, "image-format", "", "media types of the image: oci or docker (default oci, docker for --tar-path)")
	f.StringVar(&v.iidFile, "iidfile", "", "write the image ID, the digest of its config, to `FILE`")
	f.StringVar(&v.logFormat, "log-format", "color", "of progress: color, text or json (an object a line)")
	f.BoolVar(&v.logTimestamp, "log-timestamp", false, "begin each line of progress with the time")
}

// setKaniko turns these flags into options.
func (v *kanikoValues) setKaniko(opt *build.Options) error {
	if err := v.setLog(opt); err != nil {
		return err
	}
	if err := oneOf("snapshot-mode", v.snapshotMode, "", "full", "redo", "time"); err != nil {
		return err
	}
	opt.LookAtAll = v.snapshotMode == "full"
	if err := oneOf("image-format", v.imageFormat, "", "oci", "docker"); err != nil {
		return err
	}
	if v.imageFormat != "" {
		oci := v.imageFormat == "oci"
		if opt.OCIMediaTypes != nil && *opt.OCIMediaTypes != oci {
			return usageErrorf("--image-format=%s and -o type=image,oci-mediatypes=%t contradict each other", v.imageFormat, *opt.OCIMediaTypes)
		}
		opt.OCIMediaTypes = &oci
	}
	for _, p := range v.ignorePaths {
		if _, err := path.Match(p, ""); err != nil || strings.Trim(path.Clean("/"+p), "/") == "" {
			return usageErrorf("--ignore-path=%q: want a path of the image, like /var/cache or /opt/*/tmp", p)
		}
	}
	if strings.HasPrefix(opt.DigestFile, "http://") {
		return usageErrorf("--digest-file=%s: want a file or an https URL", opt.DigestFile)
	}
	opt.SingleSnapshot, opt.IgnorePaths, opt.ImageIDFile = v.singleSnapshot, v.ignorePaths, v.iidFile
	opt.BuilderOutput, opt.BenchmarkFile = v.builderOutput, v.benchmarkFile
	return nil
}

// setLog reads how progress is shown.
func (v *kanikoValues) setLog(opt *build.Options) error {
	if err := oneOf("log-format", v.logFormat, "color", "text", "json"); err != nil {
		return err
	}
	if v.logFormat != "color" || v.logTimestamp {
		if opt.Progress == "tty" || opt.Progress == "rawjson" {
			return usageErrorf("--progress=%s has a form of its own: leave out --log-format and --log-timestamp", opt.Progress)
		}
		if opt.Progress == "auto" {
			opt.Progress = "plain"
		}
	}
	return nil
}

// kanikoVariables are variables of kaniko that stand for flags.
func kanikoVariables() map[string][]string {
	return map[string][]string{
		"no-push":          {"KANIKO_NO_PUSH"},
		"work-dir":         {"KANIKO_DIR"},
		"cleanup":          {"KANIKO_CLEANUP"},
		"pre-cleanup":      {"KANIKO_PRE_CLEANUP"},
		"preserve-context": {"KANIKO_PRESERVE_CONTEXT"},
	}
}

// setKanikoEnv reads what else the environment says to kaniko's executor. There
// is nothing to do for SNAPSHOT_TIMEOUT_DURATION: no file is hashed that did not
// change.
func (v *kanikoValues) setKanikoEnv(env build.Env) error {
	v.builderOutput, v.benchmarkFile = env.Get("BUILDER_OUTPUT"), env.Get("BENCHMARK_FILE")
	if strings.Contains(v.benchmarkFile, "://") {
		return usageErrorf("BENCHMARK_FILE=%s: want a file", v.benchmarkFile)
	}
	if s := env.Get("KANIKO_PRINT_PLAN"); s != "" {
		var err error
		if v.printPlan, err = strconv.ParseBool(s); err != nil {
			return usageErrorf("KANIKO_PRINT_PLAN=%q is not a boolean", s)
		}
	}
	return nil
}

// featureFlags returns a line about kaniko's feature flags in the environment,
// "" if there are none.
func featureFlags(env build.Env) string {
	var names []string
	for name := range env {
		if strings.HasPrefix(name, "FF_KANIKO_") {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return fmt.Sprintf("%s: kaniko's feature flags have no effect here: what they switch on to be as docker build is always on", strings.Join(names, ", "))
}

// showPlan prints what the build is about to do.
func (a *App) showPlan(ctx context.Context, opt build.Options) error {
	if isStdin(opt.Context) || opt.Dockerfile == "-" {
		return usageErrorf("KANIKO_PRINT_PLAN: what comes from standard input can be read only once")
	}
	opt.Call, opt.CallFormat = build.CallPlan, ""
	result, err := a.Build(ctx, opt, progress.Discard{})
	if err != nil {
		return err
	}
	if result == nil || result.Plan == nil {
		return errors.New("make the plan: there is none")
	}
	return writePlan(a.Stderr, result.Plan, "")
}
