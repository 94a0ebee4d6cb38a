// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/tree"
)

// A stack is a root that layers were unpacked into: directories of which an
// overlay shows the sum. The last one is an image's base, with all of its layers
// in one; above it lies one directory for each command, and for the layers
// that came between two. None of them is written to again, so any number of
// commands continue a stack, and one base serves all stages.
type stack struct {
	layers []*layer.Layer
	dirs   []string // names in roots.dir, top first
	ran    bool     // the top one is what a command left
	done   chan struct{}
	err    error
}

// Roots has the stacks of one build.
type roots struct {
	dir   string
	at    string // an existing directory to attach mounts at
	limit int64  // of the memory, 0 if there is none
	user  bool   // the overlays' attributes are those that any user may set
	// oneID: all files on disk belong to the one id that is mapped. Layers keep the
	// owners they have; see upperScan.
	oneID bool
	// unpack: one at a time, two would only fight for the disk.
	unpack sync.Mutex

	ctx    context.Context //nolint:containedctx // of what is prefetched, ended by close
	cancel context.CancelFunc
	g      *errgroup.Group

	mu     sync.Mutex
	stacks []*stack
	inUse  map[*stack]int  // by what is under way
	gone   map[string]bool // directories that are being deleted
	ended  bool
	next   int
}

func newRoots(ctx context.Context, dir, at string, user bool) *roots {
	r := &roots{dir: dir, at: at, user: user, limit: MemoryLimit(), inUse: make(map[*stack]int), gone: make(map[string]bool)}
	ctx, r.cancel = context.WithCancel(ctx)
	r.g, r.ctx = errgroup.WithContext(ctx)
	return r
}

// close ends all work and waits for it.
func (r *roots) close() error {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.cancel()
	return ignoreCanceled(r.g.Wait())
}

// prefetch begins to unpack layers.
func (r *roots) prefetch(layers []*layer.Layer) {
	if len(layers) == 0 {
		return
	}
	s, mine := r.claim(layers)
	if !mine {
		r.free(s)
		return
	}
	r.g.Go(func() error {
		defer r.free(s)
		r.build(r.ctx, s)
		return nil // whoever needs the stack gets the error
	})
}

// claim returns the stack of layers, to be given back with free, and whether the
// caller has to build it.
func (r *roots) claim(layers []*layer.Layer) (*stack, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.stacks {
		if len(s.layers) == len(layers) && isPrefix(s.layers, layers) {
			r.inUse[s]++
			return s, false
		}
	}
	s := &stack{layers: slices.Clone(layers), done: make(chan struct{})}
	r.stacks = append(r.stacks, s)
	r.inUse[s]++
	return s, true
}

// get returns the stack that has exactly layers, and whether it was made for this.
// The caller gives it back with free, if there is no error.
func (r *roots) get(ctx context.Context, layers []*layer.Layer) (_ *stack, fresh bool, err error) {
	s, mine := r.claim(layers)
	if mine {
		r.build(ctx, s)
	}
	select {
	case <-s.done:
	case <-ctx.Done():
		r.free(s)
		return nil, false, context.Cause(ctx)
	}
	if s.err != nil {
		r.free(s)
	}
	return s, mine, s.err
}

// free ends a use of a stack. Directories that no stack needs any more go.
func (r *roots) free(stacks ...*stack) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range stacks {
		if r.inUse[s]--; r.inUse[s] == 0 {
			delete(r.inUse, s)
		}
		r.removeUnused(s)
	}
}

// removeUnused removes those directories of s that no stack needs. r.mu is held.
func (r *roots) removeUnused(s *stack) {
	if r.ended || r.inUse[s] > 0 || slices.Contains(r.stacks, s) {
		return // in the end everything goes at once
	}
	for _, d := range s.dirs {
		has := func(o *stack) bool { return slices.Contains(o.dirs, d) }
		if r.gone[d] || slices.ContainsFunc(r.stacks, has) || slices.ContainsFunc(slices.Collect(maps.Keys(r.inUse)), has) {
			continue
		}
		r.gone[d] = true
		r.g.Go(func() error { r.remove(d); return nil })
	}
}

// release gives up the stacks that only refs with layers, and none of live, begin
// with. What a command left in one that nothing continues is proved before.
func (r *roots) release(layers []*layer.Layer, live []*layer.Ref, prove proof) {
	isLive := func(s *stack) bool {
		return slices.ContainsFunc(live, func(l *layer.Ref) bool { return isPrefix(s.layers, l.Layers) })
	}
	leaves := r.leaves()
	r.mu.Lock()
	defer r.mu.Unlock()
	var gone []*stack
	r.stacks = slices.DeleteFunc(r.stacks, func(s *stack) bool {
		select {
		case <-s.done:
		default:
			return false // being unpacked, for somebody
		}
		drop := isPrefix(s.layers, layers) && !isLive(s)
		if drop {
			gone = append(gone, s)
		}
		return drop
	})
	for _, s := range gone {
		if slices.Contains(leaves, s) && !r.ended {
			r.inUse[s]++
			prove(s.layers, r.recorder(s))
		}
	}
	for _, s := range gone {
		r.removeUnused(s)
	}
}

// recorder returns what walks the root of s, and then needs it no more.
func (r *roots) recorder(s *stack) func(ctx context.Context) (*record, error) {
	return func(ctx context.Context) (*record, error) {
		defer r.free(s)
		return r.record(ctx, s)
	}
}

// finish has the stacks proved that commands have left and nothing continues. All
// go as soon as nobody looks at them any more, while layers are pushed: to delete
// what many files were unpacked to takes as long as a small push.
func (r *roots) finish(prove proof) {
	leaves := r.leaves()
	r.mu.Lock()
	defer r.mu.Unlock()
	gone := r.stacks
	r.stacks = nil
	for _, s := range leaves {
		r.inUse[s]++
		prove(s.layers, r.recorder(s))
	}
	for _, s := range gone {
		r.removeUnused(s)
	}
}

// build makes the directories of a claimed stack. One that failed is forgotten.
func (r *roots) build(ctx context.Context, s *stack) {
	defer close(s.done)
	if s.err = r.unpackStack(ctx, s); s.err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.stacks = slices.DeleteFunc(r.stacks, func(o *stack) bool { return o == s })
	}
}

func (r *roots) unpackStack(ctx context.Context, s *stack) error {
	below, err := r.below(ctx, s)
	if err != nil {
		return err
	}
	if below != nil {
		defer r.free(below)
	}
	r.unpack.Lock()
	defer r.unpack.Unlock()
	name, with := r.name(), unpacking{limit: r.limit, device: anyDevice, adapt: r.adapt}
	r.mu.Lock()
	if s.dirs = []string{name}; below != nil {
		s.dirs = append(s.dirs, below.dirs...)
	}
	r.mu.Unlock()
	if below == nil {
		return assemble(ctx, filepath.Join(r.dir, name), s.layers, with)
	}
	m, err := r.mount(below, name)
	if err != nil {
		return err
	}
	return errors.Join(applyLayers(ctx, m.path(), s.layers[len(below.layers):], with), m.close())
}

// anyDevice leaves out the device nodes that the kernel refuses to make in a user
// namespace: the image has them from its own layers, and a command cannot use them.
func anyDevice(string) error { return nil }

// adapt makes an entry fit for the lower directories of an overlay: nothing in
// an image may be taken for the overlay's own marks.
func (r *roots) adapt(e *tree.Entry) (*tree.Entry, error) {
	if e.Mode.Type() == tree.ModeChar && e.Major == 0 && e.Minor == 0 {
		return nil, fmt.Errorf("the character device 0:0 at /%s: overlayfs takes it for a deleted file", e.Path)
	}
	c := *e
	for k := range e.Xattrs {
		if strings.HasPrefix(k, "trusted.overlay.") || strings.HasPrefix(k, "user.overlay.") {
			c.Xattrs = maps.Clone(e.Xattrs)
			maps.DeleteFunc(c.Xattrs, func(k, _ string) bool {
				return strings.HasPrefix(k, "trusted.overlay.") || strings.HasPrefix(k, "user.overlay.")
			})
			break
		}
	}
	if r.oneID {
		c.UID, c.GID = 0, 0
	}
	return &c, nil
}

// below returns the stack to continue: the longest that has layers of s, else
// the image that s begins with. It is nil for one that begins with nothing, or
// with next to nothing. It is to be given back with free.
func (r *roots) below(ctx context.Context, s *stack) (*stack, error) {
	r.mu.Lock()
	var best *stack
	for _, o := range r.stacks {
		if o != s && len(o.layers) < len(s.layers) && isPrefix(o.layers, s.layers) && (best == nil || len(o.layers) > len(best.layers)) {
			best = o
		}
	}
	// What commands have left is more than layers hold: sockets, fractions of seconds.
	if best != nil && len(best.dirs) == 1 && !best.ran && outweigh(s.layers[len(best.layers):], best.layers) {
		r.mu.Unlock()
		return nil, nil
	}
	if best != nil {
		r.inUse[best]++
	}
	r.mu.Unlock()
	if best == nil {
		n := 0
		for n < len(s.layers) && s.layers[n].IsForeign() {
			n++
		}
		if n == 0 || n == len(s.layers) || outweigh(s.layers[n:], s.layers[:n]) {
			return nil, nil
		}
		b, _, err := r.get(ctx, s.layers[:n])
		return b, err
	}
	select {
	case <-best.done:
	case <-ctx.Done():
		r.free(best)
		return nil, context.Cause(ctx)
	}
	if best.err != nil || len(best.dirs) >= maxLowers {
		r.free(best)
		return nil, best.err // a deep one is unpacked anew into one directory
	}
	return best, nil
}

// smallBase is up to how many compressed bytes a base is worth fetching and
// unpacking again.
const smallBase = 8 << 20

// outweigh tells whether layers are so much more than those below them that all
// are better unpacked anew into one directory: to make a file through an overlay
// takes half as long again as without.
func outweigh(layers, below []*layer.Layer) bool {
	base := bytesOf(below)
	return base <= smallBase && bytesOf(layers) > 2*max(base, 1<<20)
}

func bytesOf(layers []*layer.Layer) (n int64) {
	for _, l := range layers {
		n += l.Descriptor().Size
	}
	return n
}

func (r *roots) name() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next++
	return fmt.Sprint(r.next)
}

// mount mounts a stack with a new directory for what is written on top.
func (r *roots) mount(s *stack, upper string) (*detached, error) {
	if err := newUpper(r.dir, upper, s.dirs[0]); err != nil {
		return nil, err
	}
	return detachOverlay(r.dir, r.at, s.dirs, upper, upper+".work", r.user)
}

// keep adds the stack that is s with one more directory and layer.
func (r *roots) keep(s *stack, upper string, l *layer.Layer) {
	n := &stack{
		layers: append(slices.Clone(s.layers), l), dirs: append([]string{upper}, s.dirs...), done: make(chan struct{}), ran: true,
	}
	close(n.done)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stacks = append(r.stacks, n)
}

// leaves returns the stacks that a command made and nothing continues.
func (r *roots) leaves() []*stack {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*stack
	for _, s := range r.stacks {
		continued := slices.ContainsFunc(r.stacks, func(o *stack) bool {
			return o != s && o.ran && len(o.dirs) > len(s.dirs) && slices.Equal(o.dirs[len(o.dirs)-len(s.dirs):], s.dirs)
		})
		if s.ran && !continued {
			out = append(out, s)
		}
	}
	return out
}

// record walks the root that a stack makes.
func (r *roots) record(ctx context.Context, s *stack) (_ *record, err error) {
	upper := r.name()
	defer r.remove(upper)
	m, err := r.mount(s, upper)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	f, err := openPath(m.path())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return takeRecord(ctx, int(f.Fd()), nil, nil)
}

// assembling returns the channel that closes when l is unpacked, nil if it is
// not about to be.
func (r *roots) assembling(l *layer.Layer) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.stacks {
		select {
		case <-s.done:
			continue
		default:
		}
		if slices.Contains(s.layers, l) {
			return s.done
		}
	}
	return nil
}

// remove deletes a directory that a failed command leaves.
func (r *roots) remove(name string) {
	_ = layer.RemoveAllUntil(r.ctx, filepath.Join(r.dir, name))
	_ = layer.RemoveAllUntil(r.ctx, filepath.Join(r.dir, name+".work"))
}

// take mounts a stack for a command.
func (r *roots) take(ctx context.Context, layers []*layer.Layer) (nsRoot, bool, error) {
	s, fresh, err := r.get(ctx, layers)
	if err != nil {
		return nil, false, err
	}
	o := &overlayRoot{r: r, stack: s, upper: r.name()}
	if o.mount, err = r.mount(s, o.upper); err != nil {
		o.drop()
		return nil, false, err
	}
	return o, fresh, nil
}

// An overlayRoot is a stack with a directory for what one command writes.
type overlayRoot struct {
	r     *roots
	stack *stack
	upper string
	mount *detached
}

func (o *overlayRoot) mounted() *detached { return o.mount }

func (o *overlayRoot) before(context.Context) error { return nil }

func (o *overlayRoot) scan(ctx context.Context, with *scan) (looked, changed int, err error) {
	sc := &upperScan{scan: with, marks: "trusted.overlay."}
	if o.r.user {
		sc.marks = "user.overlay."
	}
	done, err := sc.openLowers(o.r.dir, o.stack.dirs)
	if err != nil {
		return 0, 0, err
	}
	defer done()
	fd, err := unix.Open(filepath.Join(o.r.dir, o.upper), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, fmt.Errorf("look at the changes: %w", err)
	}
	defer unix.Close(fd)
	changed, err = sc.runUpper(ctx, fd)
	return sc.names, changed, err
}

func (o *overlayRoot) keep(l *layer.Layer) {
	o.r.keep(o.stack, o.upper, l)
	o.r.free(o.stack)
}

func (o *overlayRoot) drop() {
	o.r.remove(o.upper)
	o.r.free(o.stack)
}

func openPath(p string) (*os.File, error) {
	f, err := os.Open(p)
	if err != nil {
		return nil, fmt.Errorf("open the root: %w", err)
	}
	return f, nil
}
