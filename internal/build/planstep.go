// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/solver/pb"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/layer"
	"hako/internal/ops"
	"hako/internal/solver"
	"hako/internal/tree"
)

// source describes what is read from outside.
func (p *planner) source(ctx context.Context, v *solver.Vertex, s *PlanStep) error {
	src := v.Op.GetSource()
	scheme, rest, _ := strings.Cut(src.GetIdentifier(), "://")
	switch scheme {
	case "local":
		s.Action = PlanContext
		fsys, err := p.local(ctx, v)
		if err != nil {
			return err
		}
		c := PlanFrom{From: p.from(v), Path: "/", Counted: true}
		all := &pb.FileActionCopy{Src: "/", Dest: "/", DirCopyContents: true, Mode: -1, Timestamp: -1}
		if c.Files, c.Bytes, err = ops.Count(ctx, fsys, all); err != nil {
			return err
		}
		s.Copies = []PlanFrom{c}
		return nil
	case "docker-image", "oci-layout":
		s.Action = PlanFetch
		return p.image(ctx, v, scheme, rest, s)
	}
	s.Action, s.URL = PlanFetch, src.GetIdentifier()
	return nil
}

// local returns the tree of a local source.
func (p *planner) local(ctx context.Context, v *solver.Vertex) (tree.FS, error) {
	refs, err := p.build.interp.Execute(ctx, v.Op, v.Digest, v.Name, nil)
	if err != nil {
		return nil, err
	}
	return refs[0].Tree(ctx)
}

// image describes what an image costs.
func (p *planner) image(ctx context.Context, v *solver.Vertex, scheme, ref string, s *PlanStep) (err error) {
	var platform *ocispecs.Platform
	if pl := v.Op.GetPlatform(); pl != nil {
		spec := pl.Spec()
		platform = &spec
	}
	var layers []*layer.Layer
	if scheme == "oci-layout" {
		layers, err = p.build.images.LayoutLayers(ctx, v.Op.GetSource().GetAttrs()[pb.AttrOCILayoutStoreID], ref, platform)
	} else {
		layers, err = p.build.images.Layers(ctx, ref, platform)
	}
	if err != nil {
		return err
	}
	p.images[v] = layers
	img := &PlanImage{Layers: len(layers), Unpack: p.bases[v], Index: p.looksInto(v)}
	s.Image = img
	for _, l := range layers {
		img.Size += l.Descriptor().Size
		if p.downloads(v, l) {
			img.Download += l.Descriptor().Size
		}
	}
	return nil
}

// downloads tells whether the image's layer would be fetched: for a command's
// root, for a file that is written of it, or for its index.
func (p *planner) downloads(v *solver.Vertex, l *layer.Layer) bool {
	if l.Local() || v.Op.GetSource().GetAttrs()[pb.AttrOCILayoutStoreID] != "" {
		return false
	}
	if p.bases[v] || p.build.outputs.files() && p.inTargets(v) {
		return true
	}
	return p.looksInto(v) && !l.HasIndex()
}

// looksInto tells whether some step works on the image's tree. Images that are
// only a base, and below what is linked, are never looked into.
func (p *planner) looksInto(source *solver.Vertex) bool {
	for _, v := range p.graph.Vertices() {
		if v.Op.GetMerge() != nil || !p.found.Executes(v) {
			continue
		}
		for _, in := range v.Inputs {
			if in.Vertex != nil && slices.Contains(p.graph.RootChain(in), source) {
				return true
			}
		}
	}
	return false
}

func (p *planner) run(v *solver.Vertex) *PlanCommand {
	e := v.Op.GetExec()
	r := &PlanCommand{}
	if e.GetNetwork() != pb.NetMode_UNSET {
		r.Network = strings.ToLower(e.GetNetwork().String())
	}
	if e.GetSecurity() != pb.SecurityMode_SANDBOX {
		r.Security = strings.ToLower(e.GetSecurity().String())
	}
	for _, m := range e.GetMounts() {
		if m.GetDest() == pb.RootMount {
			continue
		}
		pm := PlanMount{Type: strings.ToLower(m.GetMountType().String()), Target: m.GetDest()}
		if i := m.GetInput(); i >= 0 {
			pm.From = p.from(v.Inputs[i].Vertex)
		}
		r.Mounts = append(r.Mounts, pm)
	}
	for _, s := range e.GetSecretenv() {
		r.Mounts = append(r.Mounts, PlanMount{Type: "secret", Target: "$" + s.GetName()})
	}
	return r
}

// file describes what a file operation copies; what it makes needs no words.
func (p *planner) file(ctx context.Context, v *solver.Vertex, s *PlanStep) error {
	s.Action = PlanWrite
	op := v.Op.GetFile()
	for _, a := range op.GetActions() {
		c := a.GetCopy()
		if c == nil {
			continue
		}
		i := a.GetSecondaryInput()
		for i >= int64(len(v.Inputs)) { // the result of an earlier action
			i = op.GetActions()[i-int64(len(v.Inputs))].GetInput()
		}
		if i < 0 {
			continue
		}
		src := v.Inputs[i].Vertex
		if isInline(src) {
			continue
		}
		s.Action = PlanCopy
		f := PlanFrom{From: p.from(src), Path: c.GetSrc()}
		if strings.HasPrefix(src.Op.GetSource().GetIdentifier(), "local://") {
			fsys, err := p.local(ctx, src)
			if err != nil {
				return err
			}
			f.Counted = true
			if f.Files, f.Bytes, err = ops.Count(ctx, fsys, c); err != nil {
				return err
			}
		}
		s.Copies = append(s.Copies, f)
	}
	return nil
}

// isInline tells whether a vertex is the text of a heredoc, which is no layer.
func isInline(v *solver.Vertex) bool {
	return v.Op.GetFile() != nil && len(v.Lines) == 0 && len(v.Inputs) == 0 && !slices.ContainsFunc(v.Op.GetFile().GetActions(), func(a *pb.FileAction) bool { return a.GetMkfile() == nil })
}

// from says in a few words what a vertex's tree is.
func (p *planner) from(v *solver.Vertex) string {
	scheme, rest, _ := strings.Cut(v.Op.GetSource().GetIdentifier(), "://")
	switch {
	case scheme == "local" && rest == localContext:
		return "the context"
	case scheme == "local":
		return "the context " + rest
	case scheme == "docker-image":
		if named, err := reference.ParseNormalizedNamed(rest); err == nil {
			rest = reference.FamiliarName(named)
			if t, ok := named.(reference.Tagged); ok {
				rest += ":" + t.Tag()
			}
		}
		return "image " + rest
	case scheme == "oci-layout":
		rest, _, _ = strings.Cut(rest, "@")
		return "layout " + rest
	case v.IsSource():
		return v.Op.GetSource().GetIdentifier()
	}
	if stage := stageOf(v.Name); stage != "" {
		return "stage " + stage
	}
	return "an empty directory"
}

// stepName is how BuildKit begins the name of an instruction's vertex:
// "[2/3]", "[build 2/3]" or "[linux/amd64->arm64 build 2/3]".
var stepName = regexp.MustCompile(`^\[(?:[^\]]* )?([^\] ]+) \d+/\d+\] `)

func stageOf(name string) string {
	m := stepName.FindStringSubmatch(name)
	if m == nil || strings.Contains(m[1], "/") { // a platform, no stage
		return ""
	}
	return m[1]
}
