// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
)

// fileEnv is what file operations need besides their inputs.
type fileEnv struct {
	// Clock is the time of what is created without a time of its own.
	Clock time.Time
	// Store is where the contents of unpacked archives lie while they are needed.
	Store *store.Store
}

// A fileResult is one output of a file operation.
type fileResult struct {
	Base    int           // index of the input that Overlay is based on, -1 for scratch
	Overlay *tree.Overlay // what the output is
}

// fileResults are the outputs of a file operation in order. The overlays' files
// can be opened until Close.
type fileResults struct {
	Outputs []fileResult

	spool spool
}

// Close releases what the overlays' contents need.
func (r *fileResults) Close() { r.spool.close() }

// A NotFoundError says that a source path does not exist.
type NotFoundError struct {
	Path string // as it was asked for

	in   tree.FS // where it was looked for
	more string  // what is known beyond
}

// Error implements error.
func (e *NotFoundError) Error() string { return fmt.Sprintf("%q: not found", e.Path) }

// Unwrap makes the error one of fs.ErrNotExist.
func (e *NotFoundError) Unwrap() error { return fs.ErrNotExist }

// computeFile runs op on trees. inputs are never modified; a nil one is scratch.
// The caller closes the results.
func computeFile(ctx context.Context, op *pb.FileOp, inputs []tree.FS, env fileEnv) (*fileResults, error) {
	r := &fileResults{spool: spool{store: env.Store}}
	g := &fileGraph{
		ctx: ctx, env: env, inputs: inputs, actions: op.Actions, spool: &r.spool,
		uses: make([]int, len(op.Actions)), states: make([]*fileState, len(op.Actions)),
	}
	outs, err := g.outputs()
	if err != nil {
		return nil, err
	}
	for i, a := range outs {
		s, err := g.input(int64(len(inputs) + a))
		if err != nil {
			r.Close()
			if len(outs) > 1 {
				err = fmt.Errorf("file output %d: %w", i, err)
			}
			return nil, err
		}
		r.Outputs = append(r.Outputs, fileResult{Base: s.base, Overlay: s.overlay})
	}
	return r, nil
}

// A fileGraph is the actions of one file operation. An index below the number of
// inputs is an input, one above that an action's result, -1 nothing.
type fileGraph struct {
	ctx     context.Context //nolint:containedctx // lives for one call
	env     fileEnv
	inputs  []tree.FS
	actions []*pb.FileAction
	spool   *spool
	uses    []int // how often an action's result is used
	states  []*fileState
}

// A fileState is an input or the result of an action.
type fileState struct {
	base    int
	overlay *tree.Overlay // nil for an input
	fsys    tree.FS
}

// outputs checks the graph and returns the actions that make output 0, 1
// and so on.
func (g *fileGraph) outputs() ([]int, error) {
	byOutput := map[int]int{}
	for i, a := range g.actions {
		for _, idx := range []int64{a.Input, a.SecondaryInput} {
			if err := g.use(idx); err != nil {
				return nil, fmt.Errorf("file action %d: %w", i, err)
			}
		}
		for _, o := range owners(a) {
			if n := o.GetByName(); n != nil && n.Input >= 0 {
				if err := g.use(n.Input); err != nil {
					return nil, fmt.Errorf("file action %d: %w", i, err)
				}
			}
		}
		if a.Output == -1 {
			continue
		}
		if _, dup := byOutput[int(a.Output)]; dup {
			return nil, fmt.Errorf("file action %d: duplicate output %d", i, a.Output)
		}
		byOutput[int(a.Output)] = i
		g.uses[i]++
	}
	if len(byOutput) == 0 {
		return nil, errors.New("file operation: no outputs specified")
	}
	outs := make([]int, len(byOutput))
	for i := range outs {
		a, ok := byOutput[i]
		if !ok {
			return nil, fmt.Errorf("file operation: missing output index %d", i)
		}
		outs[i] = a
	}
	return outs, nil
}

func (g *fileGraph) use(idx int64) error {
	if idx < -1 || idx >= int64(len(g.inputs)+len(g.actions)) {
		return fmt.Errorf("invalid input index %d, %d provided", idx, len(g.inputs)+len(g.actions))
	}
	if i := int(idx) - len(g.inputs); i >= 0 {
		g.uses[i]++
	}
	return nil
}

// owners returns the users and groups that an action names.
func owners(a *pb.FileAction) []*pb.UserOpt {
	var o *pb.ChownOpt
	switch x := a.Action.(type) {
	case *pb.FileAction_Copy:
		o = x.Copy.GetOwner()
	case *pb.FileAction_Mkdir:
		o = x.Mkdir.GetOwner()
	case *pb.FileAction_Mkfile:
		o = x.Mkfile.GetOwner()
	}
	return []*pb.UserOpt{o.GetUser(), o.GetGroup()}
}

// computing marks an action whose inputs are being computed.
func computing() *fileState { return &fileState{base: -2} }

// input returns what idx stands for, running actions as needed.
func (g *fileGraph) input(idx int64) (*fileState, error) {
	if idx == -1 {
		return &fileState{base: -1, fsys: tree.NewOverlay(nil)}, nil
	}
	if int(idx) < len(g.inputs) {
		s := &fileState{base: int(idx), fsys: g.inputs[idx]}
		if s.fsys == nil {
			s.fsys = tree.NewOverlay(nil)
		}
		return s, nil
	}
	i := int(idx) - len(g.inputs)
	if s := g.states[i]; s != nil {
		if s.base == -2 {
			return nil, fmt.Errorf("loop from index %d", idx)
		}
		return s, nil
	}
	g.states[i] = computing()
	s, err := g.run(g.actions[i])
	if err != nil {
		return nil, err
	}
	g.states[i] = s
	return s, nil
}

// mutable returns idx as an overlay that may be modified.
func (g *fileGraph) mutable(idx int64) (*fileState, error) {
	in, err := g.input(idx)
	if err != nil {
		return nil, err
	}
	var o *tree.Overlay
	switch {
	case idx == -1:
		o = tree.NewOverlay(nil)
	case in.overlay == nil && g.inputs[idx] == nil:
		o = tree.NewOverlay(nil)
	case in.overlay == nil:
		o = tree.NewOverlay(in.fsys)
	case g.uses[int(idx)-len(g.inputs)] > 1:
		o = in.overlay.Clone()
	default:
		o = in.overlay
	}
	return &fileState{base: in.base, overlay: o, fsys: o}, nil
}

// run runs one action.
func (g *fileGraph) run(a *pb.FileAction) (*fileState, error) {
	if err := g.ctx.Err(); err != nil {
		return nil, err
	}
	// The secondary input first: it may be the same action's result, and
	// must be seen as it was.
	src, err := g.input(a.SecondaryInput)
	if err != nil {
		return nil, err
	}
	s, err := g.mutable(a.Input)
	if err != nil {
		return nil, err
	}
	var opt *pb.ChownOpt
	switch x := a.Action.(type) {
	case *pb.FileAction_Mkdir:
		opt = x.Mkdir.Owner
	case *pb.FileAction_Mkfile:
		opt = x.Mkfile.Owner
	case *pb.FileAction_Copy:
		opt = x.Copy.Owner
	case *pb.FileAction_Rm, *pb.FileAction_Symlink:
		return nil, fmt.Errorf("file action %T: not supported: no Dockerfile asks for it", a.Action)
	default:
		return nil, fmt.Errorf("file action %T: not known", a.Action)
	}
	own, err := g.owner(opt)
	if err != nil {
		return nil, err
	}
	switch x := a.Action.(type) {
	case *pb.FileAction_Mkdir:
		err = mkdir(s.overlay, x.Mkdir, own, g.when(x.Mkdir.Timestamp))
	case *pb.FileAction_Mkfile:
		err = mkfile(s.overlay, x.Mkfile, own, g.when(x.Mkfile.Timestamp))
	case *pb.FileAction_Copy:
		err = g.copy(src.fsys, s.overlay, x.Copy, own)
		if e, ok := errors.AsType[*NotFoundError](err); ok && e.in == nil {
			e.in = src.fsys
		}
	}
	return s, err
}

// when is the time of what an action creates.
func (g *fileGraph) when(ts int64) time.Time {
	if ts == -1 {
		return g.env.Clock
	}
	return time.Unix(ts/1e9, ts%1e9)
}

// file runs a file operation: each output is one layer on top of its base.
func (in *Interpreter) file(ctx context.Context, op *pb.FileOp, dgst digest.Digest, name string, inputs []*layer.Ref) ([]*layer.Ref, error) {
	trees := make([]tree.FS, len(inputs))
	for i, ref := range inputs {
		if ref == nil {
			continue
		}
		if err := in.settled(ctx, ref); err != nil {
			return nil, err
		}
		fsys, err := ref.Tree(ctx)
		if err != nil {
			return nil, err
		}
		trees[i] = fsys
	}
	res, err := computeFile(ctx, op, trees, fileEnv{Clock: in.opt.Clock, Store: in.opt.Store})
	if err != nil {
		in.explain(ctx, err)
		return nil, err
	}
	defer res.Close()
	outs := make([]*layer.Ref, len(res.Outputs))
	for i, o := range res.Outputs {
		var base *layer.Ref
		if o.Base >= 0 {
			base = inputs[o.Base]
		}
		if base, err = in.asLayers(ctx, base, dgst); err != nil {
			return nil, err
		}
		l, err := in.write(ctx, o.Overlay.Changes(), dgst, in.writeOptions(name))
		if err != nil {
			return nil, err
		}
		in.logf(dgst, "%d paths · layer %s", l.Len(), units.HumanSize(float64(l.Descriptor().Size)))
		if !in.underExec(dgst) || res.spool.w != nil {
			l.Forget()
		}
		outs[i] = appendLayer(base, l)
	}
	return outs, nil
}
