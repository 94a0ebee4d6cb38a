// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"

	"hako/test/rig"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	n                 int
	small, verbose    bool
	only, out, engine string
	hakoArgs          string
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.n, "n", 5, "runs of each; the median counts")
	f.BoolVar(&o.small, "small", false, "a tenth of the size, to see that all works")
	f.BoolVar(&o.verbose, "v", false, "show what the builders say")
	f.StringVar(&o.only, "w", "", "only these workloads, such as W1,W4")
	f.StringVar(&o.out, "o", "", "write the report to this file too")
	f.StringVar(&o.engine, "engine", "all", "both, hako, buildkit, or all: both, and buildah and podman where installed")
	f.StringVar(&o.hakoArgs, "hako-args", "", "more arguments for hako, separated by spaces")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.n < 1 || f.NArg() > 0 || !slices.Contains([]string{"all", "both", "hako", "buildkit"}, o.engine) {
		return o, errors.New("usage: bench [-n RUNS] [-small] [-w W1,W4] [-engine both|hako|buildkit|all] [-o FILE]")
	}
	return o, nil
}

// A bench is what all measurements share.
type bench struct {
	options  options
	rig      *rig.Rig
	registry *registry
	contexts func() error // ends the filesystem of the contexts
	hakoArgs []string
	// buildctlArgs are further arguments of BuildKit's builds.
	buildctlArgs []string
	failed       []string // how runs of hako ended that did not build
}

// A result is one run.
type result struct {
	wall           time.Duration
	engine, others int64 // resident set of the biggest process, and what those beside it have for themselves
	cgroup         int64 // all of the container with its page cache
	kills          int64 // processes that the memory limit killed
	disk           int64
	layers         int64 // bytes of the layers that the build made
	traffic        traffic
}

// A row is one line of the report.
type row struct {
	name, what      string
	memory          string
	hako, buildkit  []result
	fetch           []result // fetching and inflating the base
	others          map[string][]result
	again           bool // hako knew the base
	target          float64
	againstBuildKit bool
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	b := &bench{options: o, hakoArgs: strings.Fields(o.hakoArgs)}
	if err := b.start(ctx); err != nil {
		return errors.Join(err, b.close())
	}
	rows, err := b.measure(ctx)
	if err = errors.Join(err, b.close()); err != nil {
		return err
	}
	text := b.report(ctx, rows)
	if n := len(b.failed); n > 0 {
		text += fmt.Sprintf("\n%d runs of hako failed and are not counted:\n\n- %s\n", n, strings.Join(b.failed, "\n- "))
	}
	fmt.Print(text)
	if o.out != "" {
		return os.WriteFile(o.out, []byte(text), 0o644)
	}
	return nil
}

func (b *bench) logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

func (b *bench) start(ctx context.Context) error {
	for _, program := range []string{"podman", "runc", "pigz", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: install the package %s", err, program)
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, for buildkitd and for podman with a pod's rights")
	}
	host, err := freeAddress(ctx)
	if err != nil {
		return err
	}
	if b.rig, err = rig.Start(ctx, rig.Options{Hako: true}); err != nil {
		return err
	}
	if b.contexts, err = b.mountVolume(ctx, filepath.Join(b.rig.Dir, "contexts")); err != nil {
		return err
	}
	program, err := b.rig.Tool(ctx, "registry")
	if err != nil {
		return err
	}
	dir := b.rig.Cache("bench", "registry")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b.registry, err = startRegistry(ctx, program, host, dir, b.rig.Dir)
	return err
}

func (b *bench) close() error {
	var errs []error
	if b.registry != nil {
		errs = append(errs, b.registry.stop())
	}
	if b.contexts != nil {
		errs = append(errs, b.contexts())
	}
	if b.rig != nil {
		errs = append(errs, b.rig.Close())
	}
	return errors.Join(errs...)
}

// volumeUsed is what is in use on the volume of the run.
func (b *bench) volumeUsed() int64 { return filesystemUsed(filepath.Join(b.rig.Dir, "v")) }

// settle lets what came before reach the disk, so that nobody pays for another.
func (b *bench) settle() { unix.Sync() }

func (b *bench) measure(ctx context.Context) ([]row, error) {
	s := fullSizes()
	if b.options.small {
		s = smallSizes()
	}
	bases := map[string]base{}
	for repo, plan := range map[string]func() basePlan{
		"busybox": func() basePlan { return basePlan{} },
		s.repo:    func() basePlan { return planBase(s.entries, s.bytes) },
	} {
		var err error
		if bases[repo], err = b.pushBase(ctx, repo, plan); err != nil {
			return nil, err
		}
	}
	if err := b.registry.remember(); err != nil {
		return nil, err
	}
	var rows []row
	c := newContent()
	if err := b.writeContext(workload{name: "warm", dockerfile: "FROM scratch\nCOPY f0/0 /\n", files: 1, bytes: 10}, c); err != nil {
		return nil, fmt.Errorf("write context: %w", err)
	}
	for _, w := range workloads(b.registry.host, s) {
		if b.options.only != "" && !slices.Contains(strings.Split(b.options.only, ","), w.name) {
			continue
		}
		if err := b.writeContext(w, c); err != nil {
			return nil, fmt.Errorf("write context of %s: %w", w.name, err)
		}
		more, err := b.workload(ctx, w, bases[w.base])
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

// workload runs hako, BuildKit and, where that is the measure, the fetching of
// the base in turn, and gives one row, or two where hako is run again with what
// it has learned.
func (b *bench) workload(ctx context.Context, w workload, on base) ([]row, error) {
	if w.cached {
		return b.cachedRuns(ctx, w, on)
	}
	first := row{name: w.name, what: w.what, memory: w.memory, target: w.target, againstBuildKit: !w.fetch, others: map[string][]result{}}
	again := row{name: w.name + " again", what: "the same with the base's index known", memory: w.memory, again: true}
	for i := range b.options.n {
		if w.fetch {
			res, err := b.fetch(ctx, on)
			if err != nil {
				return nil, err
			}
			first.fetch = append(first.fetch, res)
		}
		if b.options.engine != "buildkit" {
			runs := []*row{&first}
			if w.fetch {
				runs = append(runs, &again)
			}
			err := b.withVolume(ctx, func(volume string) error { return b.hakoRuns(ctx, volume, w, on, runs) })
			if err != nil {
				// A build that fails is a finding and no reason to lose the others.
				b.logf("%s run %d: hako FAILED: %v", w.name, i+1, err)
				first, _, _ := strings.Cut(err.Error(), "\n")
				b.failed = append(b.failed, fmt.Sprintf("%s run %d: %s", w.name, i+1, strings.TrimSuffix(first, ":")))
			}
		}
		if b.options.engine != "hako" {
			var res result
			err := b.withVolume(ctx, func(volume string) (err error) {
				res, err = b.once(ctx, w, on, "buildkit", func(ctx context.Context, w workload, repo string) (result, error) {
					return b.buildkit(ctx, volume, w, repo)
				})
				return err
			})
			if err != nil {
				return nil, err
			}
			first.buildkit = append(first.buildkit, res)
		}
		if err := b.otherRuns(ctx, w, on, &first); err != nil {
			return nil, err
		}
		b.logf("%s run %d: %s", w.name, i+1, latest(first, again))
	}
	if w.fetch && len(again.hako) > 0 {
		return []row{first, again}, nil
	}
	return []row{first}, nil
}

// hakoRuns runs hako for each of rows. Several share what hako keeps.
func (b *bench) hakoRuns(ctx context.Context, volume string, w workload, on base, rows []*row) (err error) {
	if w.namespace {
		res, err := b.once(ctx, w, on, "hako", func(ctx context.Context, w workload, repo string) (result, error) {
			return b.hakoOnHost(ctx, w, repo, filepath.Join(volume, "work"))
		})
		if err == nil {
			rows[0].hako = append(rows[0].hako, res)
		}
		return err
	}
	p, err := b.rig.PodmanIn(filepath.Join(volume, "pod"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	state := ""
	if len(rows) > 1 {
		if state = filepath.Join(volume, "state"); os.Mkdir(state, 0o755) != nil {
			return fmt.Errorf("make %s", state)
		}
	}
	for _, r := range rows {
		res, err := b.once(ctx, w, on, "hako", func(ctx context.Context, w workload, repo string) (result, error) {
			return b.hako(ctx, p, w, repo, state)
		})
		if err != nil {
			return err
		}
		r.hako = append(r.hako, res)
	}
	return nil
}

// once makes one run, into a repository that exists for it alone.
func (b *bench) once(ctx context.Context, w workload, on base, tag string, build func(context.Context, workload, string) (result, error)) (result, error) {
	repo := strings.ToLower(w.name) + "-" + tag
	res, err := build(ctx, w, repo)
	if err != nil {
		return res, err
	}
	ref, err := name.NewTag(b.registry.host+"/"+repo+":"+tag, name.Insecure)
	if err != nil {
		return res, err
	}
	img, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return res, fmt.Errorf("read what %s has pushed: %w", tag, err)
	}
	m, err := img.Manifest()
	if err != nil {
		return res, err
	}
	if len(m.Layers) <= len(on.layers) {
		return res, fmt.Errorf("%s, %s: the image has %d layers, its base %d", tag, w.name, len(m.Layers), len(on.layers))
	}
	for _, l := range m.Layers[len(on.layers):] {
		res.layers += l.Size
	}
	if w.cached {
		return res, nil // the next build's cache is in the registry
	}
	return res, b.registry.forget(repo)
}

// fetch downloads and inflates a base's layers, one after another.
func (b *bench) fetch(ctx context.Context, on base) (result, error) {
	repo, _, _ := strings.Cut(strings.TrimPrefix(on.ref, b.registry.host+"/"), ":")
	b.settle()
	began := time.Now()
	for _, l := range on.layers {
		url := "http://" + b.registry.host + "/v2/" + repo + "/blobs/" + l.Digest.String()
		cmd := exec.CommandContext(ctx, "sh", "-c", `curl -sSf "$1" | pigz -dc >/dev/null`, "sh", url)
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			return result{}, fmt.Errorf("fetch %s: %w: %s", filepath.Base(url), err, out)
		}
	}
	return result{wall: time.Since(began)}, nil
}
