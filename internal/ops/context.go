// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"context"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"hako/internal/layer"
	"hako/internal/tree"
)

// AsLayers returns a ref that an image can be made of: a directory, which may be
// all that a stage begins with and ends with, becomes one layer.
func (in *Interpreter) AsLayers(ctx context.Context, ref *layer.Ref) (*layer.Ref, error) {
	return in.asLayers(ctx, ref, digest.FromString("image of a directory"))
}

// asLayers returns a ref that others can be put on: a directory, which a stage
// may begin with (FROM a named context), becomes one layer.
func (in *Interpreter) asLayers(ctx context.Context, ref *layer.Ref, dgst digest.Digest) (*layer.Ref, error) {
	if ref == nil || ref.FS == nil {
		return ref, nil
	}
	all := &pb.FileOp{Actions: []*pb.FileAction{{
		Input: -1, SecondaryInput: 0, Output: 0,
		Action: &pb.FileAction_Copy{Copy: &pb.FileActionCopy{Src: "/", Dest: "/", Mode: -1, Timestamp: -1, DirCopyContents: true}},
	}}}
	res, err := computeFile(ctx, all, []tree.FS{ref.FS}, fileEnv{Clock: in.opt.Clock, Store: in.opt.Store})
	if err != nil {
		return nil, err
	}
	defer res.Close()
	l, err := in.write(ctx, res.Outputs[0].Overlay.Changes(), dgst, in.writeOptions("load from client"))
	if err != nil {
		return nil, err
	}
	return &layer.Ref{Layers: []*layer.Layer{l}}, nil
}
