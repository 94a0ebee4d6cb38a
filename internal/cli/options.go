// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hako/internal/build"
)

// buildValues holds flags as they were given.
type buildValues struct {
	context, file, syntax, call                         string
	buildContexts, buildArgs, platforms, targets        []string
	indexTags, indexPlatforms                           []string
	indexID                                             string
	labels, annotations                                 []string
	tags, destinations, outputs                         []string
	dryRun, dryRunJSON                                  bool
	check, push, noPush, pushEarly, reproducible, quiet bool
	rewriteTimestamp                                    bool
	tarPath, ociLayoutPath                              string
	digestFile, nameDigestFile, nameTagDigestFile       string
	metadataFile, sourceDateEpoch                       string
	compression                                         string
	compressionLevel                                    int
	secrets, ssh, addHosts, ulimits, noCacheFilter, git []string
	contextSubPath                                      string
	network, shmSize, isolation, workDir                string
	allow                                               []string
	noCache, pull, force                                bool
	progress, verbosity                                 string
	kanikoValues
	contextValues
	registryValues
	cacheValues
	baseValues
	flags *pflag.FlagSet
}

type registryValues struct {
	insecure, insecurePull, skipTLS, skipTLSPull, skipPushCheck bool
	insecureRegistries, skipTLSRegistries, certificates         []string
	credentialHelpers                                           []string
	azureConfig                                                 string
	clientCerts, mirrors, maps, hostsDirs                       []string
	noFallback, ignoreImmutable                                 bool
	streamRetry                                                 int
	pushRetry, pullRetry                                        int
}

// addFlags defines all flags of a build and returns those without an effect.
func (v *buildValues) addFlags(cmd *cobra.Command) []*knownFlag {
	f := cmd.Flags()
	v.flags = f
	f.SetNormalizeFunc(canonicalName)
	f.SortFlags = true
	v.addSourceFlags(f)
	v.addResultFlags(f)
	v.addRunFlags(f)
	v.addPlaceFlags(f)
	v.addRegistryFlags(f)
	v.addCacheFlags(f)
	v.addBaseFlags(f)
	v.addPushFlags(f)
	v.addMirrorFlags(f)
	f.BoolVar(&v.skipPushCheck, "skip-push-permission-check", false, "do not test the permission to push before building")
	f.StringVar(&v.progress, "progress", "auto", "auto, tty, plain, rawjson, quiet or none")
	f.BoolVarP(&v.quiet, "quiet", "q", false, "show no progress")
	v.addKanikoFlags(f)
	known := addKnownFlags(f)
	completeValues(cmd)
	return known
}

func (v *buildValues) addSourceFlags(f *pflag.FlagSet) {
	f.StringVarP(&v.context, "context", "c", ".", "build context: a directory, - or tar://FILE for a tar, https://…, s3://…, gs://…, or a git URL[#REF[:DIR]]; of the executor git://HOST/PATH[#REF[#COMMIT]]")
	v.addContextFlags(f)
	f.StringVar(&v.contextSubPath, "context-sub-path", "", "use this `DIR` of the context as the context")
	f.StringArrayVar(&v.git, "git", nil, "`key=value` for a git context of the executor: branch, single-branch, recurse-submodules, insecure-skip-tls, depth (repeatable)")
	f.StringVarP(&v.file, "file", "f", "", "`PATH` of the Dockerfile, \"-\" for standard input; also --dockerfile (default CONTEXT/Dockerfile)")
	f.StringArrayVar(&v.buildContexts, "build-context", nil, "further context, `NAME=SOURCE` (repeatable)")
	f.StringArrayVar(&v.buildArgs, "build-arg", nil, "`NAME=value`, or NAME to take it from the environment (repeatable)")
	f.StringArrayVar(&v.targets, "target", nil, "build up to this `STAGE`; STAGE=NAME also names its image, and can be repeated for more")
	f.StringArrayVar(&v.platforms, "platform", nil, "`os/arch[,…]` to build for; also --custom-platform")
	f.StringVar(&v.syntax, "syntax", "", "use this frontend instead of the Dockerfile's syntax line: builtin")
	f.BoolVar(&v.check, "check", false, "check the Dockerfile and build nothing, as --call=check")
	f.BoolVar(&v.dryRun, "dryrun", false, "say what the build would do and do nothing, as hako plan does")
	f.StringVar(&v.call, "call", "build", "build, check, outline or targets; with \",format=json\"")
	f.BoolVar(&v.noCache, "no-cache", false, "run every step")
	f.StringArrayVar(&v.noCacheFilter, "no-cache-filter", nil, "run every step of this `STAGE` (repeatable)")
	f.BoolVar(&v.pull, "pull", false, "look base images up anew (always done)")
}

func (v *buildValues) addResultFlags(f *pflag.FlagSet) {
	f.StringArrayVarP(&v.tags, "tag", "t", nil, "`NAME` of the image; with --push also where it goes (repeatable)")
	f.StringArrayVarP(&v.destinations, "destination", "d", nil, "`NAME` of the image, and push it there (repeatable)")
	v.addIndexFlags(f)
	f.StringArrayVarP(&v.outputs, "output", "o", nil, "`PATH`, or local|tar|oci|docker,dest=PATH (repeatable)")
	f.StringArrayVar(&v.labels, "label", nil, "`key=value` for the config (repeatable)")
	f.StringArrayVar(&v.annotations, "annotation", nil, "`[LEVEL:]key=value` for the manifest (repeatable)")
	f.BoolVar(&v.push, "push", false, "push to every name")
	f.BoolVar(&v.noPush, "no-push", false, "push nothing")
	f.BoolVar(&v.pushEarly, "push-early", true, "send layers while the build goes on")
	f.StringVar(&v.tarPath, "tar-path", "", "write a docker archive to `FILE`")
	f.StringVar(&v.ociLayoutPath, "oci-layout-path", "", "write an OCI layout to `DIR`")
	f.StringVar(&v.digestFile, "digest-file", "", "write the digest to `FILE`, or PUT it to an https URL")
	f.StringVar(&v.nameDigestFile, "image-name-with-digest-file", "", "write repository@digest lines to `FILE`")
	f.StringVar(&v.nameTagDigestFile, "image-name-tag-with-digest-file", "", "write repository:tag@digest lines to `FILE`")
	f.StringVar(&v.metadataFile, "metadata-file", "", "write the build's facts as JSON to `FILE`")
	f.StringVar(&v.sourceDateEpoch, "source-date-epoch", "", "time of all that is created, in `SECONDS` since 1970; also SOURCE_DATE_EPOCH")
	f.BoolVar(&v.reproducible, "reproducible", false, "fix all times, so that equal inputs give an equal image")
	f.BoolVar(&v.rewriteTimestamp, "rewrite-timestamp", false, "limit times of files to the source date epoch")
	f.StringVar(&v.compression, "compression", "gzip", "of new layers: gzip or zstd")
	f.IntVar(&v.compressionLevel, "compression-level", -1, "of new layers; -1 is the default")
}

func (v *buildValues) addRunFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&v.secrets, "secret", nil, "`id=ID,src=FILE` or id=ID,env=NAME for RUN --mount=type=secret (repeatable)")
	f.StringArrayVar(&v.ssh, "ssh", nil, "`default`, or ID=SOCKET or ID=KEY, for RUN --mount=type=ssh (repeatable)")
	f.StringArrayVar(&v.addHosts, "add-host", nil, "`HOST:IP` known to RUN (repeatable)")
	f.StringVar(&v.network, "network", "default", "of RUN: default, host or none")
	f.StringArrayVar(&v.allow, "allow", nil, "let RUN have a `RIGHT`: security.insecure; network.host it has anyway (repeatable)")
	f.StringVar(&v.shmSize, "shm-size", "", "`SIZE` of /dev/shm in RUN")
	f.StringArrayVar(&v.ulimits, "ulimit", nil, "`NAME=SOFT[:HARD]` for RUN (repeatable)")
}

func (v *buildValues) addPlaceFlags(f *pflag.FlagSet) {
	f.StringVar(&v.isolation, "isolation", "auto", "where RUN runs: auto, inplace or namespace")
	f.StringVar(&v.workDir, "work-dir", "", "`DIR` for roots and layers; also --kaniko-dir")
	f.BoolVar(&v.force, "force", false, "run in place even if this does not look like a container")
	f.StringVarP(&v.verbosity, "verbosity", "v", "info", "error, warn, info, debug or trace")
}

func (v *registryValues) addRegistryFlags(f *pflag.FlagSet) {
	f.BoolVar(&v.insecure, "insecure", false, "push over plain HTTP")
	f.BoolVar(&v.insecurePull, "insecure-pull", false, "pull over plain HTTP")
	f.StringArrayVar(&v.insecureRegistries, "insecure-registry", nil, "plain HTTP for `HOST` (repeatable)")
	f.BoolVar(&v.skipTLS, "skip-tls-verify", false, "push without checking certificates")
	f.BoolVar(&v.skipTLSPull, "skip-tls-verify-pull", false, "pull without checking certificates")
	f.StringArrayVar(&v.skipTLSRegistries, "skip-tls-verify-registry", nil, "do not check the certificate of `HOST` (repeatable)")
	f.StringArrayVar(&v.certificates, "registry-certificate", nil, "trust the certificates of a file for a registry, `HOST=FILE` (repeatable)")
	v.addCredentialFlags(f)
	f.StringArrayVar(&v.clientCerts, "registry-client-cert", nil, "show a certificate to a registry that asks for one, `HOST=CERT,KEY` (repeatable)")
	f.IntVar(&v.pullRetry, "image-download-retry", 0, "try a pull again at least this often")
	f.IntVar(&v.streamRetry, "image-fs-extract-retry", 0, "resume a layer's stream that breaks off at least this often")
}

// addPushFlags defines the flags of what pushes.
func (v *registryValues) addPushFlags(f *pflag.FlagSet) {
	f.IntVar(&v.pushRetry, "push-retry", 0, "try a push again at least this often")
	f.BoolVar(&v.ignoreImmutable, "push-ignore-immutable-tag-errors", false, "succeed if a tag is there with another image and may not be set again")
}

func (v *registryValues) registry() (build.Registry, error) {
	certificates, err := keyValues("registry-certificate", v.certificates, true)
	if err != nil {
		return build.Registry{}, err
	}
	helpers, err := credentialHelpers(v.credentialHelpers)
	if err != nil {
		return build.Registry{}, err
	}
	clients, err := clientCertificates(v.clientCerts)
	if err != nil {
		return build.Registry{}, err
	}
	mirrors, err := registryMirrors(v.maps, v.mirrors)
	if err != nil {
		return build.Registry{}, err
	}
	return build.Registry{
		CredentialHelpers:       helpers,
		AzureConfig:             v.azureConfig,
		ClientCertificates:      clients,
		Mirrors:                 mirrors,
		NoFallback:              v.noFallback,
		IgnoreImmutable:         v.ignoreImmutable,
		StreamRetry:             v.streamRetry,
		HostsDirs:               v.hostsDirs,
		Insecure:                v.insecure,
		InsecurePull:            v.insecurePull,
		InsecureRegistries:      v.insecureRegistries,
		SkipTLSVerify:           v.skipTLS,
		SkipTLSVerifyPull:       v.skipTLSPull,
		SkipTLSVerifyRegistries: v.skipTLSRegistries,
		Certificates:            certificates,
		PushRetry:               v.pushRetry,
		PullRetry:               v.pullRetry,
		SkipPushCheck:           v.skipPushCheck,
	}, nil
}

// placeOptions are the options that doctor and restore need.
func (v *buildValues) placeOptions(a *App) (build.Options, error) {
	registry, err := v.registry()
	if err != nil {
		return build.Options{}, err
	}
	registry.Program = "hako/" + a.Version
	work := v.workDir
	if work != "" {
		// Overlays are mounted from another directory than this one.
		if work, err = filepath.Abs(work); err != nil {
			return build.Options{}, fmt.Errorf("--work-dir %s: %w", v.workDir, err)
		}
	}
	verbosity, err := parseVerbosity(v.verbosity)
	return build.Options{
		Isolation: v.isolation,
		WorkDir:   work,
		Force:     v.force,
		Verbosity: verbosity,
		Registry:  registry,
		Env:       a.Env,
		Stdin:     a.Stdin,
		Stdout:    a.Stdout,
		Stderr:    a.Stderr,
	}, err
}

// options turns flags into options; what has only one form to check is checked here.
func (v *buildValues) options(a *App) (build.Options, error) {
	opt, err := v.placeOptions(a)
	if err != nil {
		return opt, err
	}
	if opt.Context, err = v.bucketContext(v.context); err != nil {
		return opt, err
	}
	opt.Dockerfile = stdinFile(v.file)
	opt.Syntax = v.syntax
	opt.ContextSubPath = v.contextSubPath
	opt.Destinations, opt.Tags = v.destinations, v.tags
	opt.Push, opt.NoPush, opt.PushEarly = v.push, v.noPush, v.pushEarly
	opt.TarPath, opt.OCILayoutPath = v.tarPath, v.ociLayoutPath
	opt.DigestFile, opt.ImageNameDigestFile = v.digestFile, v.nameDigestFile
	opt.ImageNameTagDigestFile, opt.MetadataFile = v.nameTagDigestFile, v.metadataFile
	opt.Reproducible, opt.RewriteTimestamp = v.reproducible, v.rewriteTimestamp
	opt.Compression, opt.CompressionLevel = v.compression, v.compressionLevel
	opt.NetworkMode, opt.Allow = v.network, v.allow
	opt.Pull, opt.NoCache, opt.NoCacheStages = v.pull, v.noCache, v.noCacheFilter
	opt.Progress = v.progressMode(opt.Verbosity)

	for _, set := range []func(*build.Options, build.Env) error{
		v.setTargets, v.setMaps, v.setIndex, v.setCall, v.setLists, v.setRun, v.setEpoch,
	} {
		if err := set(&opt, a.Env); err != nil {
			return opt, err
		}
	}
	if err := v.setCache(&opt); err != nil {
		return opt, err
	}
	if opt.Bases, err = v.bases(v.flags.Changed("cache-dir")); err != nil {
		return opt, err
	}
	return opt, v.setKaniko(&opt)
}

func (v *buildValues) progressMode(verbosity string) string {
	if v.quiet || v.progress == "auto" && (verbosity == "error" || verbosity == "warn") {
		return "quiet"
	}
	return v.progress
}

func (v *buildValues) setMaps(opt *build.Options, env build.Env) (err error) {
	if opt.BuildArgs, err = buildArgs(v.buildArgs, env); err != nil {
		return err
	}
	if opt.NamedContexts, err = keyValues("build-context", v.buildContexts, true); err != nil {
		return err
	}
	if opt.Labels, err = keyValues("label", v.labels, false); err != nil {
		return err
	}
	if opt.Git, err = parseGit(v.git); err != nil {
		return err
	}
	opt.Platforms, err = parsePlatforms(v.platforms)
	return err
}

func (v *buildValues) setCall(opt *build.Options, _ build.Env) error {
	call, attr, hasAttr := strings.Cut(v.call, ",")
	if call == "lint" {
		call = build.CallCheck
	}
	if v.check {
		if call != build.CallBuild && call != build.CallCheck {
			return usageErrorf("--check and --call=%s contradict each other", call)
		}
		call = build.CallCheck
	}
	if !slices.Contains([]string{build.CallBuild, build.CallCheck, build.CallOutline, build.CallTargets}, call) {
		return usageErrorf("--call=%s: there are build, check, outline and targets", v.call)
	}
	if v.dryRun {
		if call != build.CallBuild {
			return usageErrorf("a dry run and --call=%s contradict each other", call)
		}
		if call = build.CallPlan; v.dryRunJSON {
			opt.CallFormat = "json"
		}
	}
	opt.Call = call
	if hasAttr {
		format, ok := strings.CutPrefix(attr, "format=")
		if !ok || format != "json" && format != "text" {
			return usageErrorf("--call=%s: want format=json or format=text after the comma", v.call)
		}
		if format == "json" {
			opt.CallFormat = format
		}
	}
	return nil
}

func (v *buildValues) setLists(opt *build.Options, env build.Env) error {
	for _, item := range v.outputs {
		if err := applyOutput(opt, item); err != nil {
			return err
		}
	}
	for _, item := range v.annotations {
		list, err := parseAnnotation(item, "manifest")
		if err != nil {
			return err
		}
		opt.Annotations = append(opt.Annotations, list...)
	}
	for _, item := range v.secrets {
		s, err := parseSecret(item, env)
		if err != nil {
			return err
		}
		opt.Secrets = append(opt.Secrets, s)
	}
	for _, item := range v.ssh {
		s, err := parseSSH(item, env)
		if err != nil {
			return err
		}
		opt.SSH = append(opt.SSH, s)
	}
	return nil
}

func (v *buildValues) setRun(opt *build.Options, _ build.Env) (err error) {
	for _, item := range v.addHosts {
		h, err := parseHost(item)
		if err != nil {
			return err
		}
		opt.AddHosts = append(opt.AddHosts, h)
	}
	for _, item := range v.ulimits {
		u, err := parseUlimit(item)
		if err != nil {
			return err
		}
		opt.Ulimits = append(opt.Ulimits, u)
	}
	opt.ShmSize, err = parseSize("shm-size", v.shmSize)
	return err
}

// setEpoch takes the flag, or the build argument, or the environment. Where it
// comes from makes no difference to the Dockerfile, which sees it as an ARG.
func (v *buildValues) setEpoch(opt *build.Options, env build.Env) error {
	const key = "SOURCE_DATE_EPOCH"
	value := v.sourceDateEpoch
	if value == "" {
		value = opt.BuildArgs[key]
	}
	if _, given := opt.BuildArgs[key]; value == "" && !given {
		value = env.Get(key)
	}
	if value == "" {
		return nil
	}
	opt.BuildArgs[key] = value
	seconds, err := strconv.ParseInt(value, 10, 64)
	switch {
	case err == nil && seconds < 0:
		return usageErrorf("%s=%s: want seconds since 1970", key, value)
	case err == nil:
		epoch := time.Unix(seconds, 0).UTC()
		opt.SourceDateEpoch = &epoch
	}
	return nil
}

func parseVerbosity(s string) (string, error) {
	switch s = strings.ToLower(s); s {
	case "panic", "fatal":
		return "error", nil
	case "warning":
		return "warn", nil
	case "error", "warn", "info", "debug", "trace":
		return s, nil
	}
	return "", usageErrorf("--verbosity=%s: there are error, warn, info, debug and trace", s)
}

// checkOptions finds what does not go together.
func checkOptions(opt *build.Options) error {
	if err := oneOf("isolation", opt.Isolation, "auto", "inplace", "namespace"); err != nil {
		return err
	}
	if err := oneOf("network", opt.NetworkMode, "", "default", "host", "none"); err != nil {
		return err
	}
	for _, right := range opt.Allow {
		if err := oneOf("allow", right, "security.insecure", "network.host"); err != nil {
			return err
		}
	}
	if err := oneOf("compression", opt.Compression, "gzip", "zstd"); err != nil {
		return err
	}
	for _, ref := range opt.Names() {
		named, err := reference.ParseNormalizedNamed(ref)
		if err != nil {
			return usageErrorf("%q is no name for an image: %v", ref, err)
		}
		if _, ok := named.(reference.Digested); ok {
			return usageErrorf("%q is no name for an image: the digest is what the build will tell", ref)
		}
	}
	if err := checkStreams(opt); err != nil {
		return err
	}
	if err := checkTargets(opt); err != nil {
		return err
	}
	if err := checkIndex(opt); err != nil {
		return err
	}
	if opt.Call != build.CallBuild {
		return nil
	}
	return checkResult(opt)
}

// checkStreams sees to it that standard input and output have one use each.
func checkStreams(opt *build.Options) error {
	if isStdin(opt.Context) && opt.Dockerfile == "-" {
		return usageErrorf("the context and the Dockerfile cannot both come from standard input")
	}
	toStdout := 0
	for _, out := range opt.Outputs {
		if out.Dest == "-" {
			toStdout++
			if out.Type == "local" {
				return usageErrorf("-o local: a directory cannot go to standard output; use -o tar,dest=-")
			}
		}
	}
	if toStdout > 1 {
		return usageErrorf("only one output can go to standard output")
	}
	return nil
}

// checkResult makes sure that the image goes where the user thinks it does. A
// name alone must not push by surprise, nor a build be for nothing.
func checkResult(opt *build.Options) error {
	if opt.Push && opt.NoPush {
		return usageErrorf("--push and --no-push contradict each other")
	}
	if opt.Push && len(opt.Names()) == 0 && len(opt.SharedIndex.Tags) == 0 {
		return usageErrorf("nowhere to push to: add -t REGISTRY/NAME:TAG")
	}
	if len(opt.PushNames()) > 0 || len(opt.SharedIndex.Tags) > 0 || opt.NoPush || len(opt.Outputs) > 0 || opt.TarPath != "" || opt.OCILayoutPath != "" {
		return nil
	}
	if opt.Executor {
		return usageErrorf("nothing to do with the result: add --destination, --tar-path, --oci-layout-path, or --no-push")
	}
	return usageErrorf("nothing to do with the result: add --push, -o oci,dest=…, or --no-push")
}

func oneOf(flag, value string, values ...string) error {
	if slices.Contains(values, value) {
		return nil
	}
	named := slices.DeleteFunc(slices.Clone(values), func(s string) bool { return s == "" })
	return usageErrorf("--%s=%s: there are %s", flag, value, strings.Join(named, ", "))
}
