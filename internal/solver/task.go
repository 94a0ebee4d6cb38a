// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"hako/internal/layer"
	"hako/internal/progress"
)

// A task is one vertex being computed, for all callers that want it.
type task struct {
	vertex *Vertex
	inputs []*task // of vertex.Inputs
	cancel context.CancelCauseFunc
	serial bool          // one of the queue
	turn   chan struct{} // closed by advance: all earlier commands are done
	done   chan struct{} // closed by run, after refs and err are set
	refs   []*layer.Ref
	err    error

	step     *Step // how the result is kept between builds; nil: it is not
	onlyRoot bool  // no output is used but the one that is kept

	// Guarded by Solver.mu.
	callers  int  // evaluations that want it
	uses     int  // inputs of unfinished tasks, and targets, that it serves
	finished bool // as done, for those who hold the lock
	hasTurn  bool
}

// newTask returns a task for v. The tasks of its inputs exist.
func newTask(v *Vertex, tasks map[*Vertex]*task) *task {
	t := &task{vertex: v, turn: make(chan struct{}), done: make(chan struct{})}
	for _, in := range v.Inputs {
		it := tasks[in.Vertex]
		it.uses++
		t.inputs = append(t.inputs, it)
	}
	return t
}

// run computes a task and tells everyone.
func (s *Solver) run(ctx context.Context, t *task) {
	defer t.cancel(nil)
	refs, err := s.compute(ctx, t)

	s.mu.Lock()
	t.refs, t.err, t.finished = refs, err, true
	if i := slices.Index(s.queue, t); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	s.advance()
	var unused []*layer.Ref
	if t.uses == 0 {
		unused = append(unused, refs...) // those who wanted it gave up
	}
	for _, in := range t.inputs {
		in.uses--
		if in.uses == 0 && in.finished {
			unused = append(unused, in.refs...)
		}
	}
	var live []*layer.Ref
	if len(unused) > 0 {
		live = s.live()
	}
	s.mu.Unlock()

	s.release(unused, live)
	close(t.done)
}

// advance gives the turn to the first command of the queue. The lock is held.
// Commands only wait for earlier ones, so the first can always go on.
func (s *Solver) advance() {
	if len(s.queue) > 0 && !s.queue[0].hasTurn {
		s.queue[0].hasTurn = true
		close(s.queue[0].turn)
	}
}

// compute waits for the inputs, the turn and a free worker, then executes.
func (s *Solver) compute(ctx context.Context, t *task) ([]*layer.Ref, error) {
	inputs := make([]*layer.Ref, len(t.inputs))
	for i, in := range t.inputs {
		if err := wait(ctx, in.done); err != nil {
			return nil, err
		}
		if in.err != nil {
			return nil, in.err // it carries the name of the vertex that failed
		}
		inputs[i] = in.refs[t.vertex.Inputs[i].Index]
	}
	why := ""
	if t.step != nil {
		if h := s.byContent(ctx, t, inputs); h != nil {
			s.showHit(t.vertex, h.about)
			s.opt.Cache.Keep(t.step, h.refs[cachedOutput(t.vertex)], true)
			return h.refs, nil
		}
		why = s.opt.Cache.Missed(ctx, t.step)
	}
	if t.serial {
		if err := wait(ctx, t.turn); err != nil {
			return nil, err
		}
		return s.execute(ctx, t, inputs, why)
	}
	slots := s.slots
	if t.vertex.IsExec() {
		slots = s.cmds
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return s.execute(ctx, t, inputs, why)
}

func wait(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return context.Cause(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// execute calls the executor and reports progress; why says what it is done for
// although there is a cache.
func (s *Solver) execute(ctx context.Context, t *task, inputs []*layer.Ref, why string) ([]*layer.Ref, error) {
	v, began := t.vertex, time.Now()
	s.opt.Sink.Send(progress.Started{Vertex: v.Digest, Name: v.Name, Inputs: v.inputDigests(), Time: began})
	if why != "" {
		s.opt.Sink.Send(progress.Log{Vertex: v.Digest, Stream: 2, Data: []byte("not cached: " + why + "\n"), Time: began})
	}
	refs, err := s.exec.Execute(ctx, v.Op, v.Digest, v.Name, inputs)
	if want := outputs(v.Op); err == nil && len(refs) != want {
		err = fmt.Errorf("%d results, want %d", len(refs), want)
	}
	s.opt.Sink.Send(progress.Done{Vertex: v.Digest, Time: time.Now(), Err: err})
	if err != nil {
		return nil, newVertexError(v, err)
	}
	if t.step != nil {
		t.step.Took = time.Since(began)
		s.opt.Cache.Keep(t.step, refs[cachedOutput(v)], false)
	}
	return refs, nil
}

// inputDigests are those of the vertices that v depends on, for the display.
func (v *Vertex) inputDigests() []digest.Digest {
	var from []digest.Digest
	for _, in := range v.Inputs {
		from = append(from, in.Vertex.Digest)
	}
	return from
}
