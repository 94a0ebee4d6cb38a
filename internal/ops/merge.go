// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"errors"
	"fmt"
	"iter"

	"github.com/moby/buildkit/solver/pb"

	"hako/internal/layer"
	"hako/internal/tree"
)

type changeSeq = iter.Seq2[tree.Change, error]

// merge stacks the layers of its inputs: the same as unpacking one after another.
func (in *Interpreter) merge(op *pb.MergeOp, inputs []*layer.Ref) ([]*layer.Ref, error) {
	out := &layer.Ref{}
	for _, i := range op.Inputs {
		if i.Input < 0 {
			continue
		}
		if int(i.Input) >= len(inputs) {
			return nil, fmt.Errorf("merge: input %d of %d", i.Input, len(inputs))
		}
		ref := inputs[i.Input]
		if ref == nil {
			continue
		}
		if ref.FS != nil {
			return nil, errors.New("merge: an input is no image")
		}
		out.Layers = append(out.Layers, ref.Layers...)
	}
	return []*layer.Ref{out}, nil
}
