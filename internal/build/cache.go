// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/cache"
	"hako/internal/image"
	"hako/internal/layer"
	"hako/internal/registry"
	"hako/internal/solver"
)

// CacheOptions say where results are kept between builds.
type CacheOptions struct {
	// Enabled looks results up and keeps them. Without a Repo or places they are
	// beside the first image that is pushed.
	Enabled bool
	// Repo is a repository, "oci:" with a directory, or a directory.
	Repo string
	// From and To are further places; naming one enables the cache.
	From, To []CachePlace
	// TTL is the age from which results are not used; 0 is none.
	TTL time.Duration
	// NoPush keeps nothing.
	NoPush bool
	// NoCopies and NoRuns leave out the steps of their kind.
	NoCopies, NoRuns bool
	// KeyFile holds what records have to be signed with.
	KeyFile string
	// Explain asks the caller to print Result.Cache.
	Explain bool
}

// A CachePlace is one place to read from or write to.
type CachePlace struct {
	Dir string // an OCI layout, or
	Ref string // a repository, with a tag or without, or
	// S3 is a bucket.
	S3 S3Place
	// Beside is for an image's name: the cache is in its repository, under a tag of
	// its own.
	Beside bool
}

// A CacheOutcome is what became of one step.
type CacheOutcome struct {
	Where string // "Dockerfile:14"
	Text  string // of the instruction, one short line
	Hit   bool
	Why   string        // of a miss
	Took  time.Duration // of a miss
	Size  int64         // of a hit's layer, compressed
	Made  time.Time     // of a hit's layer
}

// outcomes tells what became of the steps.
func (c *buildCache) outcomes() []CacheOutcome {
	var list []CacheOutcome
	for _, o := range c.Outcomes() {
		out := CacheOutcome{Where: o.Step.File, Text: cache.Clip(o.Step.Text, 40), Hit: o.Hit, Why: o.Why, Took: o.Step.Took, Size: o.Size, Made: o.Made}
		if o.Step.Line > 0 {
			out.Where = fmt.Sprintf("%s:%d", o.Step.File, o.Step.Line)
		}
		list = append(list, out)
	}
	return list
}

func (o *CacheOptions) isOn() bool { return o.Enabled || len(o.From)+len(o.To) > 0 }

// cacheStall is how long a cache may leave a transfer standing.
const cacheStall = 2 * time.Second

// openCache opens all places of the build's cache; nil if there is none.
func (b *build) openCache(ctx context.Context, distrust map[string]bool) error {
	o := &b.opt.Cache
	if !o.isOn() || b.opt.Call != "" && b.opt.Call != CallBuild && b.opt.Call != CallPlan {
		return nil
	}
	client, err := newRegistry(b.opt, b.network, b.keys, b.meter.down, b.meter.up, func(r *registry.Options) {
		r.Retries, r.StallTimeout, r.Mirrors = 1, cacheStall, nil // mirrors are for images
		b.transfers.tune(r)
	})
	if err != nil {
		return err
	}
	opt := cache.Options{
		Store: b.store, Tag: b.cacheTag(), TTL: o.TTL, Distrust: distrust, Foreign: b.images.inRegistry, Settle: b.outputs.settle,
		Warn: func(text string) { b.note("%s", text) },
	}
	if o.KeyFile != "" {
		if opt.Key, err = os.ReadFile(o.KeyFile); err != nil {
			return fmt.Errorf("read the cache's key: %w", err)
		}
		if len(opt.Key) < 16 {
			return fmt.Errorf("the cache's key in %s has %d bytes; 16 is the least", o.KeyFile, len(opt.Key))
		}
	}
	x := &cacheOpener{build: b, client: client, distrust: distrust, readOnly: o.NoPush || b.opt.Call == CallPlan, opened: map[CachePlace]cache.Backend{}}
	if opt.From, opt.To, err = x.places(ctx); err != nil {
		return err
	}
	opt.Uploads = x.uploads
	b.cache = &buildCache{Cache: cache.New(ctx, opt), opt: b.opt, salt: b.cacheSalt(), oneID: func() bool { return b.room.oneID() }}
	return nil
}

// cacheTag names what the cache has of this Dockerfile for these platforms.
// Targets share it: most of their steps are the same.
func (b *build) cacheTag() string {
	file := cmp.Or(b.opt.Dockerfile, "Dockerfile")
	if filepath.IsAbs(file) { // where it was checked out is not what it is
		file = filepath.Base(file)
	}
	var list []string
	for _, p := range b.opt.Platforms {
		list = append(list, formatPlatform(p))
	}
	if len(list) == 0 {
		list = []string{formatPlatform(hostPlatform())}
	}
	slices.Sort(list)
	id := filepath.ToSlash(filepath.Clean(file)) + "\x00" + b.opt.ContextSubPath + "\x00" + strings.Join(list, ",")
	return "hako-" + digest.FromString(id).Encoded()[:16]
}

// cacheSalt is what layers depend on besides the graph.
func (b *build) cacheSalt() string {
	var parts []string
	if t := b.opt.SourceDateEpoch; t != nil {
		parts = append(parts, fmt.Sprintf("epoch=%d", t.Unix()))
	}
	if t := b.clamp(); t != nil {
		parts = append(parts, fmt.Sprintf("clamp=%d", t.Unix()))
	}
	parts = append(parts, fmt.Sprintf("compression=%s,%d", cmp.Or(b.opt.Compression, "gzip"), max(b.opt.CompressionLevel, 0)))
	if len(b.opt.IgnorePaths) > 0 {
		parts = append(parts, fmt.Sprintf("ignored=%q", b.opt.IgnorePaths))
	}
	if b.opt.RewriteTimestamp {
		parts = append(parts, "rewritten")
	}
	return strings.Join(parts, " ")
}

// ParseCachePlace reads what --cache-repo names: oci:DIR or a path is a
// directory, all else a repository.
func ParseCachePlace(s string) CachePlace {
	if dir, ok := strings.CutPrefix(s, "oci:"); ok {
		return CachePlace{Dir: strings.TrimPrefix(dir, "//")}
	}
	if filepath.IsAbs(s) || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../") || s == "." || s == ".." {
		return CachePlace{Dir: s}
	}
	return CachePlace{Ref: s}
}

// inRegistry returns the layer of a base image that a cache speaks of. Where it is
// today is what counts: the image may have been pushed anew, with other
// compression, or be asked for elsewhere.
func (im *images) inRegistry(origin string, id image.DiffID, desc ocispecs.Descriptor) (*layer.Layer, error) {
	im.mu.Lock()
	at, ok := im.at[id]
	im.mu.Unlock()
	if ok {
		l := layer.New(im.store, id, at.Descriptor, at)
		l.Origin = at.Origin()
		return im.pulled(l), nil
	}
	repo, err := name.NewRepository(origin)
	if err != nil {
		return nil, err
	}
	l := layer.New(im.store, id, desc, registry.BlobSource{Client: im.client, Repo: repo, Descriptor: desc})
	l.Origin = origin
	return im.pulled(l), nil
}

// settle waits until a layer of this build that is being pushed is there, and
// tells where that is.
func (o *outputs) settle(ctx context.Context, l *layer.Layer) string {
	for _, p := range o.products {
		if p.early == nil || !p.early.Settle(ctx, l) {
			continue
		}
		return p.tags[0].Context().Name()
	}
	return ""
}

// A buildCache is the cache as the solver knows it.
type buildCache struct {
	*cache.Cache
	opt   *Options
	salt  string
	oneID func() bool
}

var _ solver.Cache = (*buildCache)(nil)

// Salt implements solver.Cache. Where a command has one id to be, what it copies
// or moves belongs to that one: elsewhere it would be another layer.
func (c *buildCache) Salt(command bool) string {
	if command && c.oneID() {
		return c.salt + " one id"
	}
	return c.salt
}

// step translates; nil is a step that is left out.
func (c *buildCache) step(s *solver.Step) *cache.Step {
	v := s.Vertex
	if v.IsExec() && c.opt.Cache.NoRuns || !v.IsExec() && c.opt.Cache.NoCopies {
		return nil
	}
	out := &cache.Step{Name: v.Name, File: v.File, Took: s.Took, NoCache: v.Metadata.GetIgnoreCache()}
	if len(v.Lines) > 0 {
		out.Line = v.Lines[0][0]
	}
	for _, k := range s.Keys {
		out.Keys = append(out.Keys, k.String())
	}
	for _, p := range s.Parts {
		if p.Kind == solver.PartText {
			out.Text = p.Name
		}
		out.Parts = append(out.Parts, cache.Part{Kind: string(p.Kind), Name: p.Name, Value: p.Value, Files: p.Files})
	}
	return out
}

// Find implements solver.Cache.
func (c *buildCache) Find(ctx context.Context, s *solver.Step, key solver.Key) (*layer.Ref, string) {
	step := c.step(s)
	if step == nil {
		return nil, ""
	}
	return c.Cache.Find(ctx, step, key.String())
}

// Missed implements solver.Cache.
func (c *buildCache) Missed(ctx context.Context, s *solver.Step) string {
	if step := c.step(s); step != nil {
		return c.Cache.Missed(ctx, step)
	}
	return ""
}

// Skipped implements solver.Cache.
func (c *buildCache) Skipped(s *solver.Step) {
	if step := c.step(s); step != nil {
		c.Cache.Skipped(step)
	}
}

// Keep implements solver.Cache.
func (c *buildCache) Keep(s *solver.Step, ref *layer.Ref, adopted bool) {
	if step := c.step(s); step != nil {
		c.Cache.Keep(step, ref, adopted)
	}
}
