// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"context"
	"strings"

	"hako/internal/layer"
)

// A Found says what an evaluation of a graph would take from the cache, as far as
// that is known before anything is executed or fetched. Steps that come after one
// that has to be executed may be found too, once it is known what that makes.
type Found struct {
	lookup *lookup
	cache  Cache
}

// Find asks the cache about the steps of g. The trees of local sources are read,
// and nothing else; without a cache the result is nil, of which nothing is found.
func (s *Solver) Find(ctx context.Context, g *Graph) (*Found, error) {
	if s.opt.Cache == nil {
		return nil, nil //nolint:nilnil // documented
	}
	l, err := s.find(ctx, g, func(v *Vertex) bool {
		return strings.HasPrefix(v.Op.GetSource().GetIdentifier(), "local://")
	})
	if err != nil {
		return nil, err
	}
	return &Found{l, s.opt.Cache}, nil
}

// IsStep tells whether results of v are kept.
func (f *Found) IsStep(v *Vertex) bool { return f != nil && f.lookup.steps[v] != nil }

// Result returns what was found for v; nil is nothing.
func (f *Found) Result(v *Vertex) *layer.Ref {
	if f == nil || f.lookup.hits[v] == nil {
		return nil
	}
	return f.lookup.hits[v].refs[cachedOutput(v)]
}

// Needs tells whether v is not behind what was found.
func (f *Found) Needs(v *Vertex) bool { return f == nil || f.lookup.need[v] }

// Executes tells whether v is needed and was not found.
func (f *Found) Executes(v *Vertex) bool { return f.Needs(v) && f.Result(v) == nil }

// Why returns in a few words why the step v was not found.
func (f *Found) Why(ctx context.Context, v *Vertex) string {
	return f.cache.Missed(ctx, f.lookup.steps[v])
}
