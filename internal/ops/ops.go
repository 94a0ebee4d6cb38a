// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/layer"
	"hako/internal/progress"
	"hako/internal/sandbox"
	"hako/internal/source"
	"hako/internal/store"
	"hako/internal/tree"
)

// Images gives the layers of images. It is safe for concurrent use, and gives
// the same Layer for the same layer.
type Images interface {
	// Layers returns the layers of the image that ref, with its digest, names
	// in a registry.
	Layers(ctx context.Context, ref string, platform *ocispecs.Platform) ([]*layer.Layer, error)
	// LayoutLayers does the same for an OCI layout known by the name of its store.
	LayoutLayers(ctx context.Context, store, ref string, platform *ocispecs.Platform) ([]*layer.Layer, error)
}

// A Sandbox runs processes in roots made of layers.
type Sandbox interface {
	// Prefetch begins to assemble the root of ref.
	Prefetch(ref *layer.Ref)
	// Assembling returns a channel that is closed when the root that l is being
	// unpacked for is assembled; nil if there is none.
	Assembling(l *layer.Layer) <-chan struct{}
	// Run runs p on ref. The solver knows whether it may be called concurrently.
	Run(ctx context.Context, ref *layer.Ref, p *sandbox.Process) (*sandbox.Result, error)
	// Release gives up what is kept for refs, but not for live.
	Release(refs, live []*layer.Ref)
}

// Facts are what has to be known of the whole graph before its first vertex is
// executed, by vertex.
type Facts struct {
	// ExecBases are sources that a command's root begins with.
	ExecBases map[digest.Digest]bool
	// UnderExec are vertices whose layers get into a command's root.
	UnderExec map[digest.Digest]bool
}

// Options are what the interpreter works with.
type Options struct {
	Store  *store.Store
	Images Images
	// Locals are the build contexts by name.
	Locals map[string]tree.FS
	HTTP   *http.Client
	// Git is how repositories are fetched.
	Git *source.GitClient
	// Sandbox starts the place to run commands in when the first one comes;
	// Unsupported tells before that what of a command it could not honour.
	Sandbox     func(ctx context.Context) (Sandbox, error)
	Unsupported func(op *pb.ExecOp, platform *pb.Platform) error
	// Secret returns a secret's value.
	Secret func(id string) ([]byte, bool, error)
	// Agent returns how to reach the ssh agent id; nil if there is none.
	Agent func(id string) func(context.Context) (net.Conn, error)
	// Clock is the build's one time, Write the form of layers.
	Clock time.Time
	Write layer.WriteOptions
	Sink  progress.Sink
	// About describes a build context; nil, or the zero value, leaves it out.
	About func(name string) ContextFacts
	// OnLayer is told of each layer made, by vertex.
	OnLayer func(vertex digest.Digest, l *layer.Layer)
	// OnGrowing returns who is told of the layer of a command while it is being
	// written; nil for nobody.
	OnGrowing func(vertex digest.Digest) func(*layer.Growing)
}

// An Interpreter executes the vertices of a graph.
type Interpreter struct {
	opt Options

	mu    sync.Mutex
	facts Facts
	views map[tree.FS]view         // of the build contexts
	gits  map[string]*fetchedGit   // repositories, by source
	used  map[digest.Digest]string // contents of secrets given to commands, which no layer may hold
	box   Sandbox                  // once it has been asked for
}

// New returns an interpreter.
func New(opt Options) *Interpreter {
	if opt.Sink == nil {
		opt.Sink = progress.Discard{}
	}
	return &Interpreter{
		opt: opt, used: make(map[digest.Digest]string), views: make(map[tree.FS]view), gits: make(map[string]*fetchedGit),
		facts: Facts{ExecBases: make(map[digest.Digest]bool), UnderExec: make(map[digest.Digest]bool)},
	}
}

// Plan adds what is known of a graph that is about to be executed.
func (in *Interpreter) Plan(f Facts) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for d := range f.ExecBases {
		in.facts.ExecBases[d] = true
	}
	for d := range f.UnderExec {
		in.facts.UnderExec[d] = true
	}
}

func (in *Interpreter) underExec(d digest.Digest) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.facts.UnderExec[d]
}

func (in *Interpreter) execBase(d digest.Digest) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.facts.ExecBases[d]
}

// Validate refuses what cannot be done here.
func (in *Interpreter) Validate(op *pb.Op, _ *pb.OpMetadata) error {
	switch o := op.Op.(type) {
	case *pb.Op_Exec:
		return in.opt.Unsupported(o.Exec, op.Platform)
	case *pb.Op_Source:
		return validateSource(o.Source)
	case *pb.Op_File, *pb.Op_Merge, nil:
		return nil
	}
	return fmt.Errorf("operation %T is not supported", op.Op)
}

// Execute computes one vertex; see solver.Executor.
func (in *Interpreter) Execute(ctx context.Context, op *pb.Op, dgst digest.Digest, name string, inputs []*layer.Ref) ([]*layer.Ref, error) {
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		return in.source(ctx, o.Source, op.Platform, dgst)
	case *pb.Op_File:
		return in.file(ctx, o.File, dgst, name, inputs)
	case *pb.Op_Merge:
		return in.merge(ctx, o.Merge, dgst, inputs)
	case *pb.Op_Exec:
		return in.exec(ctx, o.Exec, dgst, inputs)
	}
	return nil, fmt.Errorf("operation %T is not supported", op.Op)
}

// Release gives up what was kept for refs; see solver.Executor.
func (in *Interpreter) Release(refs, live []*layer.Ref) {
	for _, r := range refs {
		for _, l := range r.Layers {
			l.CloseIdle()
		}
	}
	in.mu.Lock()
	box := in.box
	in.mu.Unlock()
	if box != nil {
		box.Release(refs, live)
	}
}

// sandbox returns the place to run commands in.
func (in *Interpreter) sandbox(ctx context.Context) (Sandbox, error) {
	box, err := in.opt.Sandbox(ctx)
	if err != nil {
		return nil, err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.box = box
	return box, nil
}

// writeOptions are those of a layer that name made.
func (in *Interpreter) writeOptions(name string) layer.WriteOptions {
	opt := in.opt.Write
	opt.Created = in.opt.Clock
	opt.Description = name
	opt.Forbidden = in.forbidden()
	return opt
}

// write makes a layer of changes and tells who wants to know.
func (in *Interpreter) write(ctx context.Context, changes changeSeq, dgst digest.Digest, opt layer.WriteOptions) (*layer.Layer, error) {
	l, err := layer.Write(ctx, in.opt.Store, changes, opt)
	if err != nil {
		return nil, err
	}
	if in.opt.OnLayer != nil {
		in.opt.OnLayer(dgst, l)
	}
	return l, nil
}

// appendLayer returns base with one more layer.
func appendLayer(base *layer.Ref, l *layer.Layer) *layer.Ref {
	var layers []*layer.Layer
	if base != nil {
		layers = append(layers, base.Layers...)
	}
	return &layer.Ref{Layers: append(layers, l)}
}

func (in *Interpreter) logf(dgst digest.Digest, format string, args ...any) {
	in.opt.Sink.Send(progress.Log{Vertex: dgst, Stream: 2, Data: fmt.Appendf(nil, format+"\n", args...), Time: time.Now()})
}

// settled waits for a root that is being assembled from the ref's layers: their
// indexes come out of that pass, and a second one would cost as much again.
func (in *Interpreter) settled(ctx context.Context, ref *layer.Ref) error {
	if ref == nil || in.opt.Sandbox == nil {
		return nil
	}
	for _, l := range ref.Layers {
		if !l.IsForeign() || l.HasIndex() {
			continue
		}
		sb, err := in.sandbox(ctx)
		if err != nil {
			return nil //nolint:nilerr // without a sandbox nothing is being assembled
		}
		done := sb.Assembling(l)
		if done == nil {
			continue
		}
		select {
		case <-done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
