// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
)

// The test binary is also the program that confines a command.
func TestMain(m *testing.M) {
	_, _ = Init(os.Args)
	os.Exit(m.Run())
}

// A nsRig is a namespace sandbox and a small busybox root.
type nsRig struct {
	*testing.T
	work  string
	box   *Namespace
	store *store.Store
	base  *layer.Ref
}

// inBoth runs a test on overlays and, where the kernel refuses them, on plain
// directories.
func inBoth(t *testing.T, test func(t *testing.T, r *nsRig)) {
	t.Parallel()
	t.Run("overlay", func(t *testing.T) { t.Parallel(); test(t, newNSRig(t, t.TempDir())) })
	t.Run("plain", func(t *testing.T) {
		t.Parallel()
		r := newNSRig(t, onOverlay(t))
		if r.box.trial.Plain == "" {
			t.Fatal("an overlay on an overlay")
		}
		test(t, r)
	})
}

// onOverlay returns a directory that the kernel lets nobody lay an overlay over.
func onOverlay(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	for _, d := range []string{"l", "u", "w", "at"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	at := filepath.Join(dir, "at")
	if err := unix.Mount("overlay", at, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/l,upperdir=%[1]s/u,workdir=%[1]s/w", dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return at
}

func newNSRig(t *testing.T, work string) *nsRig {
	t.Helper()
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if os.Geteuid() != 0 || err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root and busybox-static")
		}
		t.Skip("needs root and busybox-static")
	}
	r := &nsRig{T: t, work: work}
	trial, err := TryNamespace(t.Context(), r.work)
	if err != nil {
		t.Fatal(err)
	}
	if r.store, err = store.Open(filepath.Join(r.work, "store")); err != nil {
		t.Fatal(err)
	}
	st, end, err := r.store.Session()
	if err != nil {
		t.Fatal(err)
	}
	r.store = st
	if r.box, err = NewNamespace(t.Context(), trial, NamespaceOptions{WorkDir: r.work, ResolvConf: []byte("nameserver 192.0.2.1\n")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(r.box.Close(), end()); err != nil {
			t.Error(err)
		}
		left, err := filepath.Glob(filepath.Join(r.work, "work", "ns", "*"))
		if len(left) > 0 || err != nil {
			t.Errorf("left: %v %v", left, err)
		}
	})
	r.base = &layer.Ref{}
	r.base = r.layer(r.base, map[string]string{
		"bin/": "", "bin/busybox": string(busybox), "bin/sh": "-> busybox", "d/": "", "d/a": "a", "d/b": "b", "f": "f", "gone": "g",
		"etc/": "", "etc/passwd": "root:x:0:0::/root:/bin/sh\nu:x:1000:1001::/home/u:/bin/sh\n", "etc/group": "g:x:1001:\nmore:x:44:u\n",
		"l": "-> f",
	})
	return r
}

// layer adds a layer of the given files: a name ending in a slash is a directory, a
// content beginning with an arrow a link.
func (r *nsRig) layer(below *layer.Ref, files map[string]string) *layer.Ref {
	r.Helper()
	changes := func(yield func(tree.Change, error) bool) {
		var names []string
		for n := range files {
			names = append(names, n)
		}
		slices.SortFunc(names, func(a, b string) int { return tree.ComparePaths(tree.Clean(a), tree.Clean(b)) })
		for _, n := range names {
			e := tree.Entry{Path: tree.Clean(n), Mode: tree.ModeRegular | 0o755, Size: int64(len(files[n])), ModTime: time.Unix(1e9, 0)}
			c := tree.Change{Touched: true}
			to, isLink := strings.CutPrefix(files[n], "-> ")
			switch {
			case strings.HasSuffix(n, "/"):
				e.Mode, e.Size = tree.ModeDir|0o755, 0
			case isLink:
				e.Mode, e.Size, e.Link = tree.ModeSymlink|0o777, 0, to
			default:
				c.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(files[n])), nil }
			}
			c.Entry = e
			if !yield(c, nil) {
				return
			}
		}
	}
	l, err := layer.Write(r.Context(), r.store, changes, layer.WriteOptions{})
	if err != nil {
		r.Fatal(err)
	}
	return &layer.Ref{Layers: append(slices.Clone(below.Layers), l)}
}

// sh runs a script and returns what it printed and the touched changes.
func (r *nsRig) sh(ref *layer.Ref, script string, with func(p *Process)) (out string, changes []string, next *layer.Ref, err error) {
	r.Helper()
	var b, e bytes.Buffer
	p := &Process{Args: []string{"/bin/busybox", "sh", "-c", script}, Cwd: "/", Stdout: &b, Stderr: &e, Env: []string{"PATH=/bin"}}
	if with != nil {
		with(p)
	}
	res, err := r.box.Run(r.Context(), ref, p)
	if err != nil {
		return b.String() + e.String(), nil, nil, err
	}
	for c, err := range res.Changes {
		switch {
		case err != nil:
			r.Fatal(err)
		case c.Deleted:
			changes = append(changes, "D "+c.Path)
		case c.LinkTo != "":
			changes = append(changes, "L "+c.Path+" "+c.LinkTo)
		case c.Touched:
			changes = append(changes, "A "+c.Path)
		}
	}
	l, err := layer.Write(r.Context(), r.store, res.Changes, layer.WriteOptions{})
	if err != nil {
		r.Fatal(err)
	}
	l.Forget() // as whoever runs commands does: the next one changes what it was read from
	if err := res.Close(l); err != nil {
		r.Fatal(err)
	}
	return b.String() + e.String(), changes, &layer.Ref{Layers: append(slices.Clone(ref.Layers), l)}, nil
}

func TestNamespaceChanges(t *testing.T) { inBoth(t, testNamespaceChanges) }

func testNamespaceChanges(t *testing.T, r *nsRig) {
	bb := "alias c='busybox chmod'; busybox "
	tests := []struct {
		name, script string
		want         []string
	}{
		{"nothing", "true", nil},
		{"new", bb + "mkdir n; busybox touch n/x", []string{"A n", "A n/x"}},
		{"deleted", bb + "rm gone", []string{"D gone"}},
		{"came and went", bb + "touch d/t; busybox rm d/t", nil},
		{"chmod to the same", bb + "chmod 755 f d d/a", nil},
		{"opened for writing", "exec 3<>f", nil},
		{"same content", bb + "cp f /t; busybox touch -r f /t; busybox cat /t > f; busybox touch -r /t f; busybox rm /t", nil},
		{"changed in place, same time", bb + "touch -r f /t; echo -n x > f; busybox touch -r /t f; busybox rm /t", []string{"A f"}},
		{"touched", bb + "touch f", []string{"A f"}},
		{"chmod", bb + "chmod 700 d/a", []string{"A d/a"}},
		{"directory anew", bb + "rm -r d; busybox mkdir d; busybox touch d/n", []string{"D d/a", "D d/b", "A d/n"}},
		{"directory to file", bb + "rm -r d; echo x > d", []string{"A d"}},
		{"file to directory", bb + "rm f; busybox mkdir f; busybox touch f/x", []string{"A f", "A f/x"}},
		{"link through", bb + "rm l; busybox ln -s d l; echo 1 > l/new", []string{"A d/new", "A l"}},
		{"moved directory", bb + "mv d e", []string{"D d", "A e", "A e/a", "A e/b"}},
		{"hard links", bb + "touch x; busybox ln x y", []string{"A x", "L y x"}},
		{"hard link to what the image has", bb + "ln f y", []string{"A y"}},
		{"a socket is none", "busybox syslogd -n -O /dev/null & busybox sleep 0.5; kill $!; test -S /dev/log", nil},
		{"mount points leave nothing", "test -e /proc/self && test -c /dev/null && test -f /etc/hosts && echo x > /dev/shm/x", []string{"A dev", "A proc", "A sys"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, got, _, err := r.sh(r.base, tt.script, nil)
			// The container's own directories are new in a root without them, as
			// with runc; only one test is about that.
			if !slices.Contains(tt.want, "A proc") {
				got = slices.DeleteFunc(got, func(c string) bool { return c == "A dev" || c == "A proc" || c == "A sys" })
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("changes %q, want %q (%v)\n%s", got, tt.want, err, out)
			}
		})
	}
}

// Every command sees what those before it did, and another branch does not.
func TestNamespaceChain(t *testing.T) { inBoth(t, testNamespaceChain) }

func testNamespaceChain(t *testing.T, r *nsRig) {
	_, _, one, err := r.sh(r.base, "echo 1 > /one; busybox rm -r d; busybox mkdir d; echo 1 > d/one", nil)
	if err != nil {
		t.Fatal(err)
	}
	// Written to again, with the same bytes and most likely within the same second.
	if _, changes, _, err := r.sh(one, "echo 1 > /one", nil); err != nil || !slices.Contains(changes, "A one") {
		t.Errorf("written to again: %q %v", changes, err)
	}
	two := r.layer(one, map[string]string{"d/": "", "d/two": "2", "three/": "", "three/x": "x"})
	for branch, script := range map[string]string{
		"a": "test -e /one && test -e d/two && test -e three/x && test ! -e d/a && echo a > /a && busybox rm d/two",
		"b": "test -e /one && test -e d/two && test ! -e /a && test -e d/one",
	} {
		if out, _, _, err := r.sh(two, script, nil); err != nil {
			t.Errorf("branch %s: %v\n%s", branch, err, out)
		}
	}
	if out, _, _, err := r.sh(r.base, "test ! -e /one && test -e d/a", nil); err != nil {
		t.Errorf("base: %v\n%s", err, out)
	}
}

// A root goes when the last command that continues it is over, and not before.
func TestNamespaceRelease(t *testing.T) { inBoth(t, testNamespaceRelease) }

func testNamespaceRelease(t *testing.T, r *nsRig) {
	held := func() int {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(r.box.dir, "roots", "*"))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, name := range names {
			if !strings.Contains(filepath.Base(name), ".") {
				n++
			}
		}
		return n
	}
	waitFor := func(want int, when string) {
		t.Helper()
		for range 100 {
			if held() == want {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("%s: %d directories, want %d", when, held(), want)
	}
	run := func(ref *layer.Ref, script string) *layer.Ref {
		t.Helper()
		out, _, next, err := r.sh(ref, script, nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return next
	}
	one := func(overlay, plain int) int {
		if r.box.trial.Plain != "" {
			return plain
		}
		return overlay
	}
	a := run(r.base, "echo 1 > /a")
	b := run(a, "echo 2 > /b")
	r.box.Release([]*layer.Ref{r.base, a}, []*layer.Ref{b})
	waitFor(one(3, 1), "a chain that somebody continues")
	c := run(r.layer(b, map[string]string{"c": "c"}), "test -e c && test -e b && echo 3 > /e")
	other := run(a, "test ! -e /b && echo x > /x") // which is a branch, made anew
	r.box.Release([]*layer.Ref{b, c, a}, []*layer.Ref{other})
	waitFor(one(3, 1), "one branch over")
	if out, _, _, err := r.sh(other, "test -e /x && test -e /a && echo ok", nil); err != nil || out != "ok\n" {
		t.Errorf("the other branch: %q %v", out, err)
	}
	r.box.Release([]*layer.Ref{other, r.base, a}, nil)
	r.box.Finish()
	if err := r.box.Verified(); err != nil {
		t.Error(err)
	}
	waitFor(0, "after the last command")
}

func TestNamespaceConfines(t *testing.T) { inBoth(t, testNamespaceConfines) }

func testNamespaceConfines(t *testing.T, r *nsRig) {
	tests := []struct {
		name, script, want string
		with               func(p *Process)
	}{
		{"first process", "echo $$", "1\n", nil},
		{"capabilities", "busybox grep CapEff /proc/self/status", "CapEff:\t00000000a80425fb\n", nil},
		{"no capabilities for users", "busybox grep CapEff /proc/self/status; busybox id", "CapEff:\t0000000000000000\nuid=1000(u) gid=1001(g) groups=44(more),1001(g)\n", func(p *Process) { p.User = "u" }},
		{"filter", "busybox grep Seccomp: /proc/self/status", "Seccomp:\t2\n", nil},
		{"no mounting", "busybox mount -t tmpfs none /d 2>/dev/null; echo $?", "1\n", nil},
		{"no namespaces", "busybox unshare -m true 2>/dev/null; echo $?", "1\n", nil},
		{"what only the filter refuses", "busybox unshare -U true 2>/dev/null; echo $?", "1\n", nil},
		{"no device but the usual", "busybox mknod /k c 1 1 && busybox head -c1 /k 2>&1 || true", "head: /k: Permission denied\n", nil},
		{"kernel files are read-only", "echo 1 2>/dev/null > /proc/sys/vm/drop_caches || echo no", "no\n", nil},
		{"host name", "busybox hostname", "buildkitsandbox\n", nil},
		{"another host name", "busybox hostname; busybox tail -1 /etc/hosts", "h\n10.0.0.1\tx\n", func(p *Process) { p.Hostname, p.ExtraHosts = "h", []HostIP{{"x", "10.0.0.1"}} }},
		{"name resolution", "busybox cat /etc/resolv.conf; echo x 2>/dev/null >> /etc/hosts || echo no", "nameserver 192.0.2.1\nno\n", nil},
		{"no network", "busybox ip -o link | busybox wc -l; busybox ping -c1 127.0.0.1 >/dev/null && echo lo", "1\nlo\n", func(p *Process) { p.NoNetwork = true }},
		{"limits", "ulimit -n; ulimit -Hn", "100\n200\n", func(p *Process) { p.Limits = []Limit{{"nofile", 100, 200}} }},
		{"umask", "umask", "0022\n", nil},
		{"nothing inherited", "exec busybox ls /proc/self/fd", "0\n1\n2\n3\n", nil}, // 3 is the directory read
		{"home", "echo $HOME", "/home/u\n", func(p *Process) { p.User = "u" }},
		{"working directory", "busybox pwd; busybox stat -c %u:%g:%a .", "/home/w\n1000:1001:755\n", func(p *Process) { p.User, p.Cwd = "u", "/home/w" }},
		{"input", "busybox cat", "in", func(p *Process) { p.Stdin = strings.NewReader("in") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, _, _, err := r.sh(r.base, tt.script, tt.with); err != nil || got != tt.want {
				t.Errorf("%q, want %q (%v)", got, tt.want, err)
			}
		})
	}
}

func TestNamespaceMounts(t *testing.T) { inBoth(t, testNamespaceMounts) }

func testNamespaceMounts(t *testing.T, r *nsRig) {
	fsys, err := r.base.Tree(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	agent, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	go func() {
		for {
			c, err := agent.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "agent\n")
			_ = c.Close()
		}
	}()
	dial := func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", agent.Addr().String())
	}
	tests := []struct {
		name, script, want string
		changes            []string
		mount              Mount
	}{
		{"bind", "busybox cat /m/a; echo x 2>/dev/null > /m/a || echo no", "ano\n", nil, Mount{Dest: "/m", Tree: fsys, Selector: "d", ReadOnly: true}},
		{"bind of a file", "busybox cat /x/y/m", "f", nil, Mount{Dest: "/x/y/m", Tree: fsys, Selector: "f", ReadOnly: true}},
		{"bind that is written to", "echo -n x > /m/a; busybox cat /m/a", "x", nil, Mount{Dest: "/m", Tree: fsys, Selector: "d"}},
		{"and is whole again", "busybox cat /m/a", "a", nil, Mount{Dest: "/m", Tree: fsys, Selector: "d"}},
		{"over what is there", "busybox ls /d | busybox wc -l", "0\n", nil, Mount{Dest: "/d", Type: Tmpfs}},
		{"tmpfs of a size", "busybox dd if=/dev/zero of=/m/x bs=1k count=9 2>/dev/null || echo full", "full\n", nil, Mount{Dest: "/m", Type: Tmpfs, Size: 4096}},
		{"relative", "busybox touch d/m/x", "", nil, Mount{Dest: "d/m", Type: Tmpfs}},
		{"cache", "echo 1 > /m/one", "", nil, Mount{Dest: "/m", Type: Cache, CacheID: "c"}},
		{"cache again", "busybox cat /m/one; echo x 2>/dev/null > /m/x || echo no", "1\nno\n", nil, Mount{Dest: "/m", Type: Cache, CacheID: "c", ReadOnly: true}},
		{"locked cache", "busybox cat /m/one", "1\n", nil, Mount{Dest: "/m", Type: Cache, CacheID: "c", Locked: true}},
		{"secret", "busybox cat /run/s; busybox stat -c %u:%g:%a /run/s", "sesame1000:1001:440\n", nil, Mount{Dest: "/run/s", Type: Secret, Data: []byte("sesame"), Mode: 0o440, UID: 1000, GID: 1001}},
		{"ssh", "busybox stat -c %F:%a /run/a.sock", "socket:600\n", nil, Mount{Dest: "/run/a.sock", Type: SSH, Dial: dial, Mode: 0o600}},
		{"parents that are used stay", "echo x > /x/y/z", "", []string{"A x", "A x/y", "A x/y/z"}, Mount{Dest: "/x/y/m", Type: Tmpfs}},
		{"through a link of the image", "busybox touch /f2/x; busybox ls /d", "a\nb\n", nil, Mount{Dest: "/f2", Type: Tmpfs}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, changes, _, err := r.sh(r.base, tt.script, func(p *Process) { p.Mounts = []Mount{tt.mount} })
			changes = slices.DeleteFunc(changes, func(c string) bool { return c == "A dev" || c == "A proc" || c == "A sys" })
			if err != nil || got != tt.want || !slices.Equal(changes, tt.changes) {
				t.Errorf("%q, want %q; changes %q, want %q (%v)", got, tt.want, changes, tt.changes, err)
			}
		})
	}
}

func TestNamespaceFails(t *testing.T) { inBoth(t, testNamespaceFails) }

func testNamespaceFails(t *testing.T, r *nsRig) {
	run := func(args ...string) error {
		_, _, _, err := r.sh(r.base, "", func(p *Process) { p.Args = args })
		return err
	}
	if e, ok := errors.AsType[*ExitError](run("/bin/sh", "-c", "exit 7")); !ok || e.Code != 7 {
		t.Errorf("exit 7: %v", e)
	}
	if e, ok := errors.AsType[*ExitError](run("/bin/busybox", "sh", "-c", "busybox sleep 9 & exec busybox env kill -9 $!; wait")); ok {
		t.Errorf("killing a child: %v", e)
	}
	if e, ok := errors.AsType[*StartError](run("/bin/nothing")); !ok || e.Code != 127 {
		t.Errorf("no program: %v", e)
	}
	if e, ok := errors.AsType[*StartError](run("/etc/passwd")); !ok || e.Code != 126 {
		t.Errorf("no program but a file: %v", e)
	}
	_, _, _, err := r.sh(r.base, "true", func(p *Process) { p.User = "nobody" })
	if _, ok := errors.AsType[*UserError](err); !ok {
		t.Errorf("unknown user: %v", err)
	}
	// The root is as good as before.
	if out, changes, _, err := r.sh(r.base, "test -e gone && echo ok", nil); err != nil || out != "ok\n" {
		t.Errorf("after failures: %q %q %v", out, changes, err)
	}
}

// What a command leaves in the background ends with it, and a cancelled one at once.
func TestNamespaceEnds(t *testing.T) { inBoth(t, testNamespaceEnds) }

func testNamespaceEnds(t *testing.T, r *nsRig) {
	// This test runs in both kinds of roots at the same time, and maybe in another process.
	mark := strconv.Itoa(1_000_000 + rand.IntN(1_000_000_000))
	if _, _, _, err := r.sh(r.base, "busybox setsid busybox sleep "+mark+" >/dev/null 2>&1 & busybox sleep 0.2", nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	p := &Process{Args: []string{"/bin/busybox", "sleep", mark}, Cwd: "/"}
	if _, err := r.box.Run(ctx, r.base, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled: %v", err)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range procs {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte("\x00"+mark+"\x00")) {
			t.Errorf("%s: %q is left", f, b)
		}
	}
}

func TestSweepKeepsTheLiving(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	alive, err := claimDir(base)
	if err != nil {
		t.Fatal(err)
	}
	dead, err := claimDir(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.lock.Close(); err != nil {
		t.Fatal(err)
	}
	sweep(base)
	if _, err := os.Stat(alive.dir); err != nil {
		t.Error(err)
	}
	if err := unix.Access(dead.dir, unix.F_OK); err != unix.ENOENT {
		t.Errorf("%s: %v", dead.dir, err)
	}
	if err := alive.release(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(base); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

// What is much on top of next to nothing goes into one directory with it: another
// one, since the stacks below stay as they are.
func TestNamespaceMuch(t *testing.T) {
	t.Parallel()
	r := newNSRig(t, t.TempDir())
	noise := make([]byte, 3<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	much := r.layer(r.base, map[string]string{"much": string(noise)})
	deep := r.layer(much, map[string]string{"d/": "", "d/deep": "x"})
	_, _, left, err := r.sh(r.base, "echo 1 > /left", nil)
	if err != nil {
		t.Fatal(err)
	}
	onLeft := r.layer(left, map[string]string{"more": "x"})
	for _, test := range []struct {
		ref    *layer.Ref
		dirs   int
		script string
	}{
		{r.base, 1, "test -e d/a && test ! -e much && echo ok"},
		{r.layer(r.base, map[string]string{"little": "x"}), 2, "test -e little && echo ok"},
		{much, 1, "test -e d/a && test -s much && echo ok"},
		{deep, 2, "test -s much && test -e d/deep && test -e d/a && echo ok"},
		{onLeft, 3, "test -e left && test -e more && echo ok"},
		{r.layer(onLeft, map[string]string{"much": string(noise)}), 4, "test -s much && test -e left && test -e more && echo ok"},
	} {
		if out, _, _, err := r.sh(test.ref, test.script, nil); err != nil || out != "ok\n" {
			t.Errorf("%d layers: %q %v", len(test.ref.Layers), out, err)
		}
		s, _, err := r.box.roots.(*roots).get(t.Context(), test.ref.Layers)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.dirs) != test.dirs {
			t.Errorf("%d layers are in directories %v, want %d", len(test.ref.Layers), s.dirs, test.dirs)
		}
		r.box.roots.(*roots).free(s)
	}
}
