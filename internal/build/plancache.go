// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"

	"github.com/moby/buildkit/solver/pb"

	"hako/internal/layer"
	"hako/internal/solver"
)

// cached says what a cache has of a vertex; nil if it is not asked about it.
func (p *planner) cached(ctx context.Context, v *solver.Vertex) *PlanCache {
	if !p.found.IsStep(v) {
		return nil
	}
	switch ref := p.found.Result(v); {
	case ref != nil:
		return &PlanCache{State: PlanFound, Size: ref.Layers[len(ref.Layers)-1].Descriptor().Size}
	case !p.found.Needs(v):
		return &PlanCache{State: PlanNotNeeded}
	}
	return &PlanCache{State: PlanMissed, Why: p.found.Why(ctx, v)}
}

// roots calls do for all that the roots of commands are made of which would be
// executed.
func (p *planner) roots(do func(v *solver.Vertex)) {
	for _, v := range p.graph.Vertices() {
		if !p.found.Executes(v) {
			continue
		}
		for _, m := range v.Op.GetExec().GetMounts() {
			if m.GetDest() != pb.RootMount || m.GetInput() < 0 {
				continue
			}
			for _, c := range p.graph.RootChain(v.Inputs[m.GetInput()]) {
				do(c)
			}
		}
	}
}

// execBases returns the sources that the root of some command is built on.
func (p *planner) execBases() map[*solver.Vertex]bool {
	based := make(map[*solver.Vertex]bool)
	p.roots(func(v *solver.Vertex) { based[v] = v.IsSource() })
	return based
}

// wanted returns the layers of what was found for v, if their bytes are needed: for
// a command's root, or for a file that is written of the image.
func (p *planner) wanted(v *solver.Vertex) []*layer.Layer {
	ref := p.found.Result(v)
	if ref == nil {
		return nil
	}
	isWanted := p.build.outputs.files() && p.inTargets(v)
	p.roots(func(c *solver.Vertex) { isWanted = isWanted || c == v })
	if !isWanted {
		return nil
	}
	return ref.Layers
}
