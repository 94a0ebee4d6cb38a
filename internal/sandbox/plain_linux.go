// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
)

// A plainRoots has the roots of one build where overlayfs is refused: ordinary
// directories. What a command changed is found as in place, by comparing records
// of the whole tree. A directory serves one command after the other; branches of
// a stage get directories of their own, unpacked from layers.
type plainRoots struct {
	pool *pool
	self selftest
	logf func(format string, args ...any)
}

func newPlainRoots(ctx context.Context, dir string, oneID bool, logf func(string, ...any)) *plainRoots {
	p := &plainRoots{logf: logf}
	adapt := (&roots{oneID: oneID}).adapt // a mark of overlayfs means nothing here, but the image is the same everywhere
	p.pool = newPool(ctx, dir, unpacking{limit: MemoryLimit(), device: anyDevice, adapt: adapt})
	return p
}

func (p *plainRoots) prefetch(layers []*layer.Layer) { p.pool.prefetch(layers) }

func (p *plainRoots) assembling(l *layer.Layer) <-chan struct{} { return p.pool.assembling(l) }

func (p *plainRoots) close() error { return p.pool.close() }

func (p *plainRoots) take(ctx context.Context, layers []*layer.Layer) (nsRoot, bool, error) {
	a, err := p.pool.take(ctx, layers)
	if err != nil {
		return nil, false, err
	}
	r := &plainRoot{p: p, dir: a.dir, layers: slices.Clone(layers), was: a.left}
	if r.mount, err = detachPlain(a.dir); err != nil {
		r.drop()
		return nil, false, err
	}
	return r, a.left == nil, nil
}

// release gives up the roots that only layers begins with.
func (p *plainRoots) release(layers []*layer.Layer, live []*layer.Ref, prove proof) {
	p.drop(p.pool.giveUp(layers, live), prove)
}

// finish gives up all roots: the proof has records of them, so that they go while
// layers are pushed.
func (p *plainRoots) finish(prove proof) { p.drop(p.pool.giveUpAll(), prove) }

// drop has given up roots proved and deletes them.
func (p *plainRoots) drop(roots []*assembly, prove proof) {
	for _, a := range roots {
		if a.left != nil {
			prove(a.layers, func(context.Context) (*record, error) { return a.left, nil })
		}
		p.pool.background(func(ctx context.Context) { _ = layer.RemoveAllUntil(ctx, a.dir) })
	}
}

// A plainRoot is such a directory while one command has it.
type plainRoot struct {
	p      *plainRoots
	dir    string
	layers []*layer.Layer
	mount  *detached
	trust  bool
	was    *record
	is     *record
}

func (r *plainRoot) mounted() *detached { return r.mount }

// before makes sure that there is a record, and that everything from now on gets a
// later time than what it has.
func (r *plainRoot) before(ctx context.Context) (err error) {
	if r.trust, err = r.p.self.trusted(filepath.Dir(r.dir), r.p.logf); err != nil {
		return err
	}
	if r.was == nil {
		if r.was, err = takeRecord(ctx, int(r.mount.own.Fd()), nil, nil); err != nil {
			return err
		}
	}
	if err := waitTick(filepath.Dir(r.dir), r.was.latest); err != nil {
		r.p.logf("%v: file contents are compared after this RUN", err)
		r.trust = false
	}
	return nil
}

func (r *plainRoot) scan(ctx context.Context, sc *scan) (looked, changed int, err error) {
	if r.is, err = takeRecordAfter(ctx, int(r.mount.own.Fd()), nil, r.was, nil); err != nil {
		return 0, 0, err
	}
	sc.hashAll, sc.isOld = !r.trust, r.isOld
	changed, err = sc.run(ctx, r.was, r.is)
	return r.is.looked, changed, err
}

// isOld tells whether a file is older than the command: by the time of its birth
// or, where the file system does not keep that, by its being the same one.
func (r *plainRoot) isOld(path string, was, now *node) bool {
	var st unix.Statx_t
	// Nothing runs in the root now, and path has no links in it.
	err := unix.Statx(unix.AT_FDCWD, filepath.Join(r.mount.path(), path), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME, &st)
	if err != nil || st.Mask&unix.STATX_BTIME == 0 {
		return was.ino == now.ino && was.dev == now.dev
	}
	return st.Btime.Sec*1e9+int64(st.Btime.Nsec) <= r.was.latest
}

func (r *plainRoot) keep(l *layer.Layer) {
	r.p.pool.give(&assembly{layers: append(r.layers, l), dir: r.dir, left: r.is})
}

func (r *plainRoot) drop() { _ = layer.RemoveAllUntil(r.p.pool.ctx, r.dir) }

// detachPlain returns a directory as a mount for commands: what the mount that it
// lies on forbids them, it must not, but for devices, which they get in /dev.
func detachPlain(dir string) (*detached, error) {
	return detach(dir, func() error { return nil }, func(fd int) error {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: noDev}); err != nil {
			return fmt.Errorf("mount_setattr: %w", err)
		}
		var st unix.Statfs_t
		if err := unix.Fstatfs(fd, &st); err != nil {
			return fmt.Errorf("look at the root's mount: %w", err)
		}
		if st.Flags&(unix.ST_NOEXEC|unix.ST_NOSUID|unix.ST_RDONLY) == 0 {
			return nil
		}
		err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: noExec | noSuid | rdOnly})
		if err != nil {
			return fmt.Errorf("%s lies on a mount that is noexec, nosuid or read-only (mount_setattr: %w)", dir, err)
		}
		return nil
	})
}
