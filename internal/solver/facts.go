// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"slices"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// baseInputs returns the inputs whose layers are part of the output's own
// chain: none for a source and for what starts from an empty tree.
func (v *Vertex) baseInputs(output int) []Edge {
	input := int64(-1)
	switch op := v.Op.Op.(type) {
	case *pb.Op_Merge:
		var all []Edge
		for _, in := range op.Merge.GetInputs() {
			if in.GetInput() >= 0 {
				all = append(all, v.Inputs[in.GetInput()])
			}
		}
		return all
	case *pb.Op_Exec:
		for _, m := range op.Exec.GetMounts() {
			if isOutput(m) && m.GetOutput() == int64(output) {
				input = m.GetInput()
			}
		}
	case *pb.Op_File:
		input = fileBase(op.File, len(v.Inputs), int64(output))
	}
	if input < 0 {
		return nil
	}
	return []Edge{v.Inputs[input]}
}

// fileBase returns the op input that an output of a FileOp grows on, or -1.
// Indexes from inputs on name the results of earlier actions (pb FileAction).
func fileBase(op *pb.FileOp, inputs int, output int64) int64 {
	actions := op.GetActions()
	i := slices.IndexFunc(actions, func(a *pb.FileAction) bool { return a.GetOutput() == output })
	if i < 0 {
		return -1
	}
	return actionBase(op, inputs, actions[i].GetInput())
}

// actionBase follows an index of an action, which may name the result of an
// earlier action, to an input of the op or -1.
func actionBase(op *pb.FileOp, inputs int, i int64) int64 {
	for i >= int64(inputs) {
		i = op.GetActions()[i-int64(inputs)].GetInput()
	}
	return i
}

// RootChain returns the vertices whose layers make up the result e, bottom
// first, e's own vertex last. Layers of these can be pushed as soon as they
// exist; those of other vertices are no part of the image.
func (g *Graph) RootChain(e Edge) []*Vertex {
	var chain []*Vertex
	seen := map[Edge]bool{}
	listed := map[*Vertex]bool{}
	var walk func(Edge)
	walk = func(e Edge) {
		if e.Vertex == nil || seen[e] {
			return
		}
		seen[e] = true
		for _, in := range e.Vertex.baseInputs(e.Index) {
			walk(in)
		}
		if !listed[e.Vertex] {
			listed[e.Vertex] = true
			chain = append(chain, e.Vertex)
		}
	}
	walk(e)
	return chain
}

// ExecBases returns the sources that the root of some command is built on, in
// the order of the graph. Only these have to be unpacked.
func (g *Graph) ExecBases() []*Vertex {
	based := map[*Vertex]bool{}
	for _, v := range g.vertices {
		for _, m := range v.Op.GetExec().GetMounts() {
			if m.GetDest() != pb.RootMount || m.GetInput() < 0 {
				continue
			}
			for _, c := range g.RootChain(v.Inputs[m.GetInput()]) {
				based[c] = c.IsSource()
			}
		}
	}
	var out []*Vertex
	for _, v := range g.vertices {
		if based[v] {
			out = append(out, v)
		}
	}
	return out
}

// InTargets returns the digests of the vertices whose layers are in the chain
// of some of these targets.
func (g *Graph) InTargets(targets []Edge) map[digest.Digest]bool {
	in := map[digest.Digest]bool{}
	for _, t := range targets {
		for _, v := range g.RootChain(t) {
			in[v.Digest] = true
		}
	}
	return in
}

// A Selection says what of a tree is read.
type Selection struct {
	All   bool     // everything may be read: a command runs on it or mounts it whole
	Paths []string // else these, sorted; they may be patterns
}

// SelectedPaths returns what is read of a source by name: through copies and
// mounts from it and from everything that grows on it.
func (g *Graph) SelectedPaths(source *Vertex) Selection {
	grown := map[Edge]bool{}
	carries := func(e Edge) bool {
		has, ok := grown[e]
		if !ok {
			has = slices.Contains(g.RootChain(e), source)
			grown[e] = has
		}
		return has
	}
	var s Selection
	for _, v := range g.vertices {
		for i, in := range v.Inputs {
			if carries(in) {
				s.add(v, int64(i))
			}
		}
	}
	slices.Sort(s.Paths)
	s.Paths = slices.Compact(s.Paths)
	return s
}

// add notes what v reads of its input i.
func (s *Selection) add(v *Vertex, i int64) {
	for _, m := range v.Op.GetExec().GetMounts() {
		if m.GetInput() != i {
			continue
		}
		if m.GetSelector() == "" || m.GetDest() == pb.RootMount {
			s.All = true
			continue
		}
		s.Paths = append(s.Paths, m.GetSelector())
	}
	for _, a := range v.Op.GetFile().GetActions() {
		if c := a.GetCopy(); c != nil && actionBase(v.Op.GetFile(), len(v.Inputs), a.GetSecondaryInput()) == i {
			s.Paths = append(s.Paths, c.GetSrc())
		}
		for _, o := range []*pb.ChownOpt{a.GetCopy().GetOwner(), a.GetMkdir().GetOwner(), a.GetMkfile().GetOwner()} {
			if s.names(v, o.GetUser(), i) || s.names(v, o.GetGroup(), i) {
				s.Paths = append(s.Paths, "/etc/group", "/etc/passwd")
			}
		}
	}
}

// names reports whether a name is looked up in input i of v.
func (*Selection) names(v *Vertex, u *pb.UserOpt, i int64) bool {
	return u.GetByName() != nil && actionBase(v.Op.GetFile(), len(v.Inputs), u.GetByName().GetInput()) == i
}
