// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"sync"
)

// A group runs functions by key: calls with the key of one under way share its
// result, and results of success are remembered. The zero value is ready.
type group[V any] struct {
	mu sync.Mutex
	m  map[string]*call[V]
}

type call[V any] struct {
	done    chan struct{} // closed by the goroutine that runs the function
	cancel  context.CancelFunc
	waiting int // guarded by group.mu
	v       V
	err     error
}

// do returns what fn returned for key. The function's context outlives a
// caller who gives up, unless it is the last one; then do waits for its end.
func (g *group[V]) do(ctx context.Context, key string, fn func(context.Context) (V, error)) (V, error) {
	g.mu.Lock()
	c, ok := g.m[key]
	if !ok {
		c = g.start(ctx, key, fn)
	}
	c.waiting++
	g.mu.Unlock()

	select {
	case <-c.done:
		g.leave(key, c)
		return c.v, c.err
	case <-ctx.Done():
	}
	if g.leave(key, c) {
		c.cancel()
		<-c.done
	}
	var zero V
	return zero, context.Cause(ctx)
}

// start is called with mu held.
func (g *group[V]) start(ctx context.Context, key string, fn func(context.Context) (V, error)) *call[V] {
	cctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &call[V]{done: make(chan struct{}), cancel: cancel}
	if g.m == nil {
		g.m = map[string]*call[V]{}
	}
	g.m[key] = c
	go func() {
		defer cancel()
		c.v, c.err = fn(cctx)
		if c.err != nil {
			g.forget(key, c)
		}
		close(c.done)
	}()
	return c
}

// leave reports whether nobody waits for c any more; a newcomer then starts
// afresh.
func (g *group[V]) leave(key string, c *call[V]) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.waiting--
	if c.waiting > 0 {
		return false
	}
	select {
	case <-c.done:
	default:
		if g.m[key] == c {
			delete(g.m, key)
		}
	}
	return true
}

func (g *group[V]) forget(key string, c *call[V]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.m[key] == c {
		delete(g.m, key)
	}
}

// drop forgets the results for which match holds.
func (g *group[V]) drop(match func(key string) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for k, c := range g.m {
		select {
		case <-c.done:
			if match(k) {
				delete(g.m, k)
			}
		default:
		}
	}
}
