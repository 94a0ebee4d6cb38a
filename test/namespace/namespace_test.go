// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package namespace tests builds in the namespace sandbox on this machine, as
// root and as users with and without subordinate ids.
package namespace

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hako/test/rig"
)

// nobody is a user of this machine without a name and without subordinate ids.
const nobody = 64123

const epoch = "1700000000"

// A world is a registry with bases, a build context and the program.
type world struct {
	rig *rig.Rig
	dir string // the context
}

func start(t *testing.T, dockerfile string) *world {
	t.Helper()
	rig.Require(t, rig.NeedRoot, rig.NeedPodman, rig.NeedBusybox)
	r, err := rig.Start(t.Context(), rig.Options{Hako: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{rig: r, dir: t.TempDir()}
	for name, content := range map[string]string{"Dockerfile": r.Address(dockerfile), "a.txt": "a\n", "b.txt": "b\n"} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Users other than root reach the context and the program.
	reach(t, w.dir)
	reach(t, r.HakoBin)
	return w
}

// reach lets everyone reach a path.
func reach(t *testing.T, path string) {
	t.Helper()
	for d := path; len(d) > 1; d = filepath.Dir(d) {
		open(t, d)
	}
}

// open lets everyone through.
func open(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode()&0o005 == 0o005 {
		return
	}
	if err := os.Chmod(path, fi.Mode().Perm()|0o005); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(path, fi.Mode().Perm()) })
}

// command is a build as user uid, with its files below work.
func (w *world) command(ctx context.Context, uid uint32, work string, args ...string) *exec.Cmd {
	line := w.line(work, args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Setpgid: true}
	cmd.Env = append(os.Environ(), "HOME="+work)
	return cmd
}

// line is a build's command line.
func (w *world) line(work string, args ...string) []string {
	return append([]string{
		w.rig.HakoBin, "build", "--isolation=namespace", "--progress=plain", "--no-push", "--insecure-registry=" + w.rig.Registry,
		"--work-dir=" + work, "-t=x:1",
	}, append(args, w.dir)...)
}

func workDir(t *testing.T, uid int) string {
	t.Helper()
	dir := t.TempDir()
	reach(t, dir)
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	return dir
}

const deterministic = `FROM base.test/busybox AS a
WORKDIR /w
COPY --chown=33:44 a.txt b.txt ./
RUN echo more >> a.txt && chmod 640 b.txt && mkdir -p deep/er && echo x > deep/er/x && ln deep/er/x y && ln -s y z && rm -r /bin/false
RUN --mount=type=cache,target=/c --mount=target=/in cp /in/a.txt /c/ && cat /c/a.txt > from-cache
FROM base.test/usrmerge AS b
RUN echo b > /b && chmod u+s /b
FROM base.test/busybox
COPY --from=a /w /w
COPY --from=b /b /b
RUN rm -r /w/deep && mkdir /w/deep && cat /w/y > /w/deep/new
`

// The same Dockerfile gives the same digest wherever its commands run.
func TestSameDigest(t *testing.T) {
	rig.Require(t, rig.NeedUidmap)
	w := start(t, deterministic)
	fixed := []string{"--source-date-epoch=" + epoch, "--rewrite-timestamp"}
	digests := make(map[string]string)
	build := func(name, out string, cmd *exec.Cmd, cpus string) {
		cmd.Env = append(cmd.Env, "GOMAXPROCS="+cpus)
		log, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, log)
			return
		}
		if oneID := strings.Contains(string(log), "one id"); oneID != strings.Contains(name, "one id") {
			t.Errorf("%s: one id: %v\n%s", name, oneID, log)
		}
		digests[name] = layoutDigest(t, out)
	}
	local := func(name string, uid uint32, cpus string) {
		work := workDir(t, int(uid))
		out := filepath.Join(work, "out")
		build(name, out, w.command(t.Context(), uid, work, append(fixed, "--oci-layout-path="+out)...), cpus)
	}
	subordinate := func(name, cpus string) {
		home := workDir(t, rig.UserID)
		out := filepath.Join(home, "out")
		cmd, err := rig.AsUser(t.Context(), home, true, w.line(filepath.Join(home, "work"), append(fixed, "--oci-layout-path="+out)...)...)
		if err != nil {
			t.Fatal(err)
		}
		build(name, out, cmd, cpus)
	}
	local("root", 0, "2")
	local("root again", 0, "2")
	local("root, one CPU", 0, "1")
	plain, err := w.rig.PlainDir()
	if err != nil {
		t.Fatal(err)
	}
	reach(t, plain)
	for _, uid := range []uint32{0, nobody} {
		name := map[uint32]string{0: "root on plain directories", nobody: "user with one id on plain directories"}[uid]
		work, out := filepath.Join(plain, fmt.Sprint(uid)), filepath.Join(workDir(t, int(uid)), "out")
		cmd := w.command(t.Context(), uid, work, append(fixed, "--oci-layout-path="+out)...)
		build(name, out, cmd, "2")
	}
	local("user with one id", nobody, "2")
	local("user with one id, one CPU", nobody, "1")
	local("user with one id, one CPU again", nobody, "1")
	subordinate("user with subordinate ids", "2")
	subordinate("user with subordinate ids again", "2")
	subordinate("user with subordinate ids, one CPU", "1")
	p, err := w.rig.Podman(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	image, err := p.Scratch(t.Context(), "/kaniko/executor", "/kaniko/hako")
	if err != nil {
		t.Fatal(err)
	}
	// In a container FROM scratch there is nothing of a host to lean on.
	container := func(name, box, cpus string, args ...string) {
		out := t.TempDir()
		res, err := p.Run(t.Context(), rig.PodSpec{
			Image: image,
			Command: append([]string{
				"/kaniko/hako", "build", "--progress=plain", "--no-push", "-t=x:1", "--insecure-registry=" + w.rig.Registry, "--oci-layout-path=/.rig/out", "/.rig/in",
			}, fixed...),
			Mounts: []rig.Mount{{Source: w.dir, Target: "/.rig/in", ReadOnly: true}, {Source: out, Target: "/.rig/out"}},
			Env:    []string{"GOMAXPROCS=" + cpus}, Args: args,
		})
		if err != nil || res.Exit != 0 {
			t.Fatalf("%s: %v, exit %d\n%s%s", name, err, res.Exit, res.Stdout, res.Stderr)
		}
		if !strings.Contains(res.Stderr, "[internal] "+box) {
			t.Errorf("%s: not in the %s\n%s", name, box, res.Stderr)
		}
		digests[name] = layoutDigest(t, out)
	}
	container("in place", "inplace sandbox", "2")
	container("in place again", "inplace sandbox", "2")
	container("in place, one CPU", "inplace sandbox", "1")
	const unfiltered = "--security-opt=seccomp=unconfined"
	volume := t.TempDir()
	container("privileged", "namespace sandbox (plain directories", "2", "--privileged", unfiltered)
	container("privileged with a volume", "namespace sandbox (overlayfs", "2", "--privileged", unfiltered, "--volume="+volume+":/kaniko/work")
	container("user namespaces allowed", "namespace sandbox (user namespace, plain directories", "2", unfiltered)
	container("the same with a volume", "namespace sandbox (user namespace, overlayfs", "2", unfiltered, "--volume="+volume+":/kaniko/work")
	if profile := "/usr/share/containers/seccomp.json"; exists(profile) {
		container("podman's filter", "namespace sandbox (user namespace, plain directories", "2", "--security-opt=seccomp="+profile)
	}
	for name, d := range digests {
		if d != digests["in place"] {
			t.Errorf("%s: %s, in place %s", name, d, digests["in place"])
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func layoutDigest(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var idx struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal(b, &idx); err != nil || len(idx.Manifests) != 1 {
		t.Fatalf("%s: %v", b, err)
	}
	return idx.Manifests[0].Digest
}

// kills is how often a build is killed in a run of the tests.
const kills = 200

// Builds that are killed at any moment leave no process and no mount, and no file
// once the next build has begun; that one is right.
func TestKilledBuildsLeaveNothing(t *testing.T) {
	mark := fmt.Sprintf("27%d", os.Getpid())
	w := start(t, `FROM base.test/busybox AS a
RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t --mount=target=/in echo 1 > /c/x && (sleep `+mark+` &) && sleep 0.02 && echo a > /a
FROM base.test/busybox AS b
RUN sleep 0.03 && echo b > /b
FROM base.test/busybox
COPY --from=a /a /
COPY --from=b /b /
RUN test -f /a && test -f /b && echo c > /c
`)
	for _, uid := range []uint32{0, nobody} {
		t.Run(fmt.Sprintf("user %d", uid), func(t *testing.T) { w.killLoop(t, uid, mark) })
	}
}

func (w *world) killLoop(t *testing.T, uid uint32, mark string) {
	work := workDir(t, int(uid))
	began := time.Now()
	if log, err := w.command(t.Context(), uid, work).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	whole := time.Since(began)
	rnd := rand.New(rand.NewPCG(1, uint64(uid)))
	for n := range kills / 2 {
		cmd := w.command(t.Context(), uid, work)
		var log bytes.Buffer
		cmd.Stdout, cmd.Stderr = &log, &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rnd.Int64N(int64(whole))))
		// The supervisor alone, the engine alone, or both at once.
		engines := children(cmd.Process.Pid)
		if n%3 != 0 {
			for _, pid := range engines {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if n%3 != 1 {
			_ = cmd.Process.Kill()
		}
		_ = cmd.Wait()
		for range 100 { // those whose parent dies are killed by the kernel, at its pace
			if len(running(mark, work)) == 0 {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if left := running(mark, work); len(left) > 0 {
			t.Fatalf("build %d: processes left: %q\n%s", n, left, log.String())
		}
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(b, []byte(work)) {
		t.Errorf("mounts left: %v\n%s", err, b)
	}
	if log, err := w.command(t.Context(), uid, work).CombinedOutput(); err != nil {
		t.Errorf("the build after %d killed ones: %v\n%s", kills/2, err, log)
	}
	left, err := filepath.Glob(filepath.Join(work, "work", "ns", "*"))
	if len(left) > 0 || err != nil {
		t.Errorf("files left: %v %v", left, err)
	}
}

// children returns the processes that pid has started.
func children(pid int) []int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var out []int
	for _, f := range strings.Fields(string(b)) {
		var n int
		if _, err := fmt.Sscan(f, &n); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// running returns the command lines that hold one of the words.
func running(words ...string) []string {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var out []string
	for _, f := range procs {
		b, err := os.ReadFile(f)
		line := string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		if err == nil && slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) }) {
			out = append(out, line)
		}
	}
	return out
}
