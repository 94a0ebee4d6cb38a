// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"hako/internal/layer"
	"hako/internal/progress"
	"hako/internal/tree"
)

// A Cache remembers between builds what steps made. It is asked from many
// goroutines. It has no errors: what it cannot give is not there.
type Cache interface {
	// Salt is what keys depend on besides the graph: the form of layers, the time
	// that things are given if it was set; and for commands where they run, if they
	// cannot do there all that they can elsewhere.
	Salt(command bool) string
	// Find returns what was kept under key and in a few words what it is; nil if
	// nothing was.
	Find(ctx context.Context, step *Step, key Key) (ref *layer.Ref, about string)
	// Missed returns in a few words why step is about to be executed.
	Missed(ctx context.Context, step *Step) string
	// Skipped tells that step is not needed, as what was made of it was found.
	Skipped(step *Step)
	// Keep remembers that step made ref, under its keys; adopted is for one that was
	// found under one of them. It does not wait.
	Keep(step *Step, ref *layer.Ref, adopted bool)
}

// A Step is a vertex whose result can be kept.
type Step struct {
	Vertex *Vertex
	// Keys are the definition key, unless it is not known, and, once the inputs are
	// there, the content key.
	Keys []Key
	// Parts are what the definition key was computed of.
	Parts []Part
	// Took is how long executing it took.
	Took time.Duration
}

// A PartKind says what a [Part] is.
type PartKind string

// The parts of a definition key, in the order in which they are most telling.
const (
	PartText    PartKind = "text"    // the instruction's text; Name has it
	PartBase    PartKind = "base"    // an image; Name is its reference, Value its digest
	PartEnv     PartKind = "env"     // a variable of a command
	PartOp      PartKind = "op"      // the op, but for variables
	PartFiles   PartKind = "files"   // what is read of a directory, archive, repository or URL
	PartInput   PartKind = "input"   // another step; Value is its definition key
	PartOptions PartKind = "options" // Salt
)

// A Part is one of the things that a definition key depends on.
type Part struct {
	Kind  PartKind
	Name  string
	Value string
	Files []tree.SelectedFile // with PartFiles
}

// isCached tells whether results of v are kept. Sources are named by their
// digest, and neither merging nor what the frontend does between instructions
// is any work.
func isCached(v *Vertex) bool {
	return v.Op.GetExec() != nil || v.Op.GetFile() != nil && !strings.HasPrefix(v.Name, "[internal]")
}

// cachedOutput returns the output of v that is kept: that of its root. Others
// are inputs passed on.
func cachedOutput(v *Vertex) int {
	for _, m := range v.Op.GetExec().GetMounts() {
		if m.GetDest() == "/" {
			return int(m.GetOutput())
		}
	}
	return 0
}

// isDirectory tells whether v is a source that is a tree and no layers: its
// content is known only by looking.
func isDirectory(v *Vertex) bool {
	return v.IsSource() && !platformSource(v.Op.GetSource())
}

// A lookup finds out which steps of a graph need not be executed.
type lookup struct {
	s       *Solver
	g       *Graph
	steps   map[*Vertex]*Step
	keys    map[*Vertex]Key  // definition keys; "" if not known
	blocked map[*Vertex]bool // not to be looked up by definition: something is to be done anew
	sources map[*Vertex]*layer.Ref
	hits    map[*Vertex]*hit
	need    map[*Vertex]bool
}

// A hit is a step's result that was found.
type hit struct {
	refs  []*layer.Ref
	about string
}

// lookUp asks the cache about the steps of g, from the targets backwards: what
// lies behind a hit is neither needed nor asked for.
func (s *Solver) lookUp(ctx context.Context, g *Graph) (*lookup, error) {
	l, err := s.find(ctx, g, isDirectory)
	if err != nil {
		return nil, err
	}
	for _, v := range g.vertices {
		if step := l.steps[v]; step != nil && !l.need[v] && !s.hasTask(v) {
			s.opt.Cache.Skipped(step)
			s.showHit(v, "")
		}
	}
	return l, context.Cause(ctx)
}

// find looks the steps of g up. Of the sources that are trees only those are read
// that opens names; what reads others is not found.
func (s *Solver) find(ctx context.Context, g *Graph, opens func(*Vertex) bool) (*lookup, error) {
	l := &lookup{
		s: s, g: g,
		steps: map[*Vertex]*Step{}, keys: map[*Vertex]Key{}, blocked: map[*Vertex]bool{},
		hits: map[*Vertex]*hit{}, need: map[*Vertex]bool{},
	}
	if err := l.open(ctx, opens); err != nil {
		return nil, err
	}
	selections, err := l.read(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range g.vertices {
		l.define(v, selections)
	}
	for _, t := range g.targets {
		if t.Vertex != nil {
			l.visit(ctx, t.Vertex)
		}
	}
	return l, context.Cause(ctx)
}

// open evaluates the sources that are trees: what of them is read is a part of keys.
func (l *lookup) open(ctx context.Context, opens func(*Vertex) bool) error {
	sub := &Graph{}
	for _, v := range l.g.vertices {
		if opens(v) {
			sub.vertices = append(sub.vertices, v)
			sub.targets = append(sub.targets, Edge{Vertex: v})
		}
	}
	refs, err := l.s.evaluate(ctx, sub, nil)
	if err != nil {
		return err
	}
	l.sources = make(map[*Vertex]*layer.Ref, len(refs))
	for i, v := range sub.vertices {
		l.sources[v] = refs[i]
	}
	return nil
}

// A reading is an input of a vertex that is a tree.
type reading struct {
	v     *Vertex
	input int
}

// read finds what is read of trees. What cannot be found is left out: the step
// itself will say why.
func (l *lookup) read(ctx context.Context) (map[reading]*tree.Selection, error) {
	var all []reading
	for _, v := range l.g.vertices {
		for i, in := range v.Inputs {
			if isCached(v) && l.sources[in.Vertex] != nil {
				all = append(all, reading{v, i})
			}
		}
	}
	found := make([]*tree.Selection, len(all))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.GOMAXPROCS(0)))
	for i, r := range all {
		g.Go(func() error {
			sel, err := l.s.exec.Selected(gctx, r.v.Op, r.input, l.sources[r.v.Inputs[r.input].Vertex])
			if err == nil {
				found[i] = sel
			}
			return context.Cause(gctx)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	selections := make(map[reading]*tree.Selection, len(all))
	for i, r := range all {
		selections[r] = found[i]
	}
	return selections, nil
}

// define computes the definition key of v, whose inputs have theirs.
func (l *lookup) define(v *Vertex, selections map[reading]*tree.Selection) {
	l.blocked[v] = v.Metadata.GetIgnoreCache()
	for _, in := range v.Inputs {
		l.blocked[v] = l.blocked[v] || l.blocked[in.Vertex]
	}
	if v.IsSource() {
		l.keys[v] = sourceKey(v)
		return
	}
	known := true
	salt := l.s.opt.Cache.Salt(v.IsExec())
	parts := []Part{{Kind: PartText, Name: v.instruction()}, {Kind: PartOptions, Value: salt}}
	parts = append(parts, opParts(v)...)
	e := newCacheKey("definition", salt, v)
	for i, in := range v.Inputs {
		var p Part
		switch {
		case isDirectory(in.Vertex):
			p = Part{Kind: PartFiles, Name: in.Vertex.sourceName()}
			if sel := selections[reading{v, i}]; sel != nil {
				p.Value, p.Files = string(sel.Digest), sel.Files
			}
		case in.Vertex.IsSource():
			p = Part{Kind: PartBase, Name: in.Vertex.sourceName(), Value: string(l.keys[in.Vertex])}
		default:
			p = Part{Kind: PartInput, Name: in.Vertex.Name, Value: string(l.keys[in.Vertex])}
		}
		known = known && p.Value != ""
		parts = append(parts, p)
		e.text(string(p.Kind))
		e.number(uint64(in.Index))
		e.text(p.Value)
	}
	if known {
		l.keys[v] = e.key()
	}
	if isCached(v) {
		step := &Step{Vertex: v, Parts: parts}
		if known {
			step.Keys = []Key{l.keys[v]}
		}
		l.steps[v] = step
	}
}

// visit notes v as needed unless it is found, and then what it needs itself.
func (l *lookup) visit(ctx context.Context, v *Vertex) {
	if l.need[v] {
		return
	}
	l.need[v] = true
	if l.s.hasTask(v) {
		return
	}
	if step := l.steps[v]; step != nil && len(step.Keys) > 0 && !l.blocked[v] && l.onlyRoot(v) {
		if ref, about := l.s.opt.Cache.Find(ctx, step, step.Keys[0]); ref != nil {
			l.hits[v] = &hit{refs: cachedRefs(v, ref), about: about}
			return
		}
	}
	for _, in := range v.Inputs {
		l.visit(ctx, in.Vertex)
	}
}

// onlyRoot tells whether no other output of v is used than the one that is kept.
func (l *lookup) onlyRoot(v *Vertex) bool {
	out := cachedOutput(v)
	other := func(e Edge) bool { return e.Vertex == v && e.Index != out }
	for _, c := range l.g.vertices {
		if slices.ContainsFunc(c.Inputs, other) {
			return false
		}
	}
	return !slices.ContainsFunc(l.g.targets, other)
}

// cachedRefs returns results of v of which only the root's is there.
func cachedRefs(v *Vertex, ref *layer.Ref) []*layer.Ref {
	refs := make([]*layer.Ref, outputs(v.Op))
	refs[cachedOutput(v)] = ref
	return refs
}

// needs tells whether v is not behind a hit.
func (l *lookup) needs(v *Vertex) bool { return l == nil || l.need[v] }

// executes tells whether v is needed and was not found.
func (l *lookup) executes(v *Vertex) bool { return l == nil || l.need[v] && l.hits[v] == nil }

// hit returns what was found for v, or nil.
func (l *lookup) hit(v *Vertex) *hit {
	if l == nil {
		return nil
	}
	return l.hits[v]
}

// describe tells a task how its result is kept.
func (l *lookup) describe(t *task) {
	if l != nil && l.steps[t.vertex] != nil {
		t.step, t.onlyRoot = l.steps[t.vertex], l.onlyRoot(t.vertex)
	}
}

// hasTask tells whether v was computed, or is being computed, already.
func (s *Solver) hasTask(v *Vertex) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tasks[v.Key] != nil
}

// byContent looks for the result of a task whose inputs are there, as equal
// inputs gave it before, and completes the keys of its step.
func (s *Solver) byContent(ctx context.Context, t *task, inputs []*layer.Ref) *hit {
	v := t.vertex
	key, err := s.contentKey(ctx, v, inputs)
	if err != nil {
		return nil // executing it will tell
	}
	t.step.Keys = append(slices.Clone(t.step.Keys), key)
	if v.Metadata.GetIgnoreCache() || !t.onlyRoot {
		return nil
	}
	ref, about := s.opt.Cache.Find(ctx, t.step, key)
	if ref == nil {
		return nil
	}
	return &hit{refs: cachedRefs(v, ref), about: about}
}

// contentKey is equal for equal ops with inputs that are equal but for times:
// layers as a whole where they are used so, else what is read of them.
func (s *Solver) contentKey(ctx context.Context, v *Vertex, inputs []*layer.Ref) (Key, error) {
	e := newCacheKey("content", s.opt.Cache.Salt(v.IsExec()), v)
	for i, ref := range inputs {
		sel, err := s.exec.Selected(ctx, v.Op, i, ref)
		if err != nil {
			return "", err
		}
		if sel != nil {
			e.text("files")
			e.text(string(sel.Digest))
			continue
		}
		e.text("layers")
		if ref == nil {
			e.number(0)
			continue
		}
		e.number(uint64(len(ref.Layers)))
		for _, l := range ref.Layers {
			id, err := l.ContentID(ctx)
			if err != nil {
				return "", err
			}
			e.text(string(id))
		}
	}
	return e.key(), nil
}

// showHit tells that a step was found.
func (s *Solver) showHit(v *Vertex, about string) {
	now := time.Now()
	s.opt.Sink.Send(progress.Started{Vertex: v.Digest, Name: v.Name, Inputs: v.inputDigests(), Time: now})
	if about != "" {
		s.opt.Sink.Send(progress.Log{Vertex: v.Digest, Stream: 2, Data: []byte(about + "\n"), Time: now})
	}
	s.opt.Sink.Send(progress.Done{Vertex: v.Digest, Time: now, Cached: true})
}
