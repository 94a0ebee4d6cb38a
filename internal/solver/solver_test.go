// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"hako/internal/layer"
	"hako/internal/progress"
	"hako/internal/tree"
)

// fake is an Executor that records names.
type fake struct {
	mu       sync.Mutex
	began    []string
	released []*layer.Ref
	made     map[*layer.Ref]string // by which vertex
	lived    map[string][]string   // what was live when a vertex's result was released
	running  int                   // commands
	most     int
	invalid  string
	before   func(ctx context.Context, name string) error
}

func (f *fake) Validate(op *pb.Op, md *pb.OpMetadata) error {
	if n := md.GetDescription()["llb.customname"]; n != "" && n == f.invalid {
		return errors.New("cannot be honoured")
	}
	return nil
}

func (f *fake) Execute(ctx context.Context, op *pb.Op, _ digest.Digest, name string, _ []*layer.Ref) ([]*layer.Ref, error) {
	f.mu.Lock()
	f.began = append(f.began, name)
	if op.GetExec() != nil {
		f.running++
		f.most = max(f.most, f.running)
	}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if op.GetExec() != nil {
			f.running--
		}
	}()
	if f.before != nil {
		if err := f.before(ctx, name); err != nil {
			return nil, err
		}
	}
	out := make([]*layer.Ref, outputs(op))
	for i := range out {
		out[i] = &layer.Ref{}
		f.mu.Lock()
		if f.made == nil {
			f.made = make(map[*layer.Ref]string)
		}
		f.made[out[i]] = name
		f.mu.Unlock()
	}
	return out, nil
}

func (f *fake) Selected(context.Context, *pb.Op, int, *layer.Ref) (*tree.Selection, error) {
	return nil, nil
}

func (f *fake) Release(refs, live []*layer.Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released = append(f.released, refs...)
	if f.lived == nil {
		f.lived = make(map[string][]string)
	}
	for _, r := range refs {
		name := f.made[r]
		f.lived[name] = []string{}
		for _, l := range live {
			f.lived[name] = append(f.lived[name], f.made[l])
		}
	}
}

func (f *fake) names(prefix string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, n := range f.began {
		if len(n) >= len(prefix) && n[:len(prefix)] == prefix {
			out = append(out, n)
		}
	}
	return out
}

func marshal(t testing.TB, st llb.State) *pb.Definition {
	t.Helper()
	def, err := st.Marshal(context.Background(), llb.LinuxAmd64)
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}

func run(st llb.State, name string) llb.State {
	return st.Run(llb.Args([]string{name}), llb.WithCustomName(name)).Root()
}

func copyFrom(st, src llb.State, p string) llb.State {
	return st.File(llb.Copy(src, p, p), llb.WithCustomName("COPY "+p))
}

func image(name string) llb.State { return llb.Image(name, llb.WithCustomName("FROM "+name)) }

// threeStages copies from two stages between the commands of a third.
func threeStages() llb.State {
	base := image("base")
	s1 := run(run(base, "RUN one"), "RUN one more")
	s2 := run(image("other"), "RUN two")
	st := run(base, "RUN a")
	st = run(copyFrom(st, s1, "/1"), "RUN b")
	return run(copyFrom(st, s2, "/2"), "RUN c")
}

func TestSerialOrderKeepsStagesTogether(t *testing.T) {
	t.Parallel()
	f := &fake{}
	s := New(t.Context(), f, Options{SerialExec: always})
	defer s.Close()
	if _, err := s.Evaluate(t.Context(), []*pb.Definition{marshal(t, threeStages())}); err != nil {
		t.Fatal(err)
	}
	want := []string{"RUN one", "RUN one more", "RUN two", "RUN a", "RUN b", "RUN c"}
	if diff := cmp.Diff(want, f.names("RUN")); diff != "" {
		t.Errorf("order of commands (-want +got):\n%s", diff)
	}
	if f.most != 1 {
		t.Errorf("%d commands ran at a time, want 1", f.most)
	}
}

func TestEqualVerticesRunOnce(t *testing.T) {
	t.Parallel()
	f := &fake{}
	s := New(t.Context(), f, Options{})
	defer s.Close()
	// local.unique is random in each definition; the vertices are the same.
	def := func(name string) *pb.Definition {
		return marshal(t, run(copyFrom(image("base"), llb.Local("context"), "/x"), name))
	}
	var wg sync.WaitGroup
	for range 4 {
		for _, name := range []string{"RUN x", "RUN y"} {
			d := def(name)
			wg.Go(func() {
				if _, err := s.Evaluate(t.Context(), []*pb.Definition{d}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	got := f.names("")
	slices.Sort(got)
	want := []string{"COPY /x", "FROM base", "RUN x", "RUN y", "local://context"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("executed (-want +got):\n%s", diff)
	}
}

func TestCancelledCallerDoesNotStopTheOther(t *testing.T) {
	t.Parallel()
	started, goOn := make(chan struct{}), make(chan struct{})
	f := &fake{before: func(ctx context.Context, name string) error {
		if name != "RUN shared" {
			return nil
		}
		close(started)
		select {
		case <-goOn:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}}
	s := New(t.Context(), f, Options{SerialExec: always})
	defer s.Close()
	shared := run(image("base"), "RUN shared")
	first, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	go func() {
		_, err := s.Evaluate(first, []*pb.Definition{marshal(t, run(shared, "RUN first"))})
		errs <- err
	}()
	<-started
	enlisted := make(chan struct{})
	go func() {
		g, err := Load(marshal(t, run(shared, "RUN second")))
		if err != nil {
			errs <- err
			return
		}
		tasks, err := s.enlist(g, nil, true)
		close(enlisted)
		if err == nil {
			err = waitAll(t.Context(), tasks)
			s.dismiss(tasks)
		}
		errs <- err
	}()
	<-enlisted
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Errorf("first caller: %v, want canceled", err)
	}
	close(goOn)
	if err := <-errs; err != nil {
		t.Errorf("second caller: %v", err)
	}
	want := []string{"RUN shared", "RUN second"}
	if diff := cmp.Diff(want, f.names("RUN")); diff != "" {
		t.Errorf("executed (-want +got):\n%s", diff)
	}
}

func TestFailureStopsTheRest(t *testing.T) {
	t.Parallel()
	cause := errors.New("boom")
	f := &fake{before: func(ctx context.Context, name string) error {
		switch name {
		case "FROM bad":
			return cause
		case "FROM slow":
			<-ctx.Done() // returns only because bad failed
			return context.Cause(ctx)
		}
		return nil
	}}
	s := New(t.Context(), f, Options{SerialExec: always})
	defer s.Close()
	slow := run(image("slow"), "RUN slow")
	_, err := s.Evaluate(t.Context(), []*pb.Definition{marshal(t, copyFrom(slow, image("bad"), "/x"))})
	var ve *VertexError
	if !errors.As(err, &ve) || ve.Name != "FROM bad" || !errors.Is(err, cause) {
		t.Fatalf("got %v, want a VertexError of FROM bad", err)
	}
	if got := f.names("RUN"); got != nil {
		t.Errorf("ran %q after the failure", got)
	}
	if len(s.tasks) != 1 {
		t.Errorf("%d tasks are left, want the failed one", len(s.tasks))
	}
	if len(s.queue) != 0 {
		t.Errorf("%d commands wait for ever", len(s.queue))
	}
}

func TestValidateComesFirst(t *testing.T) {
	t.Parallel()
	f := &fake{invalid: "RUN c"}
	s := New(t.Context(), f, Options{})
	defer s.Close()
	_, err := s.Evaluate(t.Context(), []*pb.Definition{marshal(t, threeStages())})
	var ve *VertexError
	if !errors.As(err, &ve) || ve.Name != "RUN c" {
		t.Fatalf("got %v, want a VertexError of RUN c", err)
	}
	if len(f.began) != 0 {
		t.Errorf("executed %q before the error", f.began)
	}
}

func TestReleaseAfterLastConsumer(t *testing.T) {
	t.Parallel()
	f := &fake{}
	s := New(t.Context(), f, Options{SerialExec: always})
	refs, err := s.Evaluate(t.Context(), []*pb.Definition{marshal(t, threeStages()), {}})
	if err != nil {
		t.Fatal(err)
	}
	if len(refs) != 2 || refs[0] == nil || refs[1] != nil {
		t.Fatalf("results %v, want one ref and the empty tree", refs)
	}
	// Ten vertices; all but the target have served.
	if got := len(f.released); got != 9 {
		t.Errorf("%d refs released, want 9", got)
	}
	if slices.Contains(f.released, refs[0]) {
		t.Error("the target was released while the caller has it")
	}
	// Whoever releases a stage's root has to know who goes on.
	for _, tt := range []struct{ released, live string }{
		{"RUN one", "RUN one more"}, {"RUN one more", "COPY /1"}, {"COPY /1", "RUN b"}, {"FROM base", "RUN a"},
	} {
		if live := f.lived[tt.released]; !slices.Contains(live, tt.live) || slices.Contains(live, tt.released) {
			t.Errorf("%s is released while %q live", tt.released, live)
		}
	}
	s.Close()
	if live := f.lived["RUN c"]; len(live) > 0 {
		t.Errorf("in the end %q live", live)
	}
	if !slices.Contains(f.released, refs[0]) {
		t.Error("the target was not released at the end")
	}
	if _, err := s.Evaluate(t.Context(), []*pb.Definition{marshal(t, image("x"))}); !errors.Is(err, ErrClosed) {
		t.Errorf("evaluate after close: %v, want ErrClosed", err)
	}
}

// TestManyCallers lets callers with overlapping graphs come and go.
func TestManyCallers(t *testing.T) {
	t.Parallel()
	f := &fake{before: func(ctx context.Context, _ string) error { return context.Cause(ctx) }}
	s := New(t.Context(), f, Options{SerialExec: always, Workers: 2})
	defer s.Close()
	var defs []*pb.Definition
	for i := range 8 {
		st := threeStages()
		for j := range i {
			st = run(st, fmt.Sprintf("RUN more %d", j))
		}
		defs = append(defs, marshal(t, st))
	}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%3 == 0 {
				cancel()
			}
			_, err := s.Evaluate(ctx, []*pb.Definition{defs[i%8], defs[(i*5)%8]})
			if i%3 != 0 && err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if f.most != 1 {
		t.Errorf("%d commands ran at a time", f.most)
	}
}

// sink records the events of vertices by name.
type sink struct {
	mu     sync.Mutex
	names  map[digest.Digest]string
	events []string
}

func (s *sink) Send(e progress.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch e := e.(type) {
	case progress.Started:
		s.names[e.Vertex] = e.Name
		s.events = append(s.events, "start "+e.Name)
	case progress.Done:
		s.events = append(s.events, fmt.Sprintf("done %s %v", s.names[e.Vertex], e.Err))
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	f := &fake{before: func(_ context.Context, name string) error {
		if name == "RUN b" {
			return errors.New("exit 1")
		}
		return nil
	}}
	rec := &sink{names: map[digest.Digest]string{}}
	s := New(t.Context(), f, Options{Sink: rec})
	defer s.Close()
	st := run(run(run(image("base"), "RUN a"), "RUN b"), "RUN c")
	if _, err := s.Evaluate(t.Context(), []*pb.Definition{marshal(t, st)}); err == nil {
		t.Fatal("no error")
	}
	want := []string{"start FROM base", "done FROM base <nil>", "start RUN a", "done RUN a <nil>", "start RUN b", "done RUN b exit 1"}
	if diff := cmp.Diff(want, rec.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func always() bool { return true }
