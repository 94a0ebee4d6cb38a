// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/build"
	"hako/internal/progress"
)

// outcome is what came of a call of the program.
type outcome struct {
	opt            build.Options
	called         bool
	code           int
	stdout, stderr string
}

// run calls the program with a fake build.
func run(t *testing.T, env build.Env, result *build.Result, buildErr error, args ...string) outcome {
	t.Helper()
	var got outcome
	var stdout, stderr bytes.Buffer
	app := &App{
		Version: "test", Env: env, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr,
		Build: func(_ context.Context, opt build.Options, sink progress.Sink) (*build.Result, error) {
			got.opt, got.called = opt, true
			progress.Start(sink, "sha256:a", "a step").Done(nil)
			return result, buildErr
		},
	}
	got.code = app.Main(t.Context(), args)
	got.stdout, got.stderr = stdout.String(), stderr.String()
	return got
}

func TestOptions(t *testing.T) {
	t.Parallel()
	epoch := time.Unix(1700000000, 0).UTC()
	env := build.Env{"FROM_ENV": "e", "TOKEN": "t", "SSH_AUTH_SOCK": "/sock"}
	base := build.Options{
		Context: ".", Call: "build", NoPush: true, PushEarly: true, Compression: "gzip", CompressionLevel: -1,
		Isolation: "auto", NetworkMode: "default", Progress: "auto", Verbosity: "info",
		Labels: map[string]string{}, BuildArgs: map[string]string{}, NamedContexts: map[string]string{},
		Registry: build.Registry{Program: "hako/test", Certificates: map[string]string{}}, Cache: build.CacheOptions{TTL: 336 * time.Hour},
		Bases: build.BaseOptions{Dir: "/cache"},
	}
	tests := []struct {
		name string
		args string
		env  build.Env
		want func(o *build.Options)
	}{
		{"defaults", "hako build --no-push", nil, func(*build.Options) {}},
		{"context", "hako build --no-push /ctx -f x/Dockerfile", nil, func(o *build.Options) {
			o.Context, o.Dockerfile = "/ctx", "x/Dockerfile"
		}},
		{"kaniko", "/kaniko/executor --dockerfile=D --no-push", nil, func(o *build.Options) {
			o.Executor, o.Context, o.Dockerfile = true, "/workspace/", "D"
		}},
		{"kaniko by word", "hako executor --no-push=true --tarPath=/t --customPlatform linux/arm64", nil, func(o *build.Options) {
			o.Executor, o.Context, o.Dockerfile, o.TarPath = true, "/workspace/", "Dockerfile", "/t"
			o.Platforms = []ocispecs.Platform{{OS: "linux", Architecture: "arm64"}}
		}},
		{"build args", "hako build --no-push --build-arg A=b=c --build-arg FROM_ENV --build-arg UNSET --build-arg E=", nil, func(o *build.Options) {
			o.BuildArgs = map[string]string{"A": "b=c", "FROM_ENV": "e", "E": ""}
		}},
		{"platforms", "hako build --no-push --platform linux/amd64,linux/arm/v7", nil, func(o *build.Options) {
			o.Platforms = []ocispecs.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm", Variant: "v7"}}
		}},
		{"epoch from environment", "hako build --no-push", build.Env{"SOURCE_DATE_EPOCH": "1700000000"}, func(o *build.Options) {
			o.SourceDateEpoch, o.BuildArgs = &epoch, map[string]string{"SOURCE_DATE_EPOCH": "1700000000"}
		}},
		{"epoch argument wins", "hako build --no-push --build-arg SOURCE_DATE_EPOCH=1700000000", build.Env{"SOURCE_DATE_EPOCH": "1"}, func(o *build.Options) {
			o.SourceDateEpoch, o.BuildArgs = &epoch, map[string]string{"SOURCE_DATE_EPOCH": "1700000000"}
		}},
		{"epoch symbolic", "hako build --no-push --source-date-epoch context", nil, func(o *build.Options) {
			o.BuildArgs = map[string]string{"SOURCE_DATE_EPOCH": "context"}
		}},
		{"epoch switched off", "hako build --no-push --build-arg SOURCE_DATE_EPOCH=", build.Env{"SOURCE_DATE_EPOCH": "1"}, func(o *build.Options) {
			o.BuildArgs = map[string]string{"SOURCE_DATE_EPOCH": ""}
		}},
		{"secrets", "hako build --no-push --secret id=a,src=/f --secret id=b,env=TOKEN --secret id=TOKEN --secret id=c --secret id=d,src=TOKEN,type=env", nil, func(o *build.Options) {
			o.Secrets = []build.Secret{
				{ID: "a", File: "/f"},
				{ID: "b", Value: []byte("t")},
				{ID: "TOKEN", Value: []byte("t")},
				{ID: "c", File: "c"},
				{ID: "d", Value: []byte("t")},
			}
		}},
		{"ssh", "hako build --no-push --ssh default --ssh k=/a,/b", nil, func(o *build.Options) {
			o.SSH = []build.SSHAgent{{ID: "default", Paths: []string{"/sock"}}, {ID: "k", Paths: []string{"/a", "/b"}}}
		}},
		{"outputs", "hako build -o dir -o type=tar,dest=t.tar -o oci,dest=o,tar=false -o - -t app", nil, func(o *build.Options) {
			o.NoPush, o.Tags = false, []string{"app"}
			o.Outputs = []build.Output{
				{Type: "local", Dest: "dir"},
				{Type: "tar", Dest: "t.tar", Attrs: map[string]string{}},
				{Type: "oci", Dest: "o", Attrs: map[string]string{"tar": "false"}},
				{Type: "tar", Dest: "-"},
			}
		}},
		{"image output", `hako build -o type=image,"name=r.io/a:1,r.io/b:1",push=true,compression=zstd -o type=image,name=r.io/c`, nil, func(o *build.Options) {
			o.NoPush, o.Destinations, o.Tags, o.Compression = false, []string{"r.io/a:1", "r.io/b:1"}, []string{"r.io/c"}, "zstd"
		}},
		{"hosts and limits", "hako build --no-push --add-host a:10.0.0.1 --add-host b=[::1] --add-host c:::2 --ulimit nofile=1:2 --shm-size 64m --network=none", nil, func(o *build.Options) {
			o.AddHosts = []build.HostIP{{Host: "a", IP: "10.0.0.1"}, {Host: "b", IP: "::1"}, {Host: "c", IP: "::2"}}
			o.Ulimits, o.ShmSize, o.NetworkMode = []build.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}}, 64<<20, "none"
		}},
		{"annotations", "hako build --no-push --annotation a.b:c=d --annotation index,manifest[linux/arm64]:k=v=w", nil, func(o *build.Options) {
			arm := &ocispecs.Platform{OS: "linux", Architecture: "arm64"}
			o.Annotations = []build.Annotation{
				{Level: "manifest", Key: "a.b:c", Value: "d"},
				{Level: "index", Platform: arm, Key: "k", Value: "v=w"},
				{Level: "manifest", Platform: arm, Key: "k", Value: "v=w"},
			}
		}},
		{"variables", "hako build", build.Env{
			"HAKO_NO_PUSH": "true", "HAKO_DOCKERFILE": "D", "HAKO_BUILD_ARG": "A=1,2\nB=3\n", "HAKO_TARGET": "",
		}, func(o *build.Options) {
			o.Dockerfile, o.BuildArgs = "D", map[string]string{"A": "1,2", "B": "3"}
		}},
		{"flag before variable", "hako build --no-push --build-arg C=4 --target=x", build.Env{
			"HAKO_BUILD_ARG": "A=1", "HAKO_TARGET": "y",
		}, func(o *build.Options) {
			o.Target, o.BuildArgs = "x", map[string]string{"C": "4"}
		}},
		{"kaniko variables", "executor -d r.io/a", build.Env{"KANIKO_NO_PUSH": "true", "KANIKO_DIR": "/k"}, func(o *build.Options) {
			o.Executor, o.Context, o.Dockerfile, o.WorkDir, o.Destinations = true, "/workspace/", "Dockerfile", "/k", []string{"r.io/a"}
		}},
		{"kaniko flags without effect", "executor --no-push --cleanup --use-new-run=true --snapshotMode=redo --compressed-caching=false --ignore-var-run --skip-unused-stages --force-build-metadata --provenance=false -v warning", nil, func(o *build.Options) {
			o.Executor, o.Context, o.Dockerfile, o.Verbosity, o.Progress = true, "/workspace/", "Dockerfile", "warn", "quiet"
		}},
		{"registry", "executor --no-push --insecure --insecure-pull --insecure-registry a --insecure-registry b --skip-tls-verify --skip-tls-verify-pull --skip-tls-verify-registry c --registry-certificate h:5000=/ca --push-retry 3 --image-download-retry=2 --skip-push-permission-check", nil, func(o *build.Options) {
			o.Executor, o.Context, o.Dockerfile = true, "/workspace/", "Dockerfile"
			o.Registry = build.Registry{
				Program:  "hako/test",
				Insecure: true, InsecurePull: true, InsecureRegistries: []string{"a", "b"},
				SkipTLSVerify: true, SkipTLSVerifyPull: true, SkipTLSVerifyRegistries: []string{"c"},
				Certificates: map[string]string{"h:5000": "/ca"}, PushRetry: 3, PullRetry: 2, SkipPushCheck: true,
			}
		}},
		{"kaniko's cache", "executor --no-push --cache --cache-repo=r/c --cache-ttl=6h --no-push-cache --cache-run-layers=false --cache-copy-layers", nil, func(o *build.Options) {
			o.Executor, o.Context, o.Dockerfile = true, "/workspace/", "Dockerfile"
			o.Cache = build.CacheOptions{Enabled: true, Repo: "r/c", TTL: 6 * time.Hour, NoPush: true, NoRuns: true}
		}},
		{"buildx's caches", "hako build --no-push -t app:1 --cache-from=r/a:b --cache-from=type=registry,ref=r/c,mode=max --cache-from=type=local,src=d --cache-to=type=local,dest=e --cache-to=type=inline --explain-cache", nil, func(o *build.Options) {
			o.Tags = []string{"app:1"}
			o.Cache.From = []build.CachePlace{{Ref: "r/a:b"}, {Ref: "r/c"}, {Dir: "d"}}
			o.Cache.To = []build.CachePlace{{Dir: "e"}, {Ref: "app:1", Beside: true}}
			o.Cache.Explain = true
		}},
		{"buildx's bucket", "hako build --no-push --cache-from=type=s3,bucket=b,name=x;y --cache-to=type=s3,region=r,prefix=p/,blobs_prefix=bl/,manifests_prefix=m/,endpoint_url=http://e,use_path_style=1," +
			"access_key_id=i,secret_access_key=s,session_token=t,mode=max,upload_parallelism=8,touch_refresh=1h,ignore-error=true", build.Env{"AWS_BUCKET": "e"}, func(o *build.Options) {
			o.Cache.From = []build.CachePlace{{S3: build.S3Place{Bucket: "b", Name: "x"}}, {S3: build.S3Place{Bucket: "b", Name: "y"}}}
			o.Cache.To = []build.CachePlace{{S3: build.S3Place{
				Bucket: "e", Region: "r", Endpoint: "http://e", PathStyle: "true", AccessKeyID: "i", SecretKey: "s", SessionToken: "t",
				Prefix: "p/", Blobs: "bl/", Manifests: "m/", Uploads: 8, Refresh: time.Hour,
			}}}
		}},
		{"questions", "hako build --check", nil, func(o *build.Options) { o.Call, o.NoPush = "check", false }},
		{"questions with format", "hako build --call=outline,format=json", nil, func(o *build.Options) {
			o.Call, o.CallFormat, o.NoPush = "outline", "json", false
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			e := build.Env{}
			for _, m := range []build.Env{env, test.env} {
				for k, v := range m {
					e[k] = v
				}
			}
			got := run(t, e, &build.Result{}, nil, splitArgs(test.args)...)
			if got.code != 0 || !got.called {
				t.Fatalf("exit %d, stderr:\n%s", got.code, got.stderr)
			}
			want := base
			want.BuildArgs = map[string]string{}
			test.want(&want)
			ignore := cmpopts.IgnoreFields(build.Options{}, "Env", "Stdin", "Stdout", "Stderr")
			if diff := cmp.Diff(want, got.opt, ignore); diff != "" {
				t.Errorf("%s: (-want +got)\n%s", test.args, diff)
			}
		})
	}
}

// splitArgs splits at spaces; the double quotes of docker's CSV stay.
func splitArgs(s string) []string {
	return strings.Fields(s)
}

func TestPushNames(t *testing.T) {
	t.Parallel()
	tests := []struct {
		opt  build.Options
		want []string
	}{
		{build.Options{Tags: []string{"t"}}, nil},
		{build.Options{Tags: []string{"t"}, Push: true}, []string{"t"}},
		{build.Options{Tags: []string{"t", "d"}, Destinations: []string{"d"}, Push: true}, []string{"d", "t"}},
		{build.Options{Tags: []string{"t"}, Destinations: []string{"d"}}, []string{"d"}},
		{build.Options{Destinations: []string{"d"}, NoPush: true}, nil},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, test.opt.PushNames()); diff != "" {
			t.Errorf("%+v: %s", test.opt, diff)
		}
	}
}

func TestStdoutHoldsReferencesOnly(t *testing.T) {
	t.Parallel()
	result := &build.Result{
		Pushed:  []build.Pushed{{Ref: "r.io/a:1", Digest: "sha256:aa"}, {Ref: "r.io/b:1", Digest: "sha256:aa"}},
		Summary: build.Summary{Elapsed: 9100 * time.Millisecond, Steps: 5, Cached: 3, Downloaded: 89e6, Uploaded: 1.3e6, PeakMemory: 57 << 20, DiskHigh: 214e6},
	}
	got := run(t, nil, result, nil, "hako", "build", "-d", "r.io/a:1", "-d", "r.io/b:1")
	if want := "r.io/a:1@sha256:aa\nr.io/b:1@sha256:aa\n"; got.stdout != want {
		t.Errorf("stdout = %q, want %q", got.stdout, want)
	}
	want := "built in 9.1s · 3 of 5 steps cached · down 89 MB, up 1.3 MB · hako memory 57 MiB, disk 214 MB\n"
	if !strings.HasSuffix(got.stderr, want) || !strings.Contains(got.stderr, "a step") {
		t.Errorf("stderr = %q", got.stderr)
	}
	got = run(t, nil, result, nil, "hako", "build", "-q", "-d", "r.io/a:1", "-o", "-")
	if got.stdout != "" || got.stderr != "r.io/a:1@sha256:aa\nr.io/b:1@sha256:aa\n" {
		t.Errorf("with the image on stdout: stdout = %q, stderr = %q", got.stdout, got.stderr)
	}
}

type codeError int

func (e codeError) Error() string   { return fmt.Sprintf("npm ci: exit %d", int(e)) }
func (e codeError) ExitCode() int   { return int(e) }
func (e codeError) Explain() string { return " try     more memory" }

func TestExit(t *testing.T) {
	t.Parallel()
	src := &errdefs.Source{
		Info:   &pb.SourceInfo{Filename: "Dockerfile", Data: []byte("FROM a\nRUN b\nRUN c\nRUN d\n")},
		Ranges: []*pb.Range{{Start: &pb.Position{Line: 3}, End: &pb.Position{Line: 3}}},
	}
	tests := []struct {
		name   string
		err    error
		code   int
		stderr string
	}{
		{"plain", errors.New("no route"), 1, "error building image: no route\n"},
		{"code of RUN", fmt.Errorf("RUN: %w", codeError(42)), 42, " try     more memory\nerror building image: RUN: npm ci: exit 42\n"},
		{"killed", codeError(-1), 255, " try     more memory\nerror building image: npm ci: exit -1\n"},
		{"never 0", codeError(256), 1, " try     more memory\nerror building image: npm ci: exit 256\n"},
		{"several lines", errors.New("a\n b\n\nc"), 1, "a\n b\n\nc\nerror building image: a; b; c\n"},
		{"position", errdefs.WithSource(errors.New("no c"), src), 1,
			"Dockerfile:3: RUN c\n    2 | RUN b\n    3 > RUN c\n    4 | RUN d\nerror building image: Dockerfile:3: RUN c: no c\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := run(t, nil, nil, test.err, "hako", "build", "-q", "--no-push")
			if got.code != test.code || got.stderr != test.stderr || got.stdout != "" {
				t.Errorf("exit %d, stderr %q; want %d, %q", got.code, got.stderr, test.code, test.stderr)
			}
		})
	}
}

func TestExitAfterSignal(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(&SignalError{Signal: syscall.SIGTERM})
	if got := exitCode(ctx, fmt.Errorf("build: %w", context.Canceled)); got != 143 {
		t.Errorf("exit code = %d, want 143", got)
	}
	if got := exitCode(ctx, nil); got != 0 {
		t.Errorf("a build that was done anyway exits with %d", got)
	}
}

func TestAnswer(t *testing.T) {
	t.Parallel()
	got := run(t, nil, &build.Result{Answer: []byte("2 warnings\n"), Status: 1}, nil, "hako", "build", "--check")
	if got.code != 1 || got.stdout != "2 warnings\n" || strings.Contains(got.stderr, "error") {
		t.Errorf("exit %d, stdout %q, stderr %q", got.code, got.stdout, got.stderr)
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	env := build.Env{"TOKEN": "s3cr3t"}
	got := run(t, env, nil, errors.New("denied: s3cr3t"), "hako", "build", "--no-push", "--secret", "id=TOKEN")
	if strings.Contains(got.stderr, "s3cr3t") || !strings.Contains(got.stderr, "denied: ***") {
		t.Errorf("stderr = %q", got.stderr)
	}
	got = run(t, env, nil, nil, "hako", "build", "--no-push", "--secret", "s3cr3t,x")
	if strings.Contains(got.stderr, "s3cr3t") || got.code != 1 {
		t.Errorf("stderr = %q", got.stderr)
	}
}

func TestNotesOfFlagsWithoutEffect(t *testing.T) {
	t.Parallel()
	args := []string{"executor", "--no-push", "--use-new-run=true"}
	if got := run(t, nil, &build.Result{}, nil, args...); strings.Contains(got.stderr, "--use-new-run") {
		t.Errorf("note without being asked: %q", got.stderr)
	}
	got := run(t, nil, &build.Result{}, nil, append(args, "-v", "debug")...)
	if !strings.Contains(got.stderr, "--use-new-run has no effect") {
		t.Errorf("stderr = %q", got.stderr)
	}
}

func TestDiffExit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		equal bool
		err   error
		code  int
	}{{true, nil, 0}, {false, nil, 1}, {false, errors.New("no such image"), 2}} {
		var stderr bytes.Buffer
		app := &App{Stderr: &stderr, Stdout: &bytes.Buffer{}, Diff: func(context.Context, DiffOptions) (bool, error) { return test.equal, test.err }}
		if code := app.Main(t.Context(), []string{"hako", "diff", "a", "b"}); code != test.code {
			t.Errorf("equal %v, error %v: exit %d, want %d", test.equal, test.err, code, test.code)
		}
		if (stderr.Len() > 0) != (test.err != nil) {
			t.Errorf("equal %v, error %v: stderr %q", test.equal, test.err, stderr.String())
		}
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"push", "no-push", "platform", "destination"}
	for in, want := range map[string]string{"pusch": "push", "plattform": "platform", "nopush": "no-push", "qqqqqqqq": ""} {
		if got := nearest(in, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", in, got, want)
		}
	}
}
