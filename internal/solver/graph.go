// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package solver decides what of a build graph runs, in which order and how
// often. It runs nothing itself: an [Executor] does.
//
// A [Graph] is loaded from one or more LLB definitions; equal steps of all of
// them become one vertex, because they have the same [Key]. A [Solver]
// evaluates graphs, concurrently and for several callers, and executes every
// vertex once.
package solver

import (
	"errors"
	"fmt"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// A Vertex is one step of a graph. It is not changed after loading.
type Vertex struct {
	Digest   digest.Digest  // of the op in the definition that brought it first
	Key      Key            // what it computes; equal keys are one vertex
	Name     string         // as BuildKit names it: "[build 2/5] RUN make"
	Op       *pb.Op         // never nil
	Metadata *pb.OpMetadata // never nil
	Inputs   []Edge         // in the order of Op.Inputs
	File     string         // the Dockerfile it came from, or ""
	Lines    [][2]int       // first and last line of each range, from 1
	Text     []byte         // the whole text of File
}

// IsExec reports whether the vertex runs a command.
func (v *Vertex) IsExec() bool { return v.Op.GetExec() != nil }

// IsSource reports whether the vertex is a source.
func (v *Vertex) IsSource() bool { return v.Op.GetSource() != nil }

// An Edge is one output of a vertex. An Edge without a vertex is the empty
// tree, "scratch".
type Edge struct {
	Vertex *Vertex
	Index  int
}

// A Graph is what is needed for a list of targets.
type Graph struct {
	vertices []*Vertex // inputs before what uses them; see order.go
	targets  []Edge
	byKey    map[Key]*Vertex
	uses     map[*Vertex]int
}

// Load makes one graph of several definitions. The result of each, in order,
// is a target. A definition without ops stands for the empty tree.
//
// Whatever the graph asks for that no version of this program can do is an
// error here, a *[VertexError] where a line can be named.
func Load(defs ...*pb.Definition) (*Graph, error) {
	g := &Graph{byKey: map[Key]*Vertex{}, uses: map[*Vertex]int{}}
	fail := func(i int, err error) error { return fmt.Errorf("load graph %d of %d: %w", i+1, len(defs), err) }
	loaders, local := make([]*loader, len(defs)), locals{}
	for i, def := range defs {
		loaders[i] = &loader{graph: g, def: def, locals: local, loaded: map[digest.Digest]*Vertex{}}
		if err := loaders[i].decode(); err != nil {
			return nil, fail(i, err)
		}
	}
	for i, l := range loaders {
		target, err := l.load()
		if err != nil {
			return nil, fail(i, err)
		}
		g.targets = append(g.targets, target)
	}
	g.sort()
	return g, nil
}

// Vertices returns all vertices. Inputs come before what uses them, and the
// commands of a stage follow each other where the graph allows it. The order
// depends on the definitions alone.
func (g *Graph) Vertices() []*Vertex { return g.vertices }

// Targets returns the results of the definitions, in their order.
func (g *Graph) Targets() []Edge { return g.targets }

// Vertex returns the vertex with that digest or nil. Digests other than those
// in [Vertex.Digest] are not known.
func (g *Graph) Vertex(dgst digest.Digest) *Vertex {
	for _, v := range g.vertices {
		if v.Digest == dgst {
			return v
		}
	}
	return nil
}

// Consumers returns how many inputs of other vertices, and targets, the
// vertex's outputs serve.
func (g *Graph) Consumers(v *Vertex) int { return g.uses[v] }

// loader turns one definition into vertices of a graph.
type loader struct {
	graph  *Graph
	def    *pb.Definition
	locals locals // of all definitions
	ops    map[digest.Digest]*pb.Op
	last   *pb.Op // the result selector; nil for no ops
	loaded map[digest.Digest]*Vertex
}

// decode reads the definition's ops.
func (l *loader) decode() error {
	defs := l.def.GetDef()
	l.ops = make(map[digest.Digest]*pb.Op, len(defs))
	for i, dt := range defs {
		op := &pb.Op{}
		if err := op.UnmarshalVT(dt); err != nil {
			return fmt.Errorf("decode op %d of %d: %w", i+1, len(defs), err)
		}
		if err := l.locals.add(op); err != nil {
			return fmt.Errorf("decode op %d of %d: %w", i+1, len(defs), err)
		}
		l.ops[digest.FromBytes(dt)] = op
		l.last = op
	}
	return nil
}

// load returns the edge that the definition's last element selects.
func (l *loader) load() (Edge, error) {
	last := l.last
	if last == nil {
		return Edge{}, nil
	}
	if last.Op != nil {
		return Edge{}, errors.New("the definition's last element is no result selector")
	}
	switch len(last.Inputs) {
	case 0:
		return Edge{}, nil
	case 1:
		return l.edge(last.Inputs[0], map[digest.Digest]bool{})
	}
	return Edge{}, fmt.Errorf("the result selector has %d inputs, want 1", len(last.Inputs))
}

// edge loads what one input names. open holds the vertices being loaded.
func (l *loader) edge(in *pb.Input, open map[digest.Digest]bool) (Edge, error) {
	v, err := l.vertex(digest.Digest(in.GetDigest()), open)
	if err != nil {
		return Edge{}, err
	}
	idx := in.GetIndex()
	if n := outputs(v.Op); idx < 0 || idx >= int64(n) {
		return Edge{}, newVertexError(v, fmt.Errorf("output %d is asked for, there are %d", idx, n))
	}
	return Edge{Vertex: v, Index: int(idx)}, nil
}

func (l *loader) vertex(dgst digest.Digest, open map[digest.Digest]bool) (*Vertex, error) {
	if v := l.loaded[dgst]; v != nil {
		return v, nil
	}
	op := l.ops[dgst]
	if op == nil {
		return nil, fmt.Errorf("input %s is not in the definition", dgst)
	}
	if open[dgst] {
		return nil, fmt.Errorf("input %s depends on itself", dgst)
	}
	open[dgst] = true
	defer delete(open, dgst)

	op, err := l.locals.widen(op)
	if err != nil {
		return nil, err
	}
	v := &Vertex{Digest: dgst, Op: op, Metadata: l.def.GetMetadata()[string(dgst)]}
	if v.Metadata == nil {
		v.Metadata = &pb.OpMetadata{}
	}
	v.Name = vertexName(v)
	v.File, v.Lines, v.Text = l.location(dgst)
	if v.File == "" && v.IsSource() {
		v.File, v.Lines, v.Text = l.onlyUse(dgst)
	}
	if err := checkOp(op); err != nil {
		return nil, newVertexError(v, err)
	}
	for _, in := range op.Inputs {
		e, err := l.edge(in, open)
		if err != nil {
			return nil, err
		}
		v.Inputs = append(v.Inputs, e)
	}
	v.Key = keyOf(v)
	if same := l.graph.byKey[v.Key]; same != nil {
		v = same
	}
	l.graph.byKey[v.Key] = v
	l.loaded[dgst] = v
	return v, nil
}

// location returns where a vertex stands in its Dockerfile. A vertex may have
// several locations; the first is the instruction it was made for.
func (l *loader) location(dgst digest.Digest) (file string, lines [][2]int, text []byte) {
	src := l.def.GetSource()
	for _, loc := range src.GetLocations()[string(dgst)].GetLocations() {
		i := int(loc.GetSourceIndex())
		if i < 0 || i >= len(src.GetInfos()) || len(loc.GetRanges()) == 0 {
			continue
		}
		for _, r := range loc.GetRanges() {
			lines = append(lines, [2]int{int(r.GetStart().GetLine()), int(r.GetEnd().GetLine())})
		}
		info := src.GetInfos()[i]
		return info.GetFilename(), lines, info.GetData()
	}
	return "", nil, nil
}

// onlyUse returns the location of the one vertex that uses a source: that of
// the ADD of a URL, which itself has none.
func (l *loader) onlyUse(dgst digest.Digest) (file string, lines [][2]int, text []byte) {
	var user digest.Digest
	for id, op := range l.ops {
		for _, in := range op.Inputs {
			if in.GetDigest() != string(dgst) {
				continue
			}
			if user != "" && user != id {
				return "", nil, nil
			}
			user = id
		}
	}
	return l.location(user)
}
