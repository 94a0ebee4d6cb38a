// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
	Supervisor io.Writer
	// Needs are the paths, relative to the root, that the build's instructions use:
	// a volume there has to make room.
	Needs []string
	// OnVolume wraps the moving aside of a volume's content, for readers of that
	// volume; nil just calls move.
	OnVolume func(path string, move func() (aside string, err error)) error
	// Logf tells people what is going on.
	Logf func(format string, args ...any)
}

// InPlace runs commands in the container's own root. Run is not safe for
// concurrent use, Prefetch is.
type InPlace struct {
	opt  InPlaceOptions
	work string
	lot  *lot
	lock *os.File
	pool *pool
	self *selftest

	parked  bool
	shm     string // directory on tmpfs for secrets and sockets
	live    *installed
	volumes map[string]*volumeState // mounts that stay and are not the runtime's
}

type selftest struct {
	once  sync.Once
	trust bool
	why   string
	err   error
}

// An installed is the root that is in / now.
type installed struct {
	layers []*layer.Layer
	record *record // nil: stale
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
	s.pool = newPool(ctx, filepath.Join(work, "roots"))
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

// Assembling returns a channel that is closed when the root that l is being
// unpacked for is assembled; nil if there is none.
func (s *InPlace) Assembling(l *layer.Layer) <-chan struct{} { return s.pool.assembling(l) }

// PutBack ends what was prefetched and puts the container back as it was. No
// command can be run after that.
func (s *InPlace) PutBack() error {
	err := s.pool.close()
	if s.parked {
		if rerr := s.lot.restore(); rerr != nil {
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
	err := s.PutBack()
	// If the supervisor is PID 1, the container ends with us, and its files with
	// it: deleting them one by one would only take time.
	if os.Getppid() != 1 {
		cleanWork(s.work)
	}
	return errors.Join(err, s.lot.close(), s.lock.Close())
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
	res, err := s.runInstalled(ctx, base, p)
	if err != nil {
		s.live.layers = nil // whatever is there now, it is no known state
		return nil, err
	}
	return res, nil
}

// Ran tells that l holds the changes of the last Run, so that the installed root
// is known to be the last ref with l on top.
func (s *InPlace) Ran(ref *layer.Ref, l *layer.Layer) {
	if s.live != nil {
		s.live.layers = append(slices.Clone(ref.Layers), l)
	}
}

// checkImage refuses images that have files where hako itself has to be.
func (s *InPlace) checkImage(base tree.FS) error {
	for name := range s.lot.keep {
		if _, err := os.Lstat("/" + name); err != nil {
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
	dir, err := s.pool.take(ctx, ref.Layers)
	if err != nil {
		return err
	}
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
	s.live = &installed{}
	if err := s.lot.install(dir, s.parkedVolumes()); err != nil {
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
	s.live.record = nil
	root, err := layer.OpenRoot("/")
	if err != nil {
		return err
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
	for _, l := range rest {
		if err = root.Apply(ctx, l, false); err != nil {
			s.live.layers = nil
			break
		}
	}
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
	if s.opt.Supervisor != nil {
		if _, err := fmt.Fprintln(s.opt.Supervisor, s.work); err != nil {
			return fmt.Errorf("park: %w", err)
		}
	}
	s.parked = true
	if err := os.Chdir(s.work); err != nil {
		return fmt.Errorf("park: %w", err)
	}
	if err := s.lot.park(); err != nil {
		return err
	}
	for _, m := range s.lot.mounts() {
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

// isRuntimeMount tells whether the container runtime mounts p in every
// container, as BuildKit does for RUN.
func isRuntimeMount(p string) bool {
	switch p {
	case "etc/hosts", "etc/resolv.conf", "etc/hostname", "run/.containerenv", "run/secrets":
		return true
	}
	switch topOf(p) {
	case "proc", "sys", "dev":
		return true
	}
	return false
}

// needed tells whether the build uses the volume m's path for the image.
func (s *InPlace) needed(m string, base tree.FS) bool {
	for _, n := range s.opt.Needs {
		if tree.Within(tree.Clean(n), m) {
			return true
		}
	}
	if base == nil {
		return false
	}
	_, err := base.Lstat(m)
	return err == nil
}

// makeRoom parks, inside themselves, the volumes that lie where the image has
// something.
func (s *InPlace) makeRoom(_ context.Context, base tree.FS) error {
	for m, v := range s.volumes {
		if v.aside != "" || !s.needed(m, base) {
			continue
		}
		if e, err := base.Lstat(m); err == nil && !e.Mode.IsDir() {
			return &UnsupportedError{
				What: "RUN", Why: fmt.Sprintf("the image has a file or a link at /%s, where this container has a volume", m),
				Remedy: fmt.Sprintf("mount the volume somewhere else than /%s", m),
			}
		}
		if err := s.parkVolume(m); err != nil {
			return err
		}
	}
	return nil
}

func (s *InPlace) parkVolume(m string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/"+m, &fs); err != nil {
		return fmt.Errorf("look at the volume /%s: %w", m, err)
	}
	if fs.Flags&unix.ST_RDONLY != 0 {
		return &UnsupportedError{
			What:   "RUN",
			Why:    fmt.Sprintf("the image uses /%s, where this container has a read-only volume that can be neither moved nor emptied", m),
			Remedy: fmt.Sprintf("mount the volume somewhere else than /%s (for the build context: and name it with -c), or mount it writable", m),
		}
	}
	if !isDirAt(s.lot.root, m) {
		return &UnsupportedError{
			What: "RUN", Why: fmt.Sprintf("the image uses /%s, where this container has a file mounted", m),
			Remedy: "mount the file somewhere else",
		}
	}
	move := func() (string, error) { return s.lot.parkVolume(m) }
	record := func() (string, error) {
		aside, err := move()
		s.volumes[m].aside = aside
		return aside, err
	}
	if s.opt.OnVolume != nil {
		return s.opt.OnVolume("/"+m, record)
	}
	_, err := record()
	return err
}

func (s *InPlace) parkedVolumes() map[string]string {
	out := make(map[string]string)
	for m, v := range s.volumes {
		if v.aside != "" {
			out[m] = v.aside
		}
	}
	return out
}

// uninstall throws the installed root away.
func (s *InPlace) uninstall() error {
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

// trusted tells whether ctime shows every change on the root's file system.
func (s *InPlace) trusted() (bool, error) {
	s.self.once.Do(func() {
		s.self.trust, s.self.why, s.self.err = trustsCtime(s.work)
		if s.self.err == nil && !s.self.trust {
			s.opt.Logf("this file system does not show every change (%s): file contents are compared after each RUN", s.self.why)
		}
	})
	return s.self.trust, s.self.err
}

// runInstalled runs p in the root as it stands and finds the changes.
func (s *InPlace) runInstalled(ctx context.Context, base tree.FS, p *Process) (*Result, error) {
	live, err := tree.OpenDir("/")
	if err != nil {
		return nil, err
	}
	if err := s.recordBefore(ctx); err != nil {
		return nil, errors.Join(err, live.Close())
	}
	clean := s.cleanShared()
	pl := &placer{s: s, root: live, masked: s.masked()}
	err = pl.place(ctx, p)
	var peak int64
	if err == nil {
		r := &runner{root: live, work: s.work}
		peak, err = r.run(ctx, p)
	}
	err = errors.Join(err, pl.remove(), clean())
	if err == nil {
		err = s.checkVolumes(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, live.Close())
	}
	return s.findChanges(ctx, live.WithXattrs(), base, peak)
}

// recordBefore makes sure that the record is fresh and that everything from now
// on gets a later ctime.
func (s *InPlace) recordBefore(ctx context.Context) error {
	trust, err := s.trusted()
	if err != nil {
		return err
	}
	if s.live.record == nil {
		if s.live.record, err = takeRecord(ctx, s.lot.root, s.masked()); err != nil {
			return err
		}
	}
	for m, v := range s.volumes {
		if v.record, err = s.volumeRecord(ctx, m, v.aside); err != nil {
			return err
		}
	}
	if trust {
		if err := waitTick(s.work, s.live.record.latest); err != nil {
			s.opt.Logf("%v: file contents are compared after each RUN", err)
			s.self.trust = false
		}
	}
	return nil
}

// volumeRecord records the volume at m, or the directory in it that its content is in.
func (s *InPlace) volumeRecord(ctx context.Context, m, aside string) (*record, error) {
	fd, err := unix.Openat(s.lot.root, tree.Join(m, aside), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOTDIR || err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at the volume /%s: %w", m, err)
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) == nil && fs.Flags&unix.ST_RDONLY != 0 {
		return nil, nil // a command cannot write there; the kubelet may
	}
	masked := make(map[string]bool)
	for _, other := range s.lot.mounts() {
		if other != m && tree.Within(other, m) {
			masked[strings.TrimPrefix(other, m+"/")] = true
		}
	}
	return takeRecord(ctx, fd, masked)
}

// checkVolumes fails if the command wrote to a volume that is not part of the image.
func (s *InPlace) checkVolumes(ctx context.Context) error {
	for m, v := range s.volumes {
		if v.record == nil {
			continue
		}
		now, err := s.volumeRecord(ctx, m, v.aside)
		if err != nil {
			return err
		}
		if now == nil {
			return &VolumeError{Volume: "/" + m, Path: "/" + tree.Join(m, v.aside)}
		}
		if p, ok := firstDifference("", v.record.root, now.root); ok {
			return &VolumeError{Volume: "/" + m, Path: "/" + tree.Join(m, p)}
		}
	}
	return nil
}

// A VolumeError is returned when a command wrote to a volume of the container.
type VolumeError struct{ Volume, Path string }

func (e *VolumeError) Error() string {
	return fmt.Sprintf("wrote to %s, in %s, a volume of this container: it would be missing from the image", e.Path, e.Volume)
}

// firstDifference returns a path that differs between two records.
func firstDifference(path string, a, b *dirRecord) (string, bool) {
	for i, j := 0, 0; i < len(a.nodes) || j < len(b.nodes); {
		switch {
		case j == len(b.nodes) || i < len(a.nodes) && a.nodes[i].name < b.nodes[j].name:
			return tree.Join(path, a.nodes[i].name), true
		case i == len(a.nodes) || a.nodes[i].name > b.nodes[j].name:
			return tree.Join(path, b.nodes[j].name), true
		}
		x, y := &a.nodes[i], &b.nodes[j]
		p := tree.Join(path, x.name)
		if !x.masked && !y.masked {
			if !x.isDir() && !x.same(y) || x.mode != y.mode || x.uid != y.uid || x.gid != y.gid {
				return p, true
			}
			if x.kids != nil && y.kids != nil {
				if q, ok := firstDifference(p, x.kids, y.kids); ok {
					return q, true
				}
			}
		}
		i++
		j++
	}
	return "", false
}

// findChanges compares the live root with the record and the image.
func (s *InPlace) findChanges(ctx context.Context, live *tree.Dir, base tree.FS, peak int64) (*Result, error) {
	start := time.Now()
	after, err := takeRecord(ctx, s.lot.root, s.masked())
	if err != nil {
		return nil, errors.Join(err, live.Close())
	}
	sc := &scan{live: live, base: base, hashAll: !s.self.trust}
	changed, err := sc.run(ctx, s.live.record, after)
	if err != nil {
		return nil, errors.Join(err, live.Close())
	}
	s.live.record = after
	return &Result{
		Changes: sc.changes(), Looked: after.names, Changed: changed, Scan: time.Since(start), PeakRSS: peak,
		done: live.Close,
	}, nil
}

// cleanShared remembers what is in the shared memory file systems that commands
// see, and returns a function that removes what a command left there.
func (s *InPlace) cleanShared() func() error {
	dirs := []string{"/dev/shm", "/dev/mqueue"}
	had := make(map[string]map[string]bool)
	for _, d := range dirs {
		if !isMountPoint(d) {
			continue
		}
		names, err := os.ReadDir(d)
		if err != nil {
			continue
		}
		had[d] = make(map[string]bool)
		for _, n := range names {
			had[d][n.Name()] = true
		}
	}
	return func() error {
		for d, names := range had {
			now, err := os.ReadDir(d)
			if err != nil {
				return err
			}
			for _, n := range now {
				p := filepath.Join(d, n.Name())
				if !names[n.Name()] && p != s.shm {
					if err := layer.RemoveAll(p); err != nil {
						return fmt.Errorf("clean %s: %w", d, err)
					}
				}
			}
		}
		return nil
	}
}

func isMountPoint(p string) bool {
	var a, b unix.Stat_t
	if unix.Lstat(p, &a) != nil || unix.Lstat(filepath.Dir(p), &b) != nil {
		return false
	}
	return a.Dev != b.Dev
}
