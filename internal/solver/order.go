// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

// sort fills the list of vertices and the counts of uses.
//
// The order is depth-first, with one twist: of a vertex the *base* is what its
// result grows on (the root a command runs in, the tree a copy goes to) and
// the other inputs are its sides. All sides of a chain of bases come before the
// chain itself, bottom first. So the commands of one stage follow each other,
// and a root has to be put together once, even if the stage copies from others
// in between.
func (g *Graph) sort() {
	seen := map[*Vertex]bool{}
	for _, t := range g.targets {
		if t.Vertex != nil {
			g.visit(t, seen)
		}
	}
	for _, v := range g.vertices {
		for _, in := range v.Inputs {
			g.uses[in.Vertex]++
		}
	}
	for _, t := range g.targets {
		if t.Vertex != nil {
			g.uses[t.Vertex]++
		}
	}
}

// visit appends what e needs, then e's vertex.
func (g *Graph) visit(e Edge, seen map[*Vertex]bool) {
	var chain []*Vertex
	for e.Vertex != nil && !seen[e.Vertex] {
		chain = append(chain, e.Vertex)
		bases := e.Vertex.baseInputs(e.Index)
		if len(bases) == 0 {
			break
		}
		e = bases[0]
	}
	for i := len(chain) - 1; i >= 0; i-- {
		for _, in := range chain[i].Inputs {
			if i+1 < len(chain) && in.Vertex == chain[i+1] {
				continue
			}
			g.visit(in, seen)
		}
	}
	for i := len(chain) - 1; i >= 0; i-- {
		if !seen[chain[i]] {
			seen[chain[i]] = true
			g.vertices = append(g.vertices, chain[i])
		}
	}
}
