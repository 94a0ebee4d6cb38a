// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"context"

	"github.com/moby/buildkit/solver/pb"

	"hako/internal/layer"
	"hako/internal/tree"
)

// Count returns how many files a copy would take from src, and their bytes.
// Archives that it would unpack count as the files they are. Nothing is read but
// directories.
func Count(ctx context.Context, src tree.FS, a *pb.FileActionCopy) (files int, bytes int64, err error) {
	empty, err := (*layer.Ref)(nil).Tree(ctx)
	if err != nil {
		return 0, 0, err
	}
	dst := tree.NewOverlay(empty)
	plain := a.CloneVT()
	plain.AttemptUnpackDockerCompatibility, plain.CreateDestPath = false, true
	g := &fileGraph{ctx: ctx}
	if err := g.copy(src, dst, plain, nil); err != nil {
		return 0, 0, err
	}
	for c, err := range dst.Changes() {
		if err != nil {
			return 0, 0, err
		}
		if !c.Mode.IsDir() {
			files++
			bytes += c.Size
		}
	}
	return files, bytes, nil
}
