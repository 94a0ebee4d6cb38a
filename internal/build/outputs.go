// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"hako/internal/export"
	"hako/internal/frontend"
	"hako/internal/layer"
	"hako/internal/progress"
	"hako/internal/registry"
	"hako/internal/solver"
)

// outputs are the places that the results go to. Paths are made absolute
// before anything moves, and opened only after everything is back in its place.
type outputs struct {
	opt      *Options
	client   *registry.Client
	http     *http.Client // for results that go to a web server
	pusher   *tally
	sink     progress.Sink
	products []*product
	pushed   []Pushed
	kept     []string      // where the images are that could not be pushed
	shared   []name.Tag    // of the shared index
	index    digest.Digest // of the shared index, if it was completed
	check    *errgroup.Group
	endCheck context.CancelFunc
	// verified waits for the proof that the layers are right.
	verified func() error
}

// A product is the image of one target.
type product struct {
	Target
	tags []name.Tag // to push
	// vertices are those whose layers are in the image.
	vertices map[digest.Digest]bool
	early    *export.Early

	conv   *frontend.Result
	refs   []*layer.Ref // of conv.Platforms
	bundle *export.Bundle
	task   *progress.Task // of a push that is not done
}

func openOutputs(ctx context.Context, opt *Options, client *registry.Client, sink progress.Sink) (*outputs, error) {
	o := &outputs{opt: opt, client: client, pusher: &tally{Pusher: client, ignoreImmutable: opt.Registry.IgnoreImmutable}, sink: sink}
	var err error
	if o.shared, err = opt.SharedIndex.prepare(opt); err != nil {
		return nil, err
	}
	for _, t := range opt.targets() {
		p := &product{Target: t}
		for _, n := range opt.pushNames(t) {
			tag, err := destination(n)
			if err != nil {
				return nil, err
			}
			p.tags = append(p.tags, tag)
		}
		o.products = append(o.products, p)
	}
	if err := absolute(opt); err != nil {
		return nil, err
	}
	for _, p := range o.products {
		if len(p.tags) > 0 && opt.PushEarly && !opt.reshapes() {
			p.early = export.NewEarly(ctx, o.pusher, p.tags)
		}
	}
	o.checkPush(ctx)
	return o, nil
}

// absolute makes the paths of all outputs absolute.
func absolute(opt *Options) error {
	paths := []*string{
		&opt.TarPath, &opt.OCILayoutPath, &opt.DigestFile, &opt.ImageNameDigestFile, &opt.ImageNameTagDigestFile, &opt.MetadataFile,
		&opt.ImageIDFile, &opt.BuilderOutput, &opt.BenchmarkFile,
	}
	for i := range opt.Outputs {
		if opt.Outputs[i].Dest != "-" {
			paths = append(paths, &opt.Outputs[i].Dest)
		}
	}
	for _, p := range paths {
		if *p == "" || isURL(*p) {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("output %s: %w", *p, err)
		}
		*p = abs
	}
	return nil
}

// tags returns all that is to be pushed.
func (o *outputs) tags() []name.Tag {
	var tags []name.Tag
	for _, p := range o.products {
		tags = append(tags, p.tags...)
	}
	return tags
}

// checkPush asks the registries, in the background, whether this account may push.
func (o *outputs) checkPush(ctx context.Context) {
	ctx, o.endCheck = context.WithCancel(ctx)
	g, gctx := errgroup.WithContext(ctx)
	o.check = g
	if o.opt.Registry.SkipPushCheck {
		return
	}
	seen := make(map[string]bool)
	for _, t := range append(o.tags(), o.shared...) {
		repo := t.Context()
		if seen[repo.Name()] {
			continue
		}
		seen[repo.Name()] = true
		g.Go(func() error { return o.client.CheckPushPermission(gctx, repo) })
	}
}

// allowed waits for the answers of checkPush.
func (o *outputs) allowed() error { return o.check.Wait() }

// none tells whether nothing was asked for.
func (o *outputs) none() bool {
	return len(o.tags()) == 0 && !o.opt.NoPush && !o.files()
}

// files tells whether the image goes to archives, layouts or directories.
func (o *outputs) files() bool {
	return o.opt.TarPath != "" || o.opt.OCILayoutPath != "" || len(o.opt.Outputs) > 0
}

// graph makes one graph of the images of all products and notes the vertices
// whose layers will be in them. Its targets are the platforms of the first
// product, then those of the next.
func (o *outputs) graph() (*solver.Graph, error) {
	var defs []*pb.Definition
	for _, p := range o.products {
		for _, r := range p.conv.Platforms {
			defs = append(defs, r.Definition)
		}
	}
	g, err := solver.Load(defs...)
	if err != nil {
		return nil, err
	}
	targets := g.Targets()
	for _, p := range o.products {
		n := len(p.conv.Platforms)
		p.vertices = g.InTargets(targets[:n])
		targets = targets[n:]
	}
	return g, nil
}

// made begins to push a new layer to where it is sure to be in the image.
func (o *outputs) made(vertex digest.Digest, l *layer.Layer) {
	for _, p := range o.products {
		if p.early != nil && p.vertices[vertex] {
			p.early.Start(l)
		}
	}
}

// growing returns what begins to push the layer of a command while it is being
// written, nil if that is of no use: where times are fixed, the registry may have
// the layer already, and is asked when it is finished.
func (o *outputs) growing(vertex digest.Digest) func(*layer.Growing) {
	if o.opt.SourceDateEpoch != nil || o.opt.Reproducible || o.opt.RewriteTimestamp {
		return nil
	}
	var early []*export.Early
	for _, p := range o.products {
		if p.early != nil && p.vertices[vertex] {
			early = append(early, p.early)
		}
	}
	if early == nil {
		return nil
	}
	return func(g *layer.Growing) {
		sentTo := make(map[string]bool)
		for _, e := range early {
			e.Follow(g, sentTo)
		}
	}
}

// close ends what still goes on.
func (o *outputs) close() {
	for _, p := range o.products {
		if p.early != nil {
			p.early.Stop()
		}
	}
	o.endCheck()
	_ = o.check.Wait() // its error was returned, or a worse one was
}

// export sends the results everywhere.
func (o *outputs) export(ctx context.Context) (*Result, error) {
	res := &Result{}
	for _, p := range o.products {
		var err error
		if p.bundle, err = o.bundle(p, o.opt.OCIMediaTypes != nil && !*o.opt.OCIMediaTypes); err != nil {
			return nil, p.fail(err)
		}
		for _, m := range p.bundle.Images {
			res.Images = append(res.Images, Image{Target: p.Stage, Platform: m.Platform, Desc: m.Document.Desc, Config: m.Config.Data})
		}
	}
	res.Digest = o.products[0].digest()
	if len(o.tags()) == 0 || o.files() {
		if err := o.verified(); err != nil {
			return nil, err
		}
	}
	for _, p := range o.products {
		if err := o.writeFiles(ctx, p); err != nil {
			return nil, p.fail(err)
		}
	}
	if err := o.push(ctx, res); err != nil {
		o.keep(ctx)
		return nil, err
	}
	if err := o.complete(ctx, res); err != nil {
		return nil, err
	}
	return res, o.resultFiles(ctx)
}

// fail says which of several targets could not be exported.
func (p *product) fail(err error) error {
	if !p.isNamed {
		return err
	}
	return fmt.Errorf("target %s: %w", p.Stage, err)
}

// digest is that of the manifest or index.
func (p *product) digest() digest.Digest { return p.bundle.Root().Desc.Digest }

// path returns where a file for this product goes.
func (p *product) path(pattern string) string {
	if !p.isNamed {
		return pattern
	}
	return strings.ReplaceAll(pattern, TargetPlace, p.Stage)
}

func (o *outputs) bundle(p *product, docker bool) (*export.Bundle, error) {
	images := make([]export.Image, len(p.refs))
	for i, r := range p.conv.Platforms {
		images[i] = export.Image{Platform: r.Platform, Ref: p.refs[i], Config: r.Config, Base: r.BaseConfig, Epoch: r.Epoch, Single: o.opt.SingleSnapshot}
		if o.opt.Reproducible && r.Epoch == nil {
			t := time.Unix(0, 0).UTC()
			images[i].Epoch = &t
		}
	}
	shared := &o.opt.SharedIndex
	return export.Finish(images, export.Options{
		Docker: docker, Index: p.conv.Index || shared.isSet(), Annotations: shared.annotations(imageAnnotations(o.opt.Annotations)),
	})
}

// push sends all images: first what they are made of, and only when all of
// that is there, and proven, the tags.
func (o *outputs) push(ctx context.Context, res *Result) error {
	prove := func(context.Context, *product, *Result) error { return o.verified() }
	for _, stage := range []func(context.Context, *product, *Result) error{o.pushParts, prove, o.pushTags} {
		for _, p := range o.products {
			if len(p.tags) == 0 {
				continue
			}
			if err := stage(ctx, p, res); err != nil {
				o.endTasks(err)
				return err
			}
		}
	}
	return nil
}

// endTasks shows as failed what waits for others to be pushed.
func (o *outputs) endTasks(err error) {
	for _, p := range o.products {
		if p.task != nil {
			p.task.Done(err)
		}
	}
}

func (o *outputs) pushParts(ctx context.Context, p *product, _ *Result) error {
	if p.early != nil {
		// Its error comes again, with more to say, from the push itself.
		_ = p.early.Wait()
	}
	p.task = progress.Start(o.sink, digest.FromString("push "+p.tags[0].Name()), "push "+p.tags[0].Name())
	if err := p.bundle.PushParts(ctx, o.pusher, p.tags); err != nil {
		return err
	}
	o.report(p)
	return nil
}

func (o *outputs) pushTags(ctx context.Context, p *product, res *Result) error {
	done, err := p.bundle.PushTags(ctx, o.pusher, p.tags)
	for _, t := range o.pusher.set(p.task, done) {
		p.task.Logf("%s@%s", t.Name(), p.digest())
		res.Pushed = append(res.Pushed, Pushed{Ref: t.Name(), Digest: p.digest()})
	}
	o.pushed = res.Pushed
	if err != nil {
		return err
	}
	p.task.Done(nil)
	p.task = nil
	return nil
}

// report says how much had to be sent.
func (o *outputs) report(p *product) {
	var layers []digest.Digest
	for _, m := range p.bundle.Images {
		for _, l := range m.Layers {
			layers = append(layers, l.Digest)
		}
	}
	o.pusher.report(p.task, p.tags, layers)
}
