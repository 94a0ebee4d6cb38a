// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/tree"
)

// InPlaceOptions say where and how to run in place.
type InPlaceOptions struct {
	// WorkDir is hako's own directory, /kaniko in its image. It stays where it is.
	WorkDir string
	// Hosts and ResolvConf are the container's files, read before anything moved.
	Hosts, ResolvConf []byte
	// Supervisor is told what to restore; may be nil.
	Supervisor *Supervisor
	// Needs are the paths, relative to the root, that the build's instructions use:
	// a volume there has to make room.
	Needs []string
	// OnVolume wraps the moving aside of a volume's content, for readers of that
	// volume, which find it in dir then; nil just calls move.
	OnVolume func(path string, move func() (dir string, err error)) error
	// Ignored tells volumes that commands may write to: what is there is in no
	// image anyway. It may be nil.
	Ignored func(path string) bool
	// Own are directories on volumes that the build itself writes to: what changes
	// there was not the command's doing.
	Own []string
	// Outside is told where the container's own files are.
	Outside *Outside
	// Clamp is the latest time that files get in layers; nil for none.
	Clamp *time.Time
	// LookAtAll makes every name be looked at after each command, also where the
	// kernel would tell what changed.
	LookAtAll bool
	// Logf tells people what is going on.
	Logf func(format string, args ...any)
}

// InPlace runs commands in the container's own root. Run is not safe for
// concurrent use, Prefetch is.
type InPlace struct {
	opt    InPlaceOptions
	work   string
	lot    *lot
	lock   *os.File
	null   *os.File // /dev/null of the container
	memory *memory
	pool   *pool
	self   *selftest
	checks checks // of roots that are given up

	parked  bool
	shm     string // directory on tmpfs for secrets and sockets
	live    *installed
	volumes map[string]*volumeState // mounts that stay and are not the runtime's
}

// An installed is the root that is in / now.
type installed struct {
	layers []*layer.Layer
	image  tree.FS   // what it was installed from
	record *record   // nil: not known
	stale  bool      // something was put into the root since the record
	watch  *dirWatch // tells what changed since the record; nil if all has to be looked at
	clock  *clock    // for a bare record, else it may be nil
	fresh  bool      // no command has run in it yet
	ran    bool      // layers and record are what the last command left
	waited time.Duration
}

type volumeState struct {
	aside  string // set if it was parked inside itself
	record *record
}

// ErrBusy is returned when another build runs in place in this container.
var ErrBusy = errors.New("another build is running in this container")

// NewInPlace prepares to run commands in place; nothing is moved yet. What a
// killed build has left is put back first.
func NewInPlace(ctx context.Context, opt InPlaceOptions) (*InPlace, error) {
	if opt.Logf == nil {
		opt.Logf = func(string, ...any) {}
	}
	if err := Possible(opt.WorkDir); err != nil {
		return nil, err
	}
	work := filepath.Join(opt.WorkDir, "work")
	for _, d := range []string{"", "roots", "caches", "aside"} {
		if err := os.MkdirAll(filepath.Join(work, d), 0o700); err != nil {
			return nil, fmt.Errorf("make the work directory: %w", err)
		}
	}
	lock, err := lockWork(ctx, work, opt.Logf)
	if err != nil {
		return nil, err
	}
	s := &InPlace{opt: opt, work: work, lock: lock, self: &selftest{}, volumes: make(map[string]*volumeState)}
	if s.lot, err = openLot(work); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if s.lot.journal.state.Phase != "" {
		opt.Logf("an earlier build in this container was killed: putting its files back")
		if err := s.lot.restore(); err != nil {
			return nil, errors.Join(err, s.lot.close(), lock.Close())
		}
	}
	cleanWork(work)
	if s.null, err = os.Open(os.DevNull); err != nil {
		return nil, errors.Join(err, s.lot.close(), lock.Close())
	}
	s.memory = openMemory()
	s.pool = newPool(ctx, filepath.Join(work, "roots"), unpacking{limit: s.memory.limit(), device: noDevice})
	s.checks.start(ctx)
	return s, nil
}

// cleanWork removes what a killed build left in the work directory. Caches and
// the store stay.
func cleanWork(work string) {
	for _, pattern := range []string{"roots/*", "aside/*", trashName + "*", "selftest*"} {
		left, _ := filepath.Glob(filepath.Join(work, pattern))
		for _, p := range left {
			_ = layer.RemoveAll(p)
		}
	}
}

func lockWork(ctx context.Context, work string, logf func(string, ...any)) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(work, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the work directory: %w", err)
	}
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock the work directory: %w", err)
		}
		if !told {
			logf("%v: waiting for it to end", ErrBusy)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("%w: %w", ErrBusy, context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func openLot(work string) (*lot, error) {
	root, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /: %w", err)
	}
	j, err := openJournal(work)
	if err != nil {
		unix.Close(root)
		return nil, err
	}
	top, _, _ := strings.Cut(tree.Clean(work), "/")
	return &lot{root: root, work: work, journal: j, keep: map[string]bool{top: true, "busybox": true}}, nil
}

func (l *lot) close() error { return unix.Close(l.root) }

// Restore puts back what a killed build has left in the work directory's
// container; it does nothing if there is nothing.
func Restore(work string) error {
	l, err := openLot(work)
	if err != nil {
		return err
	}
	defer l.close()
	if err := l.restore(); err != nil {
		return err
	}
	if os.Getpid() != 1 {
		cleanWork(work)
	}
	return nil
}

// Prefetch begins to assemble the root of ref, which a Run will need.
func (s *InPlace) Prefetch(ref *layer.Ref) { s.pool.prefetch(ref.Layers) }

// Release does nothing: there is one root, which the next one takes the place of.
func (s *InPlace) Release(_, _ []*layer.Ref) {}

// Assembling returns a channel that is closed when the root that l is being
// unpacked for is assembled; nil if there is none.
func (s *InPlace) Assembling(l *layer.Layer) <-chan struct{} { return s.pool.assembling(l) }

// PutBack ends what was prefetched and puts the container back as it was. No
// command can be run after that. What the layers hold is being compared with
// what the commands left when it returns; see [InPlace.Verified].
func (s *InPlace) PutBack() error {
	s.check()
	return s.putBack()
}

// Verified waits until the layers of all roots that are no longer installed are
// compared with what the commands left there. Before it has returned nil nothing
// may name an image of them; a difference is a *[MismatchError].
func (s *InPlace) Verified() error { return s.checks.wait() }

func (s *InPlace) putBack() error {
	err := errors.Join(s.pool.close(), s.live.end())
	if s.parked {
		if rerr := s.opt.Outside.move("", s.lot.restore); rerr != nil {
			return rerr
		}
		s.parked = false
	}
	if s.shm != "" {
		_ = os.RemoveAll(s.shm)
	}
	return err
}

// Close puts the container back if that was not done, and deletes the roots.
func (s *InPlace) Close() error {
	s.checks.stop()
	err := s.putBack()
	// If the supervisor is PID 1, the container ends with us, and its files with
	// it: deleting them one by one would only take time.
	if os.Getppid() != 1 {
		cleanWork(s.work)
	}
	s.memory.close()
	return errors.Join(err, s.null.Close(), s.lot.close(), s.lock.Close())
}

// Run runs p in the root that ref describes and returns what it changed. The
// root then has these changes; a Run whose ref continues them finds it so.
func (s *InPlace) Run(ctx context.Context, ref *layer.Ref, p *Process) (*Result, error) {
	base, err := ref.Tree(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.checkImage(base); err != nil {
		return nil, err
	}
	if err := s.install(ctx, ref, base); err != nil {
		return nil, err
	}
	s.live.ran = false
	res, err := s.runInstalled(ctx, base, p)
	if err != nil {
		s.live.layers = nil // whatever is there now, it is no known state
		return nil, err
	}
	res.keep = func(l *layer.Layer) { s.live.layers, s.live.ran = append(slices.Clone(ref.Layers), l), true }
	if s.live.fresh {
		s.live.fresh = false
		res.Layers, res.Waited = len(ref.Layers), s.live.waited
		for _, l := range ref.Layers {
			res.Bytes += l.Descriptor().Size
		}
	}
	return res, nil
}

// checkImage refuses images that have files where hako itself has to be.
func (s *InPlace) checkImage(base tree.FS) error {
	for name := range s.lot.keep {
		if _, err := os.Lstat(s.lot.at(name)); err != nil {
			continue
		}
		if _, err := base.Lstat(name); err == nil {
			return &UnsupportedError{
				What: "RUN in this image", Why: fmt.Sprintf("it has a /%s, which is hako's own directory in this container", name),
				Remedy: "start hako with another KANIKO_DIR, or from another directory than /" + name,
			}
		}
	}
	return nil
}

// install makes / the root of ref.
func (s *InPlace) install(ctx context.Context, ref *layer.Ref, base tree.FS) error {
	if s.live != nil && s.live.layers != nil && isPrefix(s.live.layers, ref.Layers) {
		return s.advance(ctx, ref)
	}
	began := time.Now()
	root, err := s.pool.take(ctx, ref.Layers)
	if err != nil {
		return err
	}
	waited := time.Since(began)
	if !s.parked {
		if err := s.park(); err != nil {
			return err
		}
	} else if err := s.uninstall(); err != nil {
		return err
	}
	if err := s.makeRoom(ctx, base); err != nil {
		return err
	}
	s.live = &installed{image: base, waited: waited, fresh: true}
	if err := s.lot.install(root.dir, s.parkedVolumes()); err != nil {
		return err
	}
	s.live.layers = slices.Clone(ref.Layers)
	return nil
}

// advance applies to the installed root what the ref has on top of it.
func (s *InPlace) advance(ctx context.Context, ref *layer.Ref) error {
	rest := ref.Layers[len(s.live.layers):]
	if len(rest) == 0 {
		return nil
	}
	s.live.stale = true
	root, err := layer.OpenRoot(s.lot.at(""))
	if err != nil {
		return err
	}
	if limit := s.memory.limit(); limit > 0 {
		if err := root.FlushEvery(limit / dirtyShare); err != nil {
			return errors.Join(err, root.Close())
		}
	}
	if len(s.parkedVolumes()) > 0 {
		root.CrossMounts = true
	}
	masked := s.masked()
	root.Skip = func(p string) bool {
		for q := p; q != ""; q = tree.Parent(q) {
			if masked[q] {
				return true
			}
		}
		return false
	}
	err = s.watching(func() error {
		for _, l := range rest {
			if err := root.Apply(ctx, l, false); err != nil {
				s.live.layers = nil
				return err
			}
		}
		return nil
	})
	if err = errors.Join(err, root.Close()); err != nil {
		return err
	}
	s.live.layers = slices.Clone(ref.Layers)
	return nil
}

func isPrefix(a, b []*layer.Layer) bool {
	if len(a) > len(b) {
		return false
	}
	for i := range a {
		if a[i].DiffID() != b[i].DiffID() {
			return false
		}
	}
	return true
}

// park clears the container's / and finds out what stays there.
func (s *InPlace) park() error {
	if err := s.opt.Supervisor.tell(tellRestore, s.work); err != nil {
		return err
	}
	s.parked = true
	if err := os.Chdir(s.work); err != nil {
		return fmt.Errorf("park: %w", err)
	}
	if err := s.opt.Outside.move(s.lot.parked(), s.lot.park); err != nil {
		return err
	}
	for _, m := range s.lot.mounts() {
		if s.opt.Ignored != nil && s.opt.Ignored(m) {
			continue
		}
		if !isRuntimeMount(m) && !s.lot.keep[topOf(m)] {
			s.volumes[m] = &volumeState{}
		}
	}
	for m := range s.volumes {
		if !s.needed(m, nil) {
			continue
		}
		if err := s.parkVolume(m); err != nil {
			return err
		}
	}
	return nil
}

func topOf(p string) string {
	top, _, _ := strings.Cut(p, "/")
	return top
}

// uninstall throws the installed root away.
func (s *InPlace) uninstall() error {
	s.check()
	if err := s.live.end(); err != nil {
		return fmt.Errorf("remove the last root: %w", err)
	}
	for m, aside := range s.parkedVolumes() {
		fd, err := unix.Openat(s.lot.root, m, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			err = s.lot.emptyVolume(fd, aside)
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("empty the volume /%s: %w", m, err)
		}
	}
	trash, err := os.MkdirTemp(s.work, trashName)
	if err != nil {
		return fmt.Errorf("remove the last root: %w", err)
	}
	if err := s.lot.sweep(trash); err != nil {
		return fmt.Errorf("remove the last root: %w", err)
	}
	s.live = nil
	s.pool.background(func(ctx context.Context) { _ = layer.RemoveAllUntil(ctx, trash) })
	return nil
}

// masked returns the paths that are not part of the image's tree.
func (s *InPlace) masked() map[string]bool {
	out := make(map[string]bool)
	for k := range s.lot.keep {
		out[k] = true
	}
	for _, m := range s.lot.mounts() {
		out[m] = true
	}
	for m, aside := range s.parkedVolumes() {
		delete(out, m)
		out[tree.Join(m, aside)] = true
	}
	return out
}
