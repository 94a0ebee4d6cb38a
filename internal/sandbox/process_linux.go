// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

// defaultPath is what BuildKit gives a process without PATH (util/system/path.go).
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// almostFull is so little free space, in bytes, that a command which failed may
// have wanted more.
const almostFull = 1 << 20

// A runner runs one process in a root.
type runner struct {
	root   tree.FS  // the live root
	at     string   // a path that leads to it
	null   *os.File // /dev/null, for a process without input
	memory *memory
}

// A prepared is what the root says of a process.
type prepared struct {
	uid, gid uint32
	groups   []uint32
	env      []string
	cwd, exe string
}

func getenv(env []string, key string) (string, bool) {
	for i := len(env) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(env[i], "="); ok && k == key {
			return v, true
		}
	}
	return "", false
}

// prepare finds the user, the working directory, which is made, and the program.
func (r *runner) prepare(p *Process) (*prepared, error) {
	uid, gid, groups, home, err := tree.ExecUser(r.root, p.User)
	if err != nil {
		return nil, &UserError{User: p.User, Err: err}
	}
	if !slices.Contains(groups, gid) { // as containerd's ensureAdditionalGids
		groups = append([]uint32{gid}, groups...)
	}
	env := slices.Clone(p.Env)
	if _, ok := getenv(env, "PATH"); !ok {
		env = append(env, "PATH="+defaultPath)
	}
	if v, ok := getenv(env, "HOME"); !ok || v == "" { // runc sets it from the root's passwd
		env = append(env, "HOME="+home)
	}
	cwd := path.Join("/", p.Cwd)
	if err := r.makeCwd(cwd, int(uid), int(gid)); err != nil {
		return nil, fmt.Errorf("make the working directory %s: %w", cwd, err)
	}
	exe, err := r.lookPath(p.Args, env, cwd)
	if err != nil {
		return nil, err
	}
	return &prepared{uid: uid, gid: gid, groups: groups, env: env, cwd: cwd, exe: exe}, nil
}

// run starts the process in / as it stands and waits for it and for everything
// that it started.
func (r *runner) run(ctx context.Context, p *Process) (peak int64, err error) {
	pre, err := r.prepare(p)
	if err != nil {
		return 0, err
	}
	cmd := &exec.Cmd{
		Path: pre.exe, Args: p.Args, Env: pre.env, Dir: pre.cwd, Stdin: p.Stdin,
		SysProcAttr: &syscall.SysProcAttr{
			Setsid: true, Pdeathsig: unix.SIGKILL,
			Credential: &syscall.Credential{Uid: pre.uid, Gid: pre.gid, Groups: pre.groups},
		},
	}
	if cmd.Stdin == nil {
		cmd.Stdin = r.null // else os/exec opens the image's
	}
	peak, err = (&watch{cmd: cmd, p: p, memory: r.memory, reap: killDescendants}).run(ctx)
	if e, ok := errors.AsType[*ExitError](err); ok {
		var fs unix.Statfs_t
		e.DiskFull = unix.Statfs(r.at, &fs) == nil && (int64(fs.Bavail)*fs.Bsize < almostFull || fs.Files > 0 && fs.Ffree == 0)
	}
	return peak, err
}

// A watch is over a command from its start to its end.
type watch struct {
	cmd    *exec.Cmd
	p      *Process
	memory *memory
	// started, if given, is called when the process exists; its error ends it.
	started func() error
	// reap kills what the command left in the background.
	reap func()
}

// run runs the command. It is over when its first process is, as in a container.
func (w *watch) run(ctx context.Context) (int64, error) {
	// The kernel ends the command when the thread that started it ends (PDEATHSIG),
	// as threads do that left the others' mount namespace (detach). This one is
	// nobody else's until the command is over.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := w.cmd
	outR, outW, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return 0, errors.Join(err, outR.Close(), outW.Close())
	}
	cmd.Stdout, cmd.Stderr = outW, errW
	copied := make(chan struct{}, 2)
	drain := func(to io.Writer, f *os.File) {
		_, _ = io.Copy(to, f)
		copied <- struct{}{}
	}
	go drain(orDiscard(w.p.Stdout), outR)
	go drain(orDiscard(w.p.Stderr), errR)
	ooms := w.memory.kills()
	start := time.Now()
	err = cmd.Start()
	outW.Close()
	errW.Close()
	var serr error
	if err == nil {
		preferForOOM(cmd.Process.Pid)
		stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
		if w.started != nil {
			if serr = w.started(); serr != nil {
				_ = cmd.Process.Kill()
			}
		}
		err = cmd.Wait()
		stop()
		w.reap()
	}
	<-copied
	<-copied
	outR.Close()
	errR.Close()
	if serr != nil && ctx.Err() == nil {
		return 0, serr
	}
	return w.outcome(ctx, err, start, ooms)
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

func (w *watch) outcome(ctx context.Context, err error, start time.Time, ooms int64) (int64, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	st := w.cmd.ProcessState
	if st == nil {
		return 0, startError(w.p.Args[0], err)
	}
	var peak int64
	if ru, ok := st.SysUsage().(*syscall.Rusage); ok {
		peak = aboveOurs(ru.Maxrss) << 10
	}
	ws, _ := st.Sys().(syscall.WaitStatus)
	e := &ExitError{Code: ws.ExitStatus(), PeakRSS: peak, Took: time.Since(start)}
	if ws.Signaled() {
		e.Signal = int(ws.Signal())
		e.Code = 128 + e.Signal
	}
	valid := w.p.ValidExitCodes
	if len(valid) == 0 {
		valid = []int{0}
	}
	if !ws.Signaled() && slices.Contains(valid, e.Code) {
		return peak, nil
	}
	if w.memory.kills() > ooms {
		e.OOM = true
		e.Limit = w.memory.limit()
	}
	return peak, e
}

// aboveOurs returns kib if that is more than this process itself ever had
// resident, else 0: the kernel counts what the command's process shared with us
// between fork and exec.
func aboveOurs(kib int64) int64 {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &ru) != nil || kib <= ru.Maxrss {
		return 0
	}
	return kib
}

// startError explains why a command could not even start; 126 and 127 are what
// shells exit with then.
func startError(name string, err error) error {
	code := 126
	if errors.Is(err, fs.ErrNotExist) {
		code = 127
	}
	return &StartError{Name: name, Code: code, Err: err}
}

// A StartError is returned for a command that could not be started.
type StartError struct {
	Name string
	Code int
	Err  error
}

func (e *StartError) Error() string { return fmt.Sprintf("start %q: %v", e.Name, e.Err) }

// A noProgramError says that a program does not exist.
type noProgramError struct{ path string }

func (e *noProgramError) Error() string { return e.path + ": not found in the image" }

func (e *noProgramError) Unwrap() error { return fs.ErrNotExist }

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

// ExitCode is what a shell would exit with.
func (e *StartError) ExitCode() int { return e.Code }

// preferForOOM makes the kernel kill the command rather than the engine when
// memory runs out. Raising one's own score needs no privilege.
func preferForOOM(pid int) {
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("1000"), 0)
}

// makeCwd makes the working directory, 0755 and owned by the user in every part
// that is new (BuildKit executor/runcexecutor).
func (r *runner) makeCwd(cwd string, uid, gid int) error {
	p, err := tree.Resolve(r.root, cwd, true)
	if err != nil {
		return err
	}
	var missing []string
	for q := p; q != ""; q = tree.Parent(q) {
		if _, err := r.root.Lstat(q); err == nil {
			break
		}
		missing = append(missing, q)
	}
	for _, q := range slices.Backward(missing) {
		// Nothing runs in the root now, and q has no links in it.
		dir := filepath.Join(r.at, q)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := errors.Join(os.Chmod(dir, 0o755), os.Lchown(dir, uid, gid)); err != nil {
			return err
		}
	}
	return nil
}

// lookPath finds the program in the root.
func (r *runner) lookPath(args, env []string, cwd string) (string, error) {
	if len(args) == 0 {
		return "", errors.New("no command to run")
	}
	name := args[0]
	if strings.Contains(name, "/") {
		abs := name
		if !strings.HasPrefix(name, "/") {
			abs = path.Join(cwd, name)
		}
		return name, r.executable(name, abs) // as given: a script is told of it
	}
	dirs, _ := getenv(env, "PATH")
	for _, d := range strings.Split(dirs, ":") {
		if !strings.HasPrefix(d, "/") {
			d = path.Join(cwd, d)
		}
		if p := path.Join(d, name); r.executable(name, p) == nil {
			return p, nil
		}
	}
	return "", &StartError{Name: name, Code: 127, Err: &noProgramError{"PATH=" + dirs}}
}

func (r *runner) executable(name, p string) error {
	q, err := tree.Resolve(r.root, p, true)
	if err != nil {
		return &StartError{Name: name, Code: 126, Err: err}
	}
	e, err := r.root.Lstat(q)
	if err != nil {
		return &StartError{Name: name, Code: 127, Err: &noProgramError{p}}
	}
	if !e.Mode.IsRegular() || e.Mode&0o111 == 0 {
		return &StartError{Name: name, Code: 126, Err: fs.ErrPermission}
	}
	return nil
}

// A memory tells what the container's memory limit is and what it did. Its files
// are open, for the time in which what lies at their paths may be an image's.
type memory struct{ max, events *os.File }

func openMemory() *memory {
	return &memory{
		max:    openFirst("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
		events: openFirst("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"),
	}
}

// openFirst opens the first of the files that there is; nil if there is none.
func openFirst(paths ...string) *os.File {
	for _, p := range paths {
		if f, err := os.Open(p); err == nil {
			return f
		}
	}
	return nil
}

func (m *memory) close() {
	for _, f := range []*os.File{m.max, m.events} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// readAgain returns what the kernel has to say in f now.
func readAgain(f *os.File) string {
	if f == nil {
		return ""
	}
	b := make([]byte, 4096)
	n, _ := f.ReadAt(b, 0)
	return string(b[:n])
}

// kills counts the processes that the limit has killed; -1 if the kernel does
// not tell.
func (m *memory) kills() int64 {
	for l := range strings.Lines(readAgain(m.events)) {
		if v, ok := strings.CutPrefix(l, "oom_kill "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return -1
}

// limit returns the limit in bytes, 0 if there is none.
func (m *memory) limit() int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(readAgain(m.max)), 10, 64)
	if err != nil || n >= 1<<60 {
		return 0
	}
	return n
}

// MemoryLimit returns the memory limit of this container in bytes, 0 if none is known.
func MemoryLimit() int64 {
	m := openMemory()
	defer m.close()
	return m.limit()
}
