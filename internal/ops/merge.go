// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"context"
	"fmt"
	"iter"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"hako/internal/layer"
	"hako/internal/tree"
)

type changeSeq = iter.Seq2[tree.Change, error]

// merge stacks the layers of its inputs: the same as unpacking one after another.
func (in *Interpreter) merge(ctx context.Context, op *pb.MergeOp, dgst digest.Digest, inputs []*layer.Ref) ([]*layer.Ref, error) {
	out := &layer.Ref{}
	for _, i := range op.Inputs {
		if i.Input < 0 {
			continue
		}
		if int(i.Input) >= len(inputs) {
			return nil, fmt.Errorf("merge: input %d of %d", i.Input, len(inputs))
		}
		ref, err := in.asLayers(ctx, inputs[i.Input], dgst)
		if err != nil {
			return nil, err
		}
		if ref == nil {
			continue
		}
		out.Layers = append(out.Layers, ref.Layers...)
	}
	return []*layer.Ref{out}, nil
}
