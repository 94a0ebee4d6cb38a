// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package build runs one build from start to end.
package build

import (
	"io"
	"slices"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/sandbox"
)

// Options say all there is to say about one build, as data. They are checked
// for their form by whoever fills them in (package cli); whether a thing can be
// done is decided by Run, which refuses what it cannot honour.
type Options struct {
	// Context is the build context as the user named it: a directory, "-" for a
	// tar (or a lone Dockerfile) on Stdin, or a URL like git://… or s3://….
	Context string
	// ContextSubPath is the directory in the context that is the context.
	ContextSubPath string
	// Git says how kaniko's git contexts are fetched.
	Git GitOptions
	// Dockerfile is a path or an http(s) URL; "-" means Stdin, "" means the file
	// "Dockerfile" of the context. A path is looked up as given, then below the
	// context.
	Dockerfile string
	// NamedContexts maps names, as FROM and --from= use them, to contexts.
	NamedContexts map[string]string
	// Target is the stage asked for; "" is the last one.
	Target string
	// Targets are the stages asked for with names of their own; where there are
	// any, Target, Destinations and Tags are empty. They are built in one run.
	Targets []Target
	// BuildArgs holds values given explicitly. SOURCE_DATE_EPOCH is among them,
	// wherever it came from.
	BuildArgs map[string]string
	// Platforms to build for, in the order asked; none means the base image's,
	// or else this machine's.
	Platforms []ocispecs.Platform
	// SingleSnapshot makes one layer of all that the build adds to the base image.
	SingleSnapshot bool
	// IgnorePaths are left out of new layers, with what is below; each name in
	// one may have wildcards.
	IgnorePaths []string
	Labels      map[string]string
	Annotations []Annotation
	// Syntax overrides the Dockerfile's "# syntax=" line; "builtin" ignores it.
	Syntax string
	// Call is what is wanted of the Dockerfile: CallBuild, or a question about it.
	Call string
	// CallFormat is how the answer is given: "" (text) or "json".
	CallFormat string

	// SharedIndex is the index that this build's image becomes part of. Then
	// there are no other names, and one platform at most.
	SharedIndex SharedIndex
	// Destinations are references to name and push the image as.
	Destinations []string
	// Tags are references that only name the image, unless Push is set.
	Tags []string
	// Push sends the Tags too.
	Push bool
	// NoPush keeps everything here, Destinations included.
	NoPush bool
	// PushEarly lets layers travel while the build goes on.
	PushEarly bool
	// TarPath is a docker archive to write, "" for none.
	TarPath string
	// OCILayoutPath is an OCI layout directory to write, "" for none.
	OCILayoutPath string
	Outputs       []Output

	// DigestFile receives the digest, without a newline; it may be an https URL,
	// which the digest is PUT to. Like the other result
	// files it is written in place and only after every push is done.
	DigestFile string
	// ImageNameDigestFile receives a line "repository@digest" per destination.
	ImageNameDigestFile string
	// ImageNameTagDigestFile receives a line "repository:tag@digest" per destination.
	ImageNameTagDigestFile string
	// MetadataFile receives the build's facts as JSON.
	MetadataFile string
	// ImageIDFile receives the image ID, the digest of the config, or of the
	// index of several platforms.
	ImageIDFile string
	// BuilderOutput is a directory whose file "images" receives a line of JSON
	// per reference that was pushed, as Cloud Build reads it.
	BuilderOutput string
	// BenchmarkFile receives the times of all steps as JSON.
	BenchmarkFile string

	// SourceDateEpoch is the time for everything the build creates; nil when it
	// was not set, or is symbolic (see BuildArgs), which the frontend resolves.
	SourceDateEpoch *time.Time
	// Reproducible fixes all times, so that equal inputs give equal digests.
	Reproducible bool
	// RewriteTimestamp limits the times of files in new layers to SourceDateEpoch.
	RewriteTimestamp bool
	// Compression of new layers: "gzip" or "zstd".
	Compression string
	// CompressionLevel is the compressor's own scale; -1 is its default.
	CompressionLevel int
	// OCIMediaTypes chooses the manifest's dialect; nil leaves it to the exporter.
	OCIMediaTypes *bool

	Secrets []Secret
	SSH     []SSHAgent

	// AddHosts are names that RUN steps can resolve.
	AddHosts []HostIP
	// Allow are BuildKit's entitlements that were given: "security.insecure",
	// "network.host".
	Allow []string
	// NetworkMode for RUN: "" or "default", "host", "none".
	NetworkMode string
	// Hostname that RUN steps see; "" is the default of the sandbox.
	Hostname string
	// ShmSize is the size of /dev/shm in bytes; 0 is the default of the sandbox.
	ShmSize int64
	Ulimits []Ulimit
	// Isolation is "auto", "inplace" or "namespace".
	Isolation string
	// LookAtAll makes every file be looked at after each command in place, also
	// where the kernel tells what changed.
	LookAtAll bool
	// Executor says that the program runs as kaniko's executor: alone in a
	// container that is its own to rearrange.
	Executor bool
	// Force runs in place even where nothing shows that this is a container.
	Force bool

	Registry Registry
	// Pull asks for the newest base image; references are always resolved anew,
	// so it changes nothing.
	Pull bool
	// NoCache asks for every step to be run.
	NoCache bool
	// NoCacheStages asks the same for single stages.
	NoCacheStages []string

	// Cache is where results are kept between builds.
	Cache CacheOptions

	// Bases is where base images are kept between builds.
	Bases BaseOptions

	// WorkDir is where roots, blobs and indexes are kept; "" is the default.
	WorkDir string
	// Progress is the mode of the display: "auto", "tty", "plain", "rawjson",
	// "quiet" or "none". The display itself is made by the caller.
	Progress string
	// Verbosity is "error", "warn", "info", "debug" or "trace".
	Verbosity string

	// Supervisor, if set, is told what to restore when this process is killed.
	Supervisor *sandbox.Supervisor

	// Env is the caller's environment. Nothing below reads it from the system.
	Env Env

	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// GitOptions say how a git context in kaniko's form is fetched.
type GitOptions struct {
	Branch            string // or tag; instead of one in the context's URL
	SingleBranch      bool   // fetch the history of that branch only
	RecurseSubmodules bool
	InsecureSkipTLS   bool
	Depth             int // of the history; 0 is all of it
}

// The questions and the one order that Options.Call can hold.
const (
	CallBuild   = "build"   // build the image
	CallCheck   = "check"   // run the Dockerfile checks
	CallOutline = "outline" // list arguments, secrets and the like of a target
	CallTargets = "targets" // list the targets
	CallPlan    = "plan"    // say what a build would do
)

// TargetPlace in the path of an output stands for the target's name.
const TargetPlace = "{target}"

// A Target is a stage that becomes an image.
type Target struct {
	Stage string   // "" is the last one
	Names []string // references, pushed if Push is set, or by the executor

	isNamed bool // one of Options.Targets
}

// targets returns the stages to build; there is at least one.
func (o *Options) targets() []Target {
	if len(o.Targets) == 0 {
		return []Target{{Stage: o.Target, Names: o.Names()}}
	}
	list := slices.Clone(o.Targets)
	for i := range list {
		list[i].isNamed = true
	}
	return list
}

// pushNames returns the references to push one of the targets to.
func (o *Options) pushNames(t Target) []string {
	switch {
	case !t.isNamed:
		return o.PushNames()
	case o.NoPush || !o.Push && !o.Executor:
		return nil
	}
	return unique(t.Names)
}

// Names returns every reference that images are to be known by, once each.
func (o *Options) Names() []string {
	lists := [][]string{o.Destinations, o.Tags}
	for _, t := range o.Targets {
		lists = append(lists, t.Names)
	}
	return unique(lists...)
}

// PushNames returns the references to push to, once each.
func (o *Options) PushNames() []string {
	switch {
	case o.NoPush:
		return nil
	case o.Push, o.Executor && len(o.Targets) > 0:
		return o.Names()
	default:
		return unique(o.Destinations)
	}
}

func unique(lists ...[]string) []string {
	var names []string
	for _, list := range lists {
		for _, name := range list {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// An Env is a snapshot of environment variables.
type Env map[string]string

// Get returns the value of the variable, "" if it is not set.
func (e Env) Get(name string) string { return e[name] }

// Environ returns the variables as "NAME=value", sorted.
func (e Env) Environ() []string {
	list := make([]string, 0, len(e))
	for name, value := range e {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list
}

// An Output is one place the result goes to besides registries.
type Output struct {
	Type  string            // "local", "tar", "oci" or "docker"
	Dest  string            // path, or "-" for Stdout
	Attrs map[string]string // what else was given, like "tar"="false"
}

// An Annotation is put on a manifest, an index, or a descriptor of the result.
type Annotation struct {
	Level    string             // "manifest", "index", "manifest-descriptor" or "index-descriptor"
	Platform *ocispecs.Platform // nil means every platform
	Key      string
	Value    string
}

// A Secret is a value that RUN steps may read and no layer may hold.
type Secret struct {
	ID    string
	File  string // path to read it from, if Value is nil
	Value []byte // the secret itself
}

// An SSHAgent is what RUN --mount=type=ssh reaches under an id.
type SSHAgent struct {
	ID    string
	Paths []string // one agent socket, or private key files
}

// A HostIP is a line of /etc/hosts.
type HostIP struct {
	Host string
	IP   string
}

// A Ulimit is a resource limit of RUN steps.
type Ulimit struct {
	Name string
	Soft int64
	Hard int64
}

// Registry says how registries are reached.
type Registry struct {
	Insecure                bool     // push over plain HTTP
	InsecurePull            bool     // pull over plain HTTP
	InsecureRegistries      []string // hosts reached over plain HTTP
	SkipTLSVerify           bool     // push without checking certificates
	SkipTLSVerifyPull       bool     // pull without checking certificates
	SkipTLSVerifyRegistries []string // hosts whose certificates are not checked
	// Certificates maps a registry host to a PEM file with further roots for it.
	Certificates map[string]string
	// ClientCertificates are what is shown to a registry host that asks for one.
	ClientCertificates map[string]CertificateFiles
	// Mirrors maps a registry to the places, host[/prefix], where images of it are
	// looked for before it is asked itself. Pushes do not go there.
	Mirrors map[string][]string
	// NoFallback keeps a registry with mirrors from being asked itself.
	NoFallback bool
	// HostsDirs are directories of containerd's hosts.toml files.
	HostsDirs []string
	// PushRetry and PullRetry are how often to try again at least; the registry
	// package retries passing faults in any case.
	PushRetry int
	PullRetry int
	// CredentialHelpers are the built-in sources of credentials to ask, of
	// keychain.BuiltIn; nil means all.
	CredentialHelpers []string
	// AzureConfig is a file of Kubernetes' Azure provider that names the identity
	// for Azure's registries; "" leaves it to the environment.
	AzureConfig string
	// StreamRetry is the same for a layer's stream that does not get on.
	StreamRetry int
	// IgnoreImmutable lets a build succeed whose tag may not be set again.
	IgnoreImmutable bool
	// Program is the program's name and version, as registries are told it.
	Program string
	// SkipPushCheck leaves out the test for push permission before the build.
	SkipPushCheck bool
}

// CertificateFiles are paths of PEM files.
type CertificateFiles struct{ Cert, Key string }
