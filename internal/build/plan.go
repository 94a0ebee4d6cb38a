// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"hako/internal/frontend"
	"hako/internal/layer"
	"hako/internal/solver"
)

// A Plan is what a build would do, as far as that can be known without fetching
// a layer or running a command. It depends on the Dockerfile, the contexts, the
// base images, the caches and the options alone, so equal ones give equal plans.
// Its JSON names are stable.
type Plan struct {
	Dockerfile string       `json:"dockerfile"` // its name
	Platforms  []string     `json:"platforms"`  // of the images, in the order asked
	Steps      []PlanStep   `json:"steps"`      // in the order of the graph: inputs first
	Skipped    []PlanStage  `json:"skipped"`    // stages that the target does not need
	Outputs    []PlanOutput `json:"outputs"`    // where the images would go
	Total      PlanTotal    `json:"total"`
}

// What a step of a plan does.
const (
	PlanContext = "context" // read files of the build context
	PlanFetch   = "fetch"   // get something from outside: an image, a URL
	PlanRun     = "run"     // run a command
	PlanCopy    = "copy"    // copy from a context, a stage, an image or a URL
	PlanWrite   = "write"   // make files or directories of what the Dockerfile says
	PlanMerge   = "merge"   // put the layer of a COPY --link on top
)

// A PlanStep is one step. One of the pointers is set for its action.
type PlanStep struct {
	Name   string       `json:"name"` // as in the progress of a build
	Line   int          `json:"line"` // of the Dockerfile; 0 if it has none
	Action string       `json:"action"`
	Image  *PlanImage   `json:"image,omitempty"` // fetch, of an image
	URL    string       `json:"url,omitempty"`   // fetch, of anything else
	Run    *PlanCommand `json:"run,omitempty"`
	Copies []PlanFrom   `json:"copies,omitempty"` // copy and context
	Cache  *PlanCache   `json:"cache,omitempty"`  // of a step whose result is kept, if there is a cache
}

// What a cache has of a step.
const (
	PlanFound     = "found"
	PlanNotNeeded = "not needed" // what is made of it was found
	PlanMissed    = "missed"
)

// A PlanCache says whether a step would come from a cache.
type PlanCache struct {
	State string `json:"state"`
	Size  int64  `json:"size,omitempty"` // of the layer that was found, compressed
	Why   string `json:"why,omitempty"`  // it was not found
}

// A PlanImage is a base image, or one that is copied from.
type PlanImage struct {
	Layers int   `json:"layers"`
	Size   int64 `json:"size"` // bytes of the layers, compressed
	// Download is what would be fetched; less than Size if indexes are known.
	Download int64 `json:"download"`
	// Unpack: a command runs on it, so it is unpacked to disk. Else an index of
	// its layers is all that is needed, if Index is set, or not even that.
	Unpack bool `json:"unpack"`
	Index  bool `json:"index"`
}

// A PlanCommand is how a command would run.
type PlanCommand struct {
	Mounts   []PlanMount `json:"mounts,omitempty"`
	Network  string      `json:"network,omitempty"`  // if not the default
	Security string      `json:"security,omitempty"` // if not the default
}

// A PlanMount is a RUN --mount.
type PlanMount struct {
	Type   string `json:"type"`
	Target string `json:"target"`
	From   string `json:"from,omitempty"` // of bind and cache mounts, as in PlanFrom
}

// A PlanFrom is one source of a copy.
type PlanFrom struct {
	From string `json:"from"` // "the context", "stage build", "image debian", "https://…"
	Path string `json:"path"`
	// Files and Bytes are counted after ignore rules, for build contexts only.
	Counted bool  `json:"counted"`
	Files   int   `json:"files"`
	Bytes   int64 `json:"bytes"`
}

// A PlanStage is a stage of the Dockerfile.
type PlanStage struct {
	Name string `json:"name"` // or its number
	Line int    `json:"line"`
}

// A PlanTotal sums up a plan. What is fetched from URLs is not in Download.
type PlanTotal struct {
	Download int64 `json:"download"` // bytes of layers, each once
	URLs     int   `json:"urls"`     // whose sizes are not known before
	Unpack   int   `json:"unpack"`   // images to be unpacked for commands
	Run      int   `json:"run"`      // commands
	Copy     int   `json:"copy"`     // copies
	// Cached are the steps of a cache that need not be done. They are not counted
	// above.
	Cached int `json:"cached,omitempty"`
	PlanLayers
}

// PlanLayers are the layers of images.
type PlanLayers struct {
	NewLayers int `json:"new_layers"` // at most
	// BaseLayers, of BaseSize bytes, are sent only to places that lack them.
	BaseLayers int   `json:"base_layers"`
	BaseSize   int64 `json:"base_size"`
}

// A PlanOutput is one place that an image would go to.
type PlanOutput struct {
	To     string `json:"to"` // as asked for: "push NAME", "oci FILE"
	Push   bool   `json:"push"`
	Target string `json:"target,omitempty"` // the stage, if one was asked for
	PlanLayers
}

// answerPlan makes a plan, and finds out whether this place could honour it: the
// error is then the one that a build would end with before its first command.
func (b *build) answerPlan(ctx context.Context, fo frontend.Options, files []string) (*Result, error) {
	if err := b.convert(ctx, fo); err != nil {
		return nil, err
	}
	g, err := b.outputs.graph()
	if err != nil {
		return nil, err
	}
	found, err := b.solver.Find(ctx, g)
	if err != nil {
		return nil, err
	}
	p := &planner{build: b, graph: g, found: found, images: make(map[*solver.Vertex][]*layer.Layer)}
	p.bases = p.execBases()
	p.plan = Plan{Dockerfile: b.contexts.filename, Platforms: []string{}, Steps: []PlanStep{}}
	var targets []string
	for _, r := range b.outputs.products {
		targets = append(targets, r.Stage)
		for _, pl := range r.conv.Platforms {
			if name := formatPlatform(pl.Platform); !slices.Contains(p.plan.Platforms, name) {
				p.plan.Platforms = append(p.plan.Platforms, name)
			}
		}
	}
	if err := p.steps(ctx); err != nil {
		return nil, err
	}
	p.total()
	p.outputs(files)
	if p.plan.Skipped, err = skippedStages(ctx, fo, g, targets); err != nil {
		return nil, err
	}
	res := &Result{Plan: &p.plan}
	for _, v := range g.Vertices() {
		if err := b.interp.Validate(v.Op, v.Metadata); err != nil {
			return res, at(v, err)
		}
	}
	return res, nil
}

// at gives an error its place in the Dockerfile.
func at(v *solver.Vertex, err error) error {
	return &solver.VertexError{Name: v.Name, Digest: v.Digest, File: v.File, Lines: v.Lines, Text: v.Text, Err: err}
}

// A planner turns a graph into a plan.
type planner struct {
	build  *build
	graph  *solver.Graph
	found  *solver.Found
	bases  map[*solver.Vertex]bool // images that a command runs on
	plan   Plan
	images map[*solver.Vertex][]*layer.Layer // of image sources
}

// steps describes every vertex that does something.
func (p *planner) steps(ctx context.Context) error {
	for _, v := range p.graph.Vertices() {
		if isInline(v) {
			continue // the text of a heredoc
		}
		s := PlanStep{Name: v.Name}
		if len(v.Lines) > 0 {
			s.Line = v.Lines[0][0]
		}
		var err error
		switch {
		case v.IsSource():
			err = p.source(ctx, v, &s)
		case v.IsExec():
			s.Action, s.Run = PlanRun, p.run(v)
		case v.Op.GetMerge() != nil:
			s.Action = PlanMerge
		default:
			err = p.file(ctx, v, &s)
		}
		if err != nil {
			return at(v, err)
		}
		s.Cache = p.cached(ctx, v)
		p.plan.Steps = append(p.plan.Steps, s)
	}
	return nil
}

// total sums up what the steps cost.
func (p *planner) total() {
	t := &p.plan.Total
	fetched := make(map[digest.Digest]bool)
	for i := range p.plan.Steps {
		switch s := &p.plan.Steps[i]; {
		case s.Cache != nil && s.Cache.State != PlanMissed:
			t.Cached++
		case s.Run != nil:
			t.Run++
		case s.Action == PlanCopy:
			t.Copy++
		case s.URL != "":
			t.URLs++
		case s.Image != nil && s.Image.Unpack:
			t.Unpack++
		}
	}
	fetch := func(l *layer.Layer) {
		if d := l.Descriptor(); !fetched[d.Digest] {
			fetched[d.Digest] = true
			t.Download += d.Size
		}
	}
	for _, v := range p.graph.Vertices() {
		for _, l := range p.images[v] {
			if p.downloads(v, l) {
				fetch(l)
			}
		}
		for _, l := range p.wanted(v) {
			fetch(l)
		}
	}
}

// plannedFiles says where images would go besides registries, as asked for.
func plannedFiles(opt *Options) []string {
	var list []string
	for _, f := range []struct{ kind, path string }{{"docker archive", opt.TarPath}, {"OCI layout", opt.OCILayoutPath}} {
		if f.path != "" {
			list = append(list, f.kind+" "+f.path)
		}
	}
	for _, o := range opt.Outputs {
		list = append(list, fmt.Sprintf("%s %s", o.Type, o.Dest))
	}
	return list
}

// outputs says what each place gets.
func (p *planner) outputs(files []string) {
	p.plan.Outputs = []PlanOutput{}
	o := p.build.outputs
	for _, r := range o.products {
		out := PlanOutput{Target: r.Stage, PlanLayers: p.layers(func(v *solver.Vertex) bool { return r.vertices[v.Digest] })}
		if o.opt.SingleSnapshot {
			out.NewLayers = min(out.NewLayers, 1)
		}
		for _, n := range o.opt.pushNames(r.Target) {
			out.To, out.Push = "push "+n, true
			p.plan.Outputs = append(p.plan.Outputs, out)
		}
		for _, f := range files {
			out.To, out.Push = r.path(f), false
			p.plan.Outputs = append(p.plan.Outputs, out)
		}
	}
	p.plan.Total.PlanLayers = p.layers(p.inTargets)
}

// layers counts the layers of vertices, each once.
func (p *planner) layers(in func(v *solver.Vertex) bool) (n PlanLayers) {
	bases := make(map[digest.Digest]bool)
	for _, v := range p.graph.Vertices() {
		if !in(v) {
			continue
		}
		for _, l := range p.images[v] {
			if d := l.Descriptor(); !bases[d.Digest] {
				bases[d.Digest] = true
				n.BaseLayers++
				n.BaseSize += d.Size
			}
		}
		if !v.IsSource() && v.Op.GetMerge() == nil {
			n.NewLayers++
		}
	}
	return n
}

// inTargets tells whether the vertex's layers are in an image.
func (p *planner) inTargets(v *solver.Vertex) bool {
	return slices.ContainsFunc(p.build.outputs.products, func(r *product) bool { return r.vertices[v.Digest] })
}
