// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/frontend"
	"hako/internal/image"
	"hako/internal/keychain"
	"hako/internal/layer"
	"hako/internal/ops"
	"hako/internal/progress"
	"hako/internal/sandbox"
	"hako/internal/solver"
	"hako/internal/source"
	"hako/internal/store"
)

// ErrNothingToDo is returned if no use of the result was asked for.
var ErrNothingToDo = errors.New("nothing to do with the result: add --push, -o oci,dest=…, or --no-push")

// Run runs one build: it opens everything outside, converts the Dockerfile,
// executes the graph, puts the container back as it was and sends the image
// where it was asked for.
func Run(ctx context.Context, opt Options, sink progress.Sink) (*Result, error) {
	if err := enter(ctx, &opt); err != nil {
		return nil, err
	}
	if !opt.Cache.isOn() {
		return runOnce(ctx, opt, attempt{}, sink)
	}
	fromStdin := opt.Dockerfile == "-" && opt.Stdin != nil
	var dockerfile []byte
	if fromStdin { // it may have to be read again
		var err error
		if dockerfile, err = io.ReadAll(io.LimitReader(opt.Stdin, maxDockerfile)); err != nil {
			return nil, fmt.Errorf("read the Dockerfile from standard input: %w", err)
		}
	}
	again := attempt{distrust: map[string]bool{}, input: &keptInput{}}
	defer again.input.close() //nolint:errcheck // it is only read
	for {
		if fromStdin {
			opt.Stdin = bytes.NewReader(dockerfile)
		}
		res, err := runOnce(ctx, opt, again, sink)
		lost, ok := errors.AsType[*layer.LostError](err)
		if !ok || ctx.Err() != nil || again.distrust[lost.Place] {
			return res, err
		}
		// What was found in the cache and then could not be had is made anew. What
		// was made meanwhile is there, if the cache can be written.
		again.distrust[lost.Place] = true
		progress.Start(sink, digest.FromString("lost "+lost.Place), "[internal] building again without what the cache has lost: "+lost.Error()).Done(nil)
	}
}

func runOnce(ctx context.Context, opt Options, at attempt, sink progress.Sink) (*Result, error) {
	started := time.Now()
	files := plannedFiles(&opt) // before their paths are made absolute
	if opt.Call == CallPlan {
		opt.Registry.SkipPushCheck, opt.PushEarly = true, false
	}
	var watch *stopwatch
	if opt.BenchmarkFile != "" {
		watch = newStopwatch(sink)
		sink = watch
	}
	b, err := open(ctx, &opt, at, sink, started)
	if err != nil {
		return nil, err
	}
	res, err := b.run(ctx, files)
	if _, wrong := errors.AsType[*sandbox.MismatchError](err); wrong && b.cache != nil {
		b.cache.Revoke()
	}
	b.images.keepIndexes(ctx)
	cerr := b.close()
	if err == nil && cerr != nil {
		err = cerr
	}
	if err != nil && opt.Call != CallPlan {
		err = b.failed(err, cerr)
	}
	if err == nil && watch != nil && opt.Call != CallPlan {
		err = watch.write(opt.BenchmarkFile, time.Since(started))
	}
	if res != nil {
		b.summarize(&res.Summary, started)
		if b.cache != nil {
			res.Cache = b.cache.outcomes()
		}
	}
	return res, err
}

// A build is one run's parts.
type build struct {
	opt       *Options
	sink      progress.Sink
	clock     time.Time
	network   *network
	keys      *keychain.Chain
	meter     *meter
	transfers *transfers
	store     *store.Store
	endStore  func() error
	images    *images
	depot     *store.Depot // of base images; nil: none
	git       *source.GitClient
	contexts  *contexts
	vault     *vault
	room      *room
	outputs   *outputs
	cache     *buildCache // nil: none
	// cacheDirs are paths that it writes to.
	cacheDirs []string
	tokens    []*tokenFile // of the caches' credentials
	interp    *ops.Interpreter
	solver    *solver.Solver
}

// open reads and opens whatever the build needs from outside. Nothing is opened
// by its path later, when another root may be installed.
func open(ctx context.Context, opt *Options, at attempt, sink progress.Sink, now time.Time) (_ *build, err error) {
	b := &build{opt: opt, sink: sink, meter: &meter{}, transfers: newTransfers(sink), clock: now}
	if opt.SourceDateEpoch != nil {
		b.clock = *opt.SourceDateEpoch
	}
	defer func() {
		if err != nil {
			_ = b.close()
		}
	}()
	if b.network, err = openNetwork(opt.Env); err != nil {
		return nil, err
	}
	b.network.note = func(text string) { b.note("%s", text) }
	if b.vault, err = openVault(opt); err != nil {
		return nil, err
	}
	if r, ok := sink.(interface{ Redact(values ...[]byte) }); ok {
		for _, v := range b.vault.secrets {
			r.Redact(v)
		}
		for _, s := range b.network.secrets {
			r.Redact([]byte(s))
		}
	}
	if err := b.openStore(); err != nil {
		return nil, err
	}
	outside := &sandbox.Outside{}
	if b.keys, err = openKeychain(opt, b.network, outside); err != nil {
		return nil, err
	}
	b.depot = b.openDepot()
	client, err := newRegistry(opt, b.network, b.keys, b.meter.down, b.meter.up, b.transfers.and(keepIn(b.depot)))
	if err != nil {
		return nil, err
	}
	if b.git, err = openGit(opt, b.network, b.store); err != nil {
		return nil, err
	}
	f := &fetcher{git: &gitOpener{client: b.git, network: b.network, clock: b.clock, log: b.note}, http: b.network.client(), store: b.store, opt: opt, input: at.input}
	if b.contexts, err = openContexts(ctx, opt, f); err != nil {
		return nil, err
	}
	b.images = &images{client: client, store: b.store, layouts: b.contexts.layouts, depot: b.depot}
	if b.outputs, err = openOutputs(ctx, opt, client, sink); err != nil {
		return nil, err
	}
	b.outputs.http = b.network.client()
	if err := b.openCache(ctx, at.distrust); err != nil {
		return nil, err
	}
	b.room = newRoom(ctx, opt, b.contexts, b.network, b.note)
	b.room.outside, b.room.own = outside, append(depotPaths(b.depot), b.cacheDirs...)
	b.room.clamp, b.outputs.verified = b.clamp(), b.room.verified
	b.wire(ctx)
	return b, nil
}

func (b *build) openStore() error {
	dir := filepath.Join(workDir(b.opt), "work", "store")
	st, err := store.Open(dir)
	if err != nil && errors.Is(err, os.ErrPermission) || errors.Is(err, errReadOnly) {
		// A pod without rights: builds without RUN still work.
		st, err = store.Open(filepath.Join(os.TempDir(), fmt.Sprintf("hako-%d", os.Getuid())))
	}
	if err != nil {
		return err
	}
	b.store, b.endStore, err = st.Session()
	return err
}

// wire puts the parts together.
func (b *build) wire(ctx context.Context) {
	b.interp = ops.New(ops.Options{
		Store: b.store, Images: b.images, Locals: b.contexts.locals, HTTP: b.network.client(), Git: b.git,
		Sandbox: b.room.start, Unsupported: b.room.unsupported, Secret: b.vault.secret, Agent: b.vault.agent, Clock: b.clock, Sink: b.sink,
		Write: b.layerOptions(),
		About: b.contexts.about, OnLayer: b.outputs.made, OnGrowing: b.outputs.growing,
	})
	so := solver.Options{SerialExec: b.room.serial, Commands: maxCommands(), Sink: b.sink, Plan: b.plan}
	if b.cache != nil {
		so.Cache = b.cache
	}
	b.solver = solver.New(ctx, b.interp, so)
}

// clamp returns the latest time for files in new layers, nil for none.
func (b *build) clamp() *time.Time {
	if b.opt.Reproducible || b.opt.RewriteTimestamp {
		t := b.clock
		if b.opt.SourceDateEpoch == nil {
			t = time.Unix(0, 0)
		}
		return &t
	}
	return nil
}

// layerAnnotations returns what BuildKit puts on layers whose times it limited.
func (b *build) layerAnnotations() map[string]string {
	if t := b.opt.SourceDateEpoch; b.opt.RewriteTimestamp && t != nil {
		return map[string]string{image.RewrittenTimestamp: strconv.FormatInt(t.Unix(), 10)}
	}
	return nil
}

// plan looks at a graph before its first vertex is executed.
func (b *build) plan(_ context.Context, g *solver.Graph, needed func(*solver.Vertex) bool) error {
	f := graphFacts(g)
	b.interp.Plan(f)
	if hasExec(g, needed) {
		b.room.need(usedPaths(g, f, needed))
		b.note("%s · %s", b.room.describe(), limits())
	}
	return nil
}

// note shows a line that belongs to no instruction.
func (b *build) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	t := progress.Start(b.sink, digest.FromString("note "+text), "[internal] "+text)
	t.Done(nil)
}

func (b *build) run(ctx context.Context, files []string) (*Result, error) {
	fo := frontend.Options{
		Opts: frontendOpts(b.opt, b.contexts), Platforms: []ocispecs.Platform{hostPlatform()}, Images: b.images, Solver: b.solver, Sink: b.sink, Git: b.resolveGit,
		SyntaxBuiltin: b.opt.Syntax == "builtin",
	}
	if b.opt.Call == CallPlan {
		return b.answerPlan(ctx, fo, files)
	}
	if b.opt.Call != "" && b.opt.Call != CallBuild {
		return b.answer(ctx, fo)
	}
	if b.outputs.none() {
		return nil, ErrNothingToDo
	}
	if err := b.whileAllowed(ctx, func(ctx context.Context) error {
		if err := b.convert(ctx, fo); err != nil {
			return err
		}
		return b.evaluate(ctx)
	}); err != nil {
		return nil, err
	}
	// From here on no command runs: what was parked comes back before anything
	// is written outside.
	b.solver.Close()
	if err := b.room.putBack(); err != nil {
		return nil, err
	}
	if err := b.reshape(ctx); err != nil {
		return nil, err
	}
	return b.outputs.export(ctx)
}

// convert turns the Dockerfile into a graph for each target.
func (b *build) convert(ctx context.Context, fo frontend.Options) (err error) {
	fo.Sink = progress.Once(fo.Sink)
	for _, p := range b.outputs.products {
		fo.Opts["target"] = p.Stage
		if p.conv, err = frontend.Build(ctx, fo); err != nil {
			return err
		}
	}
	return nil
}

// whileAllowed works while the registries are asked whether the result may be
// pushed: the answer delays nothing, and a no ends the work at once.
func (b *build) whileAllowed(ctx context.Context, work func(context.Context) error) error {
	working, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var no error
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if no = b.outputs.allowed(); no != nil {
			stop(no)
		}
	}()
	err := work(working)
	if err != nil && context.Cause(working) == nil {
		b.outputs.endCheck() // nobody waits for the answer any more
		<-answered
		return err
	}
	if <-answered; no != nil && ctx.Err() == nil {
		return no
	}
	return err
}

// evaluate computes the images of all targets and platforms as one graph: what
// they share is done once.
func (b *build) evaluate(ctx context.Context) error {
	g, err := b.outputs.graph()
	if err != nil {
		return err
	}
	refs, err := b.solver.EvaluateGraph(ctx, g)
	if err != nil {
		return err
	}
	for i := range refs {
		if refs[i], err = b.interp.AsLayers(ctx, refs[i]); err != nil {
			return err
		}
	}
	for _, p := range b.outputs.products {
		n := len(p.conv.Platforms)
		p.refs, refs = refs[:n], refs[n:]
	}
	return nil
}

// answer runs the Dockerfile checks, or lists its arguments or targets.
func (b *build) answer(ctx context.Context, fo frontend.Options) (*Result, error) {
	name := map[string]string{CallCheck: frontend.RequestLint, CallOutline: frontend.RequestOutline, CallTargets: frontend.RequestTargets}[b.opt.Call]
	if name == "" {
		return nil, fmt.Errorf("--call=%s: unknown", b.opt.Call)
	}
	a, err := frontend.Subrequest(ctx, fo, name)
	if err != nil {
		return nil, err
	}
	text := a.Text
	if b.opt.CallFormat == "json" {
		text = a.JSON
	}
	return &Result{Answer: text, Status: a.Status}, nil
}

// close gives everything back, whatever happened.
func (b *build) close() error {
	var errs []error
	if b.solver != nil {
		b.solver.Close()
	}
	if b.room != nil {
		errs = append(errs, b.room.close())
	}
	if b.outputs != nil {
		b.outputs.close()
	}
	if b.cache != nil {
		errs = append(errs, b.cache.Close())
	}
	for _, f := range b.tokens {
		errs = append(errs, f.close())
	}
	if b.keys != nil {
		errs = append(errs, b.keys.Close())
	}
	if b.contexts != nil {
		errs = append(errs, b.contexts.close())
	}
	if b.depot != nil {
		errs = append(errs, b.depot.Close())
	}
	if b.endStore != nil {
		errs = append(errs, b.endStore())
	}
	return errors.Join(errs...)
}

func (b *build) summarize(s *Summary, started time.Time) {
	s.Elapsed = time.Since(started)
	s.Downloaded, s.Uploaded = b.meter.received.Load(), b.meter.sent.Load()
	s.PeakMemory = peakMemory()
	if b.cache == nil {
		return
	}
	for _, o := range b.cache.Outcomes() {
		s.Steps++
		if o.Hit {
			s.Cached++
		}
	}
}

func hostPlatform() ocispecs.Platform {
	p := platforms.DefaultSpec()
	p.OS = "linux"
	p.OSVersion, p.OSFeatures = "", nil
	return platforms.Normalize(p)
}

func formatPlatform(p ocispecs.Platform) string { return platforms.FormatAll(p) }

func tlsConfig(roots *x509.CertPool) *tls.Config {
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// Restore puts back what a killed build left in this container.
func Restore(opt Options) error { return sandbox.Restore(filepath.Join(workDir(&opt), "work")) }
