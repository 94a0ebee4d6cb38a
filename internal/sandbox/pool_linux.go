// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"hako/internal/layer"
	"hako/internal/tree"
)

// maxAhead is how many roots may lie assembled, or be under way, besides the one
// in use: each costs as much disk as its image.
const maxAhead = 2

// dirtyShare is the part of the memory limit that may be taken by what is
// written and not yet on disk: one in so many.
const dirtyShare = 8

// A pool assembles roots under the work directory: ordinary private directories,
// where resolving an image's paths is safe, and where the next stage's base can
// be unpacked while a command still runs.
type pool struct {
	dir    string
	with   unpacking
	ctx    context.Context //nolint:containedctx // of the pool's goroutines, ended by close
	cancel context.CancelFunc
	g      *errgroup.Group

	mu      sync.Mutex
	roots   []*assembly
	next    int
	unpack  sync.Mutex // one at a time: two would only fight for the disk
	waiting []*assembly
	busy    []*assembly // started and not done, taken or not
}

// An assembly is a root in the making.
type assembly struct {
	layers  []*layer.Layer
	dir     string
	started bool
	done    chan struct{}
	err     error
	left    *record // of a root that was given back, as a command left it
}

func newPool(ctx context.Context, dir string, with unpacking) *pool {
	p := &pool{dir: dir, with: with}
	ctx, p.cancel = context.WithCancel(ctx)
	p.g, p.ctx = errgroup.WithContext(ctx)
	return p
}

// close ends all work and waits for it.
func (p *pool) close() error {
	p.cancel()
	return ignoreCanceled(p.g.Wait())
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// background runs fn; close tells it to stop and waits for it.
func (p *pool) background(fn func(ctx context.Context)) {
	p.g.Go(func() error { fn(p.ctx); return nil })
}

// prefetch begins to assemble layers, or puts that off until there is room.
func (p *pool) prefetch(layers []*layer.Layer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(layers) == 0 {
		return
	}
	a := &assembly{layers: slices.Clone(layers), done: make(chan struct{})}
	p.waiting = append(p.waiting, a)
	p.startWaiting()
}

// startWaiting starts what there is room for. p.mu is held.
func (p *pool) startWaiting() {
	ahead := 0
	for _, a := range p.roots {
		if a.left == nil {
			ahead++
		}
	}
	for ; len(p.waiting) > 0 && ahead < maxAhead; ahead++ {
		a := p.waiting[0]
		p.waiting = p.waiting[1:]
		p.start(a)
	}
}

// start begins an assembly in the background. p.mu is held.
func (p *pool) start(a *assembly) {
	p.next++
	a.dir = fmt.Sprintf("%s/%d", p.dir, p.next)
	a.started = true
	p.roots = append(p.roots, a)
	p.busy = append(p.busy, a)
	p.g.Go(func() error {
		defer p.finished(a)
		p.unpack.Lock()
		defer p.unpack.Unlock()
		a.err = assemble(p.ctx, a.dir, a.layers, p.with)
		return nil // whoever takes the root gets the error
	})
}

func (p *pool) finished(a *assembly) {
	close(a.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = slices.DeleteFunc(p.busy, func(b *assembly) bool { return a == b })
}

// assembling returns the channel that closes when l is unpacked, nil if it is
// not about to be.
func (p *pool) assembling(l *layer.Layer) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.busy {
		if slices.Contains(a.layers, l) {
			return a.done
		}
	}
	return nil
}

// take returns a root that has exactly layers. The closest of the assembled ones
// is taken over; it is the caller's then. What is left of it as a command left it
// is in the assembly still.
func (p *pool) take(ctx context.Context, layers []*layer.Layer) (*assembly, error) {
	a := p.choose(layers)
	select {
	case <-a.done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if a.err != nil {
		return nil, a.err
	}
	p.mu.Lock()
	p.startWaiting()
	p.mu.Unlock()
	rest := layers[len(a.layers):]
	if len(rest) == 0 {
		return a, nil
	}
	a.left = nil
	return a, assemble(ctx, a.dir, rest, p.with)
}

// choose removes the best fitting assembly from the pool, or starts one.
func (p *pool) choose(layers []*layer.Layer) *assembly {
	p.mu.Lock()
	defer p.mu.Unlock()
	best := func(list []*assembly) int {
		at := -1
		for i, a := range list {
			if isPrefix(a.layers, layers) && (at < 0 || len(a.layers) > len(list[at].layers)) {
				at = i
			}
		}
		return at
	}
	if i := best(p.roots); i >= 0 {
		a := p.roots[i]
		p.roots = slices.Delete(p.roots, i, i+1)
		return a
	}
	if i := best(p.waiting); i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
	a := &assembly{layers: slices.Clone(layers), done: make(chan struct{})}
	p.start(a)
	p.roots = p.roots[:len(p.roots)-1]
	return a
}

// give takes a root as one that may be taken again.
func (p *pool) give(a *assembly) {
	a.started, a.done = true, make(chan struct{})
	close(a.done)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.roots = append(p.roots, a)
}

// giveUp takes those roots out of the pool that layers begins with and no live
// ref does.
func (p *pool) giveUp(layers []*layer.Layer, live []*layer.Ref) []*assembly {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*assembly
	p.roots = slices.DeleteFunc(p.roots, func(a *assembly) bool {
		used := slices.ContainsFunc(live, func(l *layer.Ref) bool { return isPrefix(a.layers, l.Layers) })
		drop := !slices.Contains(p.busy, a) && !used && isPrefix(a.layers, layers)
		if drop {
			out = append(out, a)
		}
		return drop
	})
	return out
}

// giveUpAll takes all roots out of the pool but those that are still being assembled.
func (p *pool) giveUpAll() []*assembly {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []*assembly
	p.roots = slices.DeleteFunc(p.roots, func(a *assembly) bool {
		if slices.Contains(p.busy, a) {
			return false
		}
		out = append(out, a)
		return true
	})
	return out
}

// An unpacking says what there is to unpack with.
type unpacking struct {
	limit  int64                   // of the container's memory, 0 if there is none
	device func(path string) error // asked about a device node that the kernel refuses to make
	adapt  func(e *tree.Entry) (*tree.Entry, error)
}

// assemble unpacks layers into dir, on top of what is there.
func assemble(ctx context.Context, dir string, layers []*layer.Layer, with unpacking) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("assemble root: %w", err)
	}
	if len(layers) == 0 {
		return nil
	}
	return applyLayers(ctx, dir, layers, with)
}

// noDevice is the answer of a root whose /dev is the container's own.
func noDevice(path string) error {
	if topOf(path) == "dev" {
		return nil
	}
	return fmt.Errorf("make the device node /%s: this container lacks CAP_MKNOD, or is in a user namespace (hostUsers: false)", path)
}

func applyLayers(ctx context.Context, dir string, layers []*layer.Layer, with unpacking) error {
	root, err := layer.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("assemble root: %w", err)
	}
	if with.limit > 0 {
		if err := root.FlushEvery(with.limit / dirtyShare); err != nil {
			return errors.Join(err, root.Close())
		}
	}
	root.NoDevice, root.Adapt = with.device, with.adapt
	for _, l := range layers {
		if err = root.Apply(ctx, l, false); err != nil {
			break
		}
	}
	if err = errors.Join(err, root.Close()); err != nil {
		return fmt.Errorf("assemble root: %w", err)
	}
	return nil
}
