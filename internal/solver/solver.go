// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"context"
	"runtime"
	"slices"
	"sync"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"hako/internal/layer"
	"hako/internal/progress"
	"hako/internal/tree"
)

// An Executor computes vertices. Its methods are called from many goroutines.
type Executor interface {
	// Validate reports what op asks for and this place cannot do. It is
	// called for every vertex of an evaluation before the first is executed.
	Validate(op *pb.Op, md *pb.OpMetadata) error

	// Execute computes op. inputs are the results of op.Inputs in order;
	// nil is the empty tree. It returns one result for each output of op.
	// dgst and name are those of the progress events, which the solver sends.
	Execute(ctx context.Context, op *pb.Op, dgst digest.Digest, name string, inputs []*layer.Ref) ([]*layer.Ref, error)

	// Selected returns what op reads of its input ref, the one with that number,
	// or nil if that is a chain of layers of which it uses all.
	Selected(ctx context.Context, op *pb.Op, number int, ref *layer.Ref) (*tree.Selection, error)

	// Release tells that no vertex that is now asked for will use refs as
	// inputs, where it will use live, or the caller of Evaluate has them. What was
	// kept for refs beyond their layers, like a root on disk, may go unless live
	// ones begin with the same layers. The refs themselves stay good; should a
	// later evaluation use one again, Release is called again.
	Release(refs, live []*layer.Ref)
}

// Options change how a [Solver] works.
type Options struct {
	// SerialExec, asked with each graph that has commands, tells whether they run
	// one at a time, in the order of the graph. nil is no.
	SerialExec func() bool
	// Commands limits how many commands run at a time if they are not serial; 0
	// is the number of Workers.
	Commands int
	// Workers limits how many vertices are computed at a time. 0 means as
	// many as there are CPUs, but at least 4, as many only wait for a network.
	// Commands do not count.
	Workers int
	// Sink gets Started and Done events; nil discards them.
	Sink progress.Sink
	// Plan, if set, is called with each graph before any vertex of it is
	// executed, but for directories that keys depend on. needed tells whether a
	// vertex has to be executed.
	Plan func(ctx context.Context, g *Graph, needed func(*Vertex) bool) error
	// Cache, if set, remembers results between builds.
	Cache Cache
}

// A Solver evaluates graphs, for any number of callers at a time. It serves
// one build: local sources of the same name are taken for the same.
// Everything that it computed it remembers until [Solver.Close].
type Solver struct {
	exec  Executor
	opt   Options
	slots chan struct{} // for vertices other than commands
	cmds  chan struct{} // for commands
	stop  context.CancelCauseFunc
	start func(t *task) // runs t in a goroutine that Close waits for
	group sync.WaitGroup

	mu    sync.Mutex
	tasks map[Key]*task
	queue []*task // commands that are not done, in order; only with SerialExec
	ended bool
}

// New returns a Solver whose work ends with ctx. It must be closed.
func New(ctx context.Context, exec Executor, opt Options) *Solver {
	if opt.Workers <= 0 {
		opt.Workers = max(4, runtime.GOMAXPROCS(0))
	}
	if opt.Commands <= 0 {
		opt.Commands = opt.Workers
	}
	if opt.Sink == nil {
		opt.Sink = progress.Discard{}
	}
	scope, stop := context.WithCancelCause(ctx)
	s := &Solver{
		exec:  exec,
		opt:   opt,
		slots: make(chan struct{}, opt.Workers),
		cmds:  make(chan struct{}, opt.Commands),
		stop:  stop,
		tasks: map[Key]*task{},
	}
	s.start = func(t *task) {
		tctx, cancel := context.WithCancelCause(scope)
		t.cancel = cancel
		s.group.Go(func() { s.run(tctx, t) })
	}
	return s
}

// Close stops what is under way, waits for it and releases all results.
func (s *Solver) Close() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.stop(ErrClosed)
	s.group.Wait()

	s.mu.Lock()
	refs := s.live()
	clear(s.tasks)
	s.mu.Unlock()
	s.release(refs, nil)
}

// Evaluate computes the results of definitions, which become one graph with
// one order. A nil result is the empty tree.
//
// If a vertex fails, or ctx ends, what no other caller waits for is cancelled
// and waited for before Evaluate returns.
func (s *Solver) Evaluate(ctx context.Context, defs []*pb.Definition) ([]*layer.Ref, error) {
	g, err := Load(defs...)
	if err != nil {
		return nil, err
	}
	return s.EvaluateGraph(ctx, g)
}

// EvaluateGraph computes the targets of a graph; see [Solver.Evaluate].
func (s *Solver) EvaluateGraph(ctx context.Context, g *Graph) ([]*layer.Ref, error) {
	for _, v := range g.vertices {
		if err := s.exec.Validate(v.Op, v.Metadata); err != nil {
			return nil, newVertexError(v, err)
		}
	}
	var found *lookup
	if s.opt.Cache != nil && slices.ContainsFunc(g.vertices, isCached) {
		var err error
		if found, err = s.lookUp(ctx, g); err != nil {
			return nil, err
		}
	}
	if s.opt.Plan != nil {
		if err := s.opt.Plan(ctx, g, found.executes); err != nil {
			return nil, err
		}
	}
	return s.evaluate(ctx, g, found)
}

// evaluate computes the targets of g, without what was found.
func (s *Solver) evaluate(ctx context.Context, g *Graph, found *lookup) ([]*layer.Ref, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	isCommand := func(v *Vertex) bool { return v.IsExec() && found.executes(v) }
	serial := s.opt.SerialExec != nil && slices.ContainsFunc(g.vertices, isCommand) && s.opt.SerialExec()
	tasks, err := s.enlist(g, found, serial)
	if err != nil {
		return nil, err
	}
	defer s.dismiss(tasks)
	if err := waitAll(ctx, tasks); err != nil {
		return nil, err
	}
	refs := make([]*layer.Ref, len(g.targets))
	for i, t := range g.targets {
		if t.Vertex != nil {
			refs[i] = tasks[t.Vertex].refs[t.Index]
		}
	}
	return refs, nil
}

// waitAll returns when all tasks are done or the first one failed.
func waitAll(ctx context.Context, tasks map[*Vertex]*task) error {
	group, gctx := errgroup.WithContext(ctx)
	for _, t := range tasks {
		group.Go(func() error {
			select {
			case <-t.done:
				return t.err
			case <-gctx.Done():
				return context.Cause(gctx)
			}
		})
	}
	return group.Wait()
}

// enlist finds or makes the task of every vertex that is needed and starts the
// new ones.
func (s *Solver) enlist(g *Graph, found *lookup, serial bool) (map[*Vertex]*task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, ErrClosed
	}
	tasks := make(map[*Vertex]*task, len(g.vertices))
	for _, v := range g.vertices {
		if !found.needs(v) {
			continue
		}
		t := s.tasks[v.Key]
		if t == nil {
			t = s.enlistNew(v, found, tasks, serial)
		}
		t.callers++
		tasks[v] = t
	}
	for _, e := range g.targets {
		// Targets are in use until Close: the caller has them.
		if e.Vertex != nil {
			tasks[e.Vertex].uses++
		}
	}
	s.advance()
	return tasks, nil
}

func (s *Solver) enlistNew(v *Vertex, found *lookup, tasks map[*Vertex]*task, serial bool) *task {
	if h := found.hit(v); h != nil {
		t := &task{vertex: v, done: make(chan struct{}), refs: h.refs, finished: true}
		close(t.done)
		s.tasks[v.Key] = t
		s.showHit(v, h.about)
		return t
	}
	t := newTask(v, tasks)
	found.describe(t)
	s.tasks[v.Key] = t
	if t.serial = serial && v.IsExec(); t.serial {
		s.queue = append(s.queue, t)
	}
	s.start(t)
	return t
}

// dismiss ends one caller's interest in tasks. Those that nobody wants any
// more are cancelled, forgotten and waited for.
func (s *Solver) dismiss(tasks map[*Vertex]*task) {
	s.mu.Lock()
	var dropped []*task
	for _, t := range tasks {
		t.callers--
		if t.callers == 0 && !t.finished {
			t.cancel(context.Canceled)
			delete(s.tasks, t.vertex.Key)
			dropped = append(dropped, t)
		}
	}
	s.mu.Unlock()
	for _, t := range dropped {
		<-t.done
	}
}

// live returns the results that somebody still wants. s.mu is held.
func (s *Solver) live() []*layer.Ref {
	var refs []*layer.Ref
	for _, t := range s.tasks {
		if t.finished && t.uses > 0 {
			refs = append(refs, t.refs...)
		}
	}
	return refs
}

func (s *Solver) release(refs, live []*layer.Ref) {
	none := func(r *layer.Ref) bool { return r == nil }
	if refs = slices.DeleteFunc(refs, none); len(refs) > 0 {
		s.exec.Release(refs, slices.DeleteFunc(live, none))
	}
}
