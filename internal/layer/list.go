// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"context"
	"iter"

	"hako/internal/tree"
)

// An Item is one path of a layer, as the layer itself has it.
type Item struct {
	tree.Entry      // if Present; else only the path. Node is the layer's own.
	Present    bool // the layer has something at the path
	Deleted    bool // what lower layers have at the path is gone
	Opaque     bool // what lower layers have below the path is gone
	// LinkTo is set if the path is a hard link to a file of a lower layer, whose
	// path it is; of the Entry only the path is then known.
	LinkTo string
}

// Items returns what the layer has, sorted with tree.ComparePaths, streaming
// the layer once if its index is not known. Directories that the layer has no
// entry for are left out.
func (l *Layer) Items(ctx context.Context) (iter.Seq2[Item, error], error) {
	x, err := l.index(ctx)
	if err != nil {
		return nil, err
	}
	return func(yield func(Item, error) bool) {
		for i := range x.count {
			r, err := x.record(i)
			if err != nil {
				yield(Item{}, err)
				return
			}
			it := Item{
				Entry: r.Entry, LinkTo: r.linkTo,
				Present: r.kind&(present|lowlink) != 0 && r.kind&implied == 0,
				Deleted: r.kind&whiteout != 0, Opaque: r.kind&opaque != 0,
			}
			if r.group != 0 {
				it.Node = tree.NodeID{Dev: 1, Ino: r.group}
			}
			if (it.Present || it.Deleted || it.Opaque) && !yield(it, nil) {
				return
			}
		}
	}, nil
}
