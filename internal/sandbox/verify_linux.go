// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/tree"
)

// A verifier compares a root as a command left it with the layers that stand
// for it. A scan looks at what the records say has changed; this looks at every
// name, so what a scan, a layer's writer or a layer's applier got wrong shows
// before an image is named.
//
// It needs no system call: the record has what system calls said, the layers'
// view comes from their indexes. What neither holds is not compared: contents,
// extended attributes, and to where a link leads but for the length. Which names
// are links of one file is not compared either: layers do not hold it across
// each other, nor does a scan count it as a change (see scan.add).
type verifier struct {
	view  tree.FS
	allow allowances
	g     *errgroup.Group // has room for directories

	mu    sync.Mutex
	found []Mismatch // the first ones, in the order of their paths
	more  int
}

// Allowances are differences between a root and its layers that this place makes.
type allowances struct {
	// clamp is the latest time of files in layers of this build; nil for none.
	clamp *time.Time
	// oneID: all files belong to root. noDevices: nodes cannot be made.
	oneID, noDevices bool
}

// maxMismatches is how many paths an error names.
const maxMismatches = 5

// verify returns a *MismatchError if the view is not what the record has.
//
// Masked names are not compared, nor what a layer cannot hold (sockets), nor
// directories that exist only for what is masked below them.
func verify(ctx context.Context, live *record, view tree.FS, allow allowances) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	v := &verifier{view: view, allow: allow, g: g}
	err := v.dir(ctx, "", live.root)
	if gerr := g.Wait(); gerr != nil {
		err = gerr // the first one; others are of its ending all
	}
	if err != nil {
		return fmt.Errorf("verify the layers: %w", err)
	}
	if len(v.found) == 0 {
		return nil
	}
	return &MismatchError{Found: v.found, More: v.more}
}

// dir merges the names of a directory in both trees.
func (v *verifier) dir(ctx context.Context, path string, live *dirRecord) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	entries, err := v.view.ReadDir(path)
	if err != nil {
		return err
	}
	i, j := 0, 0
	for i < len(live.nodes) || j < len(entries) {
		switch {
		case j == len(entries) || i < len(live.nodes) && live.nodes[i].name < entries[j].Name():
			v.onlyLive(tree.Join(path, live.nodes[i].name), &live.nodes[i])
			i++
		case i == len(live.nodes) || live.nodes[i].name > entries[j].Name():
			v.onlyView(&entries[j])
			j++
		default:
			if err := v.both(ctx, &live.nodes[i], &entries[j]); err != nil {
				return err
			}
			i++
			j++
		}
	}
	return nil
}

func (v *verifier) add(path, format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := Mismatch{Path: "/" + path, What: fmt.Sprintf(format, args...)}
	at, _ := slices.BinarySearchFunc(v.found, m, func(a, b Mismatch) int { return tree.ComparePaths(a.Path[1:], b.Path[1:]) })
	v.found = slices.Insert(v.found, at, m)
	if len(v.found) > maxMismatches {
		v.found = v.found[:maxMismatches]
		v.more++
	}
}

func (v *verifier) onlyLive(path string, n *node) {
	if n.masked || n.mode&unix.S_IFMT == unix.S_IFSOCK || n.onlyMounts() {
		return
	}
	v.add(path, "missing from the layers")
}

// onlyMounts tells whether n is a directory that is there only because of what
// is mounted below it.
func (n *node) onlyMounts() bool {
	if n.kids == nil || len(n.kids.nodes) == 0 {
		return false
	}
	for i := range n.kids.nodes {
		if k := &n.kids.nodes[i]; !k.masked && !k.onlyMounts() {
			return false
		}
	}
	return true
}

func (v *verifier) onlyView(e *tree.Entry) {
	if e.Mode.IsDevice() && (topOf(e.Path) == "dev" || v.allow.noDevices) {
		return // the right to make it may be missing; see assemble
	}
	v.add(e.Path, "in the layers, not in the tree")
}

func (v *verifier) both(ctx context.Context, n *node, e *tree.Entry) error {
	if n.masked {
		return nil
	}
	mode := tree.Mode(n.mode)
	if mode.Type() != e.Mode.Type() {
		v.add(e.Path, "%s in the layers, %s in the tree", typeName(e.Mode), typeName(mode))
		return nil
	}
	switch {
	case !v.allow.oneID && (n.uid != e.UID || n.gid != e.GID):
		v.add(e.Path, "owner %d:%d in the layers, %d:%d in the tree", e.UID, e.GID, n.uid, n.gid)
	case !mode.IsSymlink() && mode.Perm() != e.Mode.Perm(): // of a link Linux has none
		v.add(e.Path, "mode %04o in the layers, %04o in the tree", e.Mode.Perm(), mode.Perm())
	case mode.IsRegular() && n.size != e.Size:
		v.add(e.Path, "%d bytes in the layers, %d in the tree", e.Size, n.size)
	case mode.IsSymlink() && n.size != int64(len(e.Link)):
		v.add(e.Path, "a link to %q in the layers, one of %d bytes in the tree", e.Link, n.size)
	case mode.IsDevice() && (unix.Major(uint64(n.size)) != e.Major || unix.Minor(uint64(n.size)) != e.Minor):
		v.add(e.Path, "device %d:%d in the layers, %d:%d in the tree", e.Major, e.Minor, unix.Major(uint64(n.size)), unix.Minor(uint64(n.size)))
	case !mode.IsDir() && !v.sameTime(n, e):
		v.add(e.Path, "of %s in the layers, of %s in the tree", stamp(e.ModTime), stamp(time.Unix(0, n.mtime)))
	}
	if n.kids == nil || v.g.TryGo(func() error { return v.dir(ctx, e.Path, n.kids) }) {
		return nil
	}
	return v.dir(ctx, e.Path, n.kids)
}

// sameTime compares the seconds: layers of this build hold no more.
func (v *verifier) sameTime(n *node, e *tree.Entry) bool {
	want := e.ModTime.Unix()
	if !holdsTime(want) {
		return true
	}
	got := time.Unix(0, n.mtime)
	return got.Unix() == want || v.allow.clamp != nil && got.After(*v.allow.clamp) && want == v.allow.clamp.Unix()
}

// holdsTime tells whether every file system can hold a time, in seconds. Those that
// cannot have the nearest that they can.
func holdsTime(sec int64) bool { return sec >= math.MinInt32 && sec <= math.MaxInt32 }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func typeName(m tree.Mode) string {
	switch m.Type() {
	case tree.ModeDir:
		return "a directory"
	case tree.ModeSymlink:
		return "a link"
	case tree.ModeChar:
		return "a character device"
	case tree.ModeBlock:
		return "a block device"
	case tree.ModeFIFO:
		return "a pipe"
	case tree.ModeSocket:
		return "a socket"
	}
	return "a file"
}

// checks are the verifications under way.
type checks struct {
	ctx    context.Context //nolint:containedctx // of its goroutines, ended by stop
	cancel context.CancelFunc
	g      errgroup.Group
}

func (c *checks) start(ctx context.Context) { c.ctx, c.cancel = context.WithCancel(ctx) }

// add compares, in the background, a root with the layers that stand for it.
func (c *checks) add(live func(ctx context.Context) (*record, error), layers []*layer.Layer, allow allowances) {
	c.g.Go(func() error {
		rec, err := live(c.ctx)
		if err != nil {
			return err
		}
		view, err := (&layer.Ref{Layers: layers}).Tree(c.ctx)
		if err != nil {
			return err
		}
		err = verify(c.ctx, rec, view, allow)
		if e, ok := errors.AsType[*MismatchError](err); ok {
			e.After = layers[len(layers)-1].Description
		}
		return err
	})
}

// wait returns the first error of all checks.
func (c *checks) wait() error { return c.g.Wait() }

// stop ends the checks under way and waits for their end.
func (c *checks) stop() {
	c.cancel()
	_ = c.g.Wait() // who wants the error has asked wait
}

// check begins to verify the installed root, which is about to go. There is
// nothing to compare if no command has ended well there, or if layers were put
// on top since: a root is only installed, and only advanced, for a command.
func (s *InPlace) check() {
	if s.live == nil || !s.live.ran || s.live.record == nil || len(s.live.layers) == 0 {
		return
	}
	s.live.ran = false
	rec := s.live.record
	if rec.followed {
		var err error
		if rec, err = s.lookAgain(s.checks.ctx); err != nil {
			s.checks.g.Go(func() error { return err })
			return
		}
	}
	s.checks.add(func(context.Context) (*record, error) { return rec, nil }, s.live.layers, allowances{clamp: s.opt.Clamp})
}

// lookAgain returns a record of all of the installed root, whose own one is by what
// the kernel told, and compares the two: what the kernel kept to itself may be
// missing from the layers.
func (s *InPlace) lookAgain(ctx context.Context) (*record, error) {
	s.live.heedClock()
	rec, err := takeRecordAfter(ctx, s.lot.root, s.masked(), s.live.record, nil)
	if err != nil {
		return nil, err
	}
	view, err := (&layer.Ref{Layers: s.live.layers}).Tree(ctx)
	if err != nil {
		return nil, err
	}
	live, err := tree.OpenDir(s.lot.at(""))
	if err != nil {
		return nil, err
	}
	defer live.Close()
	sc := &scan{live: live.WithXattrs(), base: view}
	if _, err := sc.run(ctx, s.live.record, rec); err != nil {
		return nil, fmt.Errorf("verify the layers: %w", err)
	}
	if e := unnoticed(sc.list); e != nil {
		e.After = s.live.layers[len(s.live.layers)-1].Description
		return nil, e
	}
	return rec, nil
}

// unnoticed returns the error for changes that no scan had seen, nil for none.
func unnoticed(list []found) *MismatchError {
	e := &MismatchError{Unnoticed: true}
	for _, f := range list {
		switch {
		case !f.touched:
		case len(e.Found) == maxMismatches:
			e.More++
		default:
			e.Found = append(e.Found, Mismatch{Path: "/" + f.path, What: "changed, which the kernel did not tell"})
		}
	}
	if len(e.Found) == 0 {
		return nil
	}
	return e
}
