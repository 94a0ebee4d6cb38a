// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"hako/internal/ops"
	"hako/internal/sandbox"
)

// A room chooses the sandbox when the first command comes, and starts it, once.
type room struct {
	opt      *Options
	contexts *contexts
	network  *network
	outside  *sandbox.Outside
	own      []string   // directories that this build writes to
	clamp    *time.Time // the latest time of files in layers; nil for none
	logf     func(format string, args ...any)

	choice func() choice // what was chosen, by trying; asked for once
	// foreign returns a platform for which no command runs here, or nil.
	foreign func(*pb.Platform) *pb.Platform

	mu    sync.Mutex
	needs []string
	box   box
	err   error
	moved bool // files of this container were moved away
}

// A box is a sandbox and its end.
type box interface {
	ops.Sandbox
	Verified() error
	Close() error
}

// A choice is the sandbox that was chosen.
type choice struct {
	kind  string // of the isolation constants; "" if there is none
	why   string // why this one and no stronger one, for people
	trial *sandbox.Trial
	err   error // no command can be run here
}

func newRoom(ctx context.Context, opt *Options, c *contexts, n *network, logf func(string, ...any)) *room {
	r := &room{opt: opt, contexts: c, network: n, logf: logf}
	others := &foreign{dir: filepath.Join(r.work(), "work"), logf: logf}
	r.foreign = func(p *pb.Platform) *pb.Platform { return others.unless(ctx, p) }
	r.choice = sync.OnceValue(func() choice { return r.choose(ctx) })
	return r
}

// choose tries the sandboxes, the strongest first.
func (r *room) choose(ctx context.Context) choice {
	switch r.opt.Isolation {
	case "", isolationAuto, isolationInPlace, isolationNamespace:
	default:
		return choice{err: &NoSandboxError{
			Why: "--isolation=" + r.opt.Isolation + " is not known", Remedy: []string{"--isolation=auto, namespace or inplace"},
		}}
	}
	var nerr error
	if r.opt.Isolation != isolationInPlace {
		var t *sandbox.Trial
		if t, nerr = sandbox.TryNamespace(ctx, r.work()); nerr == nil && t.Enter == "" {
			return choice{kind: isolationNamespace, why: t.String(), trial: t}
		}
		switch {
		case nerr != nil:
		case staysInPlace(r.opt):
			nerr = errors.New("only a user namespace, in which commands make no device nodes; --isolation=namespace takes it")
		default:
			nerr = errors.New("this program would have to be started in a user namespace")
		}
		if r.opt.Isolation == isolationNamespace {
			return choice{err: &NoSandboxError{
				Why:    nerr.Error(),
				Remedy: []string{"--isolation=auto", "a machine or a pod that allows namespaces; hako doctor tells what is missing"},
			}}
		}
	}
	if err := r.inPlace(); err != nil {
		return choice{err: err}
	}
	c := choice{kind: isolationInPlace}
	if nerr != nil {
		c.why = nerr.Error()
	}
	return c
}

// staysInPlace tells whether a build is in place though it could enter a user
// namespace: kaniko's personality, where commands make device nodes, as in
// kaniko; mknod(2) is EPERM in every user namespace. Kubelets give pods no filter
// of system calls unless they are told to, so that an ordinary pod can enter one
// on some nodes and not on others: what a Dockerfile may do is the same on all.
func staysInPlace(opt *Options) bool {
	auto := opt.Isolation == "" || opt.Isolation == isolationAuto
	return auto && opt.Executor && !sandbox.IsAdmin() && sandbox.MakesDevices() && (&room{opt: opt}).inPlace() == nil
}

// enter starts this program again in a user namespace if commands can have
// namespaces only there. It comes before anything is opened.
func enter(ctx context.Context, opt *Options) error {
	if opt.Supervisor == nil || opt.Isolation == isolationInPlace || !asRoot(opt) || opt.Supervisor.Entered || sandbox.IsAdmin() || staysInPlace(opt) {
		return nil
	}
	t, err := sandbox.TryNamespace(ctx, workDir(opt))
	if err != nil || t.Enter == "" {
		return nil //nolint:nilerr // whoever needs a sandbox tries again and says why
	}
	return opt.Supervisor.Enter()
}

// namespace tries that sandbox and describes it.
func (r *room) namespace(ctx context.Context) (string, error) {
	t, err := sandbox.TryNamespace(ctx, r.work())
	if err != nil {
		return "", err
	}
	return t.String(), nil
}

// inPlace tells why no command can be run in place; nil if it can.
func (r *room) inPlace() error {
	if err := sandbox.Possible(r.work()); err != nil {
		return &NoSandboxError{
			Why:    err.Error(),
			Remedy: remedies(err),
		}
	}
	if !inContainer(r.opt.Env) && !r.opt.Force {
		return &NoSandboxError{
			Why:    "nothing shows that this is a container, and running in place would move this machine's own files",
			Remedy: []string{"run hako in a container", "--force, if this root is yours to lose"},
		}
	}
	if r.opt.Executor || r.opt.Isolation == isolationInPlace {
		return nil
	}
	if pid := sandbox.Unrelated(); pid != 0 {
		return &NoSandboxError{
			Why:    fmt.Sprintf("process %d also runs in this container, and running in place would move its files away", pid),
			Remedy: []string{"--isolation=inplace, if that process can wait", "start hako as the container's only program"},
		}
	}
	return nil
}

// unsupported tells what of a command cannot be honoured here.
func (r *room) unsupported(op *pb.ExecOp, p *pb.Platform) error {
	c := r.choice()
	if c.err != nil {
		return c.err
	}
	if err := unsupported(op, r.foreign(p), c.kind); err != nil || c.kind != isolationNamespace {
		return err
	}
	if err := r.unsupportedInsecure(op, c.trial); err != nil {
		return err
	}
	return unsupportedTrial(op, c.trial)
}

// unsupportedInsecure refuses commands that want all rights: who builds has to
// allow it and to have them.
func (r *room) unsupportedInsecure(op *pb.ExecOp, t *sandbox.Trial) error {
	switch {
	case op.Security != pb.SecurityMode_INSECURE:
		return nil
	case t.UserNamespace:
		return insecureError("a command cannot get more rights than this user has (capset: EPERM)", "remove it, or build as root")
	case !slices.Contains(r.opt.Allow, insecure):
		return insecureError("it gives a command all rights of this machine's root, which takes leave (security.insecure is not allowed)",
			"--allow security.insecure, if you trust this Dockerfile with that")
	}
	return nil
}

// unsupportedTrial is what this place does not give the namespace sandbox.
func unsupportedTrial(op *pb.ExecOp, t *sandbox.Trial) error {
	if op.Meta.Hostname != "" && t.OuterHostname {
		return &sandbox.UnsupportedError{
			What: "--hostname", Why: "the host name is the container's (sethostname: EPERM)", Remedy: "remove it",
		}
	}
	if !t.OneID {
		return nil
	}
	for _, m := range op.Mounts {
		uid, gid := max(m.GetSecretOpt().GetUid(), m.GetSSHOpt().GetUid()), max(m.GetSecretOpt().GetGid(), m.GetSSHOpt().GetGid())
		if uid != 0 || gid != 0 {
			return sandbox.NotMapped(fmt.Sprintf("RUN --mount=type=%s of the owner %d:%d", strings.ToLower(m.MountType.String()), uid, gid))
		}
	}
	return nil
}

// serial tells whether commands run one at a time.
func (r *room) serial() bool { return r.choice().kind == isolationInPlace }

// oneID tells whether commands have one user id to be.
func (r *room) oneID() bool {
	c := r.choice()
	return c.trial != nil && c.trial.OneID
}

// describe says in one line where commands will run.
func (r *room) describe() string {
	c := r.choice()
	return describe(r.opt, c.kind, c.why)
}

// remedies are the settings of a pod that help against an error of
// sandbox.Possible. Any one of them has to be enough.
func remedies(err error) []string {
	switch {
	case os.Geteuid() != 0:
		return []string{"securityContext.runAsUser: 0 (with default capabilities)"}
	case errors.Is(err, unix.EROFS):
		return []string{"securityContext.readOnlyRootFilesystem: false"}
	case errors.Is(err, unix.EPERM):
		return []string{"securityContext.capabilities: default ones (drop none)"}
	}
	return []string{"a work directory on the root file system: mount no volume there, or name another with --work-dir"}
}

// inContainer tells whether there is a sign of a container.
func inContainer(env Env) bool {
	for _, v := range []string{"container", "KUBERNETES_SERVICE_HOST"} {
		if env.Get(v) != "" {
			return true
		}
	}
	for _, p := range []string{"/.dockerenv", "/run/.containerenv", "/var/run/secrets/kubernetes.io/serviceaccount"} {
		if _, err := os.Lstat(p); err == nil {
			return true
		}
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) > 6 && f[4] == "/" && strings.Contains(l, " - overlay ") {
			return true
		}
	}
	return false
}

// work is hako's own directory, which stays in place.
func (r *room) work() string { return workDir(r.opt) }

// start returns the sandbox, made by the first caller.
func (r *room) start(ctx context.Context) (ops.Sandbox, error) {
	c := r.choice()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.box != nil || r.err != nil {
		return r.box, r.err
	}
	if r.err = c.err; r.err != nil {
		return nil, r.err
	}
	ctx = context.WithoutCancel(ctx) // it lives until close
	if c.kind == isolationNamespace {
		b, err := sandbox.NewNamespace(ctx, c.trial, sandbox.NamespaceOptions{
			WorkDir: r.work(), ResolvConf: r.network.resolvConf, Clamp: r.clamp, Supervisor: r.opt.Supervisor, Logf: r.logf,
		})
		if r.err = err; err == nil {
			r.box = b
		}
		return r.box, r.err
	}
	b, err := sandbox.NewInPlace(ctx, sandbox.InPlaceOptions{
		WorkDir: r.work(), Hosts: r.network.hosts, ResolvConf: r.network.resolvConf, Supervisor: r.opt.Supervisor,
		Needs: r.needs, OnVolume: r.contexts.moved, Outside: r.outside, Own: r.own, Clamp: r.clamp, Logf: r.logf, Ignored: ignored(r.opt.IgnorePaths),
		LookAtAll: r.opt.LookAtAll,
	})
	if r.err = err; err == nil {
		r.box = b
	}
	return r.box, r.err
}

// need adds paths of the image at which volumes have to make room.
func (r *room) need(paths []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.needs = append(r.needs, paths...)
}

// putBack puts the container back; no command can be run after that.
func (r *room) putBack() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch b := r.box.(type) {
	case *sandbox.InPlace:
		r.moved = r.moved || b.Moved()
		return b.PutBack()
	case *sandbox.Namespace:
		b.Finish()
	}
	return nil
}

// verified waits for the proof that the layers of commands are what the commands
// left, which goes on while the container is put back and layers are pushed.
func (r *room) verified() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.box == nil {
		return nil
	}
	return r.box.Verified()
}

// close puts the container back if that was not done, and cleans up.
func (r *room) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.box == nil {
		return nil
	}
	if b, ok := r.box.(*sandbox.InPlace); ok {
		r.moved = r.moved || b.Moved()
	}
	err := r.box.Close()
	r.box, r.err = nil, errors.New("the sandbox is closed")
	return err
}

// workDir returns where roots, blobs and indexes go.
func workDir(opt *Options) string {
	if opt.WorkDir != "" {
		return opt.WorkDir
	}
	if d := opt.Env.Get("KANIKO_DIR"); d != "" {
		return d
	}
	if opt.Executor || opt.Isolation == isolationInPlace || asRoot(opt) && inContainer(opt.Env) {
		return "/kaniko"
	}
	return cacheDir(opt.Env)
}

// asRoot tells whether root started this program.
func asRoot(opt *Options) bool {
	return os.Geteuid() == 0 && (opt.Supervisor == nil || !opt.Supervisor.Mapped)
}

func cacheDir(env Env) string {
	if d := env.Get("XDG_CACHE_HOME"); d != "" {
		return filepath.Join(d, "hako")
	}
	if d := env.Get("HOME"); d != "" {
		return filepath.Join(d, ".cache", "hako")
	}
	return filepath.Join(os.TempDir(), "hako")
}
