// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"archive/tar"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hako/test/rig"
)

// Everything that a build opens: two stages, whose second base is pulled while
// the first is installed, every kind of mount, a COPY onto an installed root, a
// user, a working directory that does not exist, a download.
const openingDockerfile = `FROM base.test/busybox AS build
WORKDIR /src
COPY a.txt .
RUN --mount=type=secret,id=s,target=/deep/new/secret --mount=type=secret,id=s,env=S --mount=type=ssh \
    --mount=type=cache,target=/cache --mount=target=/in,rw --mount=type=tmpfs,target=/scratch \
    test "$S" = "$(cat /deep/new/secret)" && cp /in/dir/b.txt /cache && echo x > /scratch/x && cp /in/a.txt copied
COPY dir dir
RUN --mount=type=cache,target=/cache,readonly cat /cache/b.txt dir/b.txt > both
FROM base.test/usrmerge
COPY --from=build /src /app
ADD http://base.test/files/config /added
RUN --mount=from=build,target=/b,source=/src ls /b > /list; : > /dev/shm/left
WORKDIR /not/yet
USER 1000
RUN <<EOF
id > /tmp/id
EOF
COPY a.txt /last
`

// While a root is installed every path is the image's. So nothing may be looked
// up from / by hako itself, but in its own directory; what it needs it has open,
// and what it does to the root it does from a handle of that.
func TestOpensNothingByPath(t *testing.T) {
	rig.Require(t, rig.NeedStrace)
	w := start(t, false)
	files := map[string]string{"Dockerfile": openingDockerfile, "a.txt": "a\n", "dir/b.txt": "b\n"}
	t.Run("context aside", func(t *testing.T) { w.opensNothing(t, w.files(t, files), true) })
	// The context has to make room: its place changes in the middle of the build.
	files["Dockerfile"] = workspaceDockerfile
	t.Run("context in the way", func(t *testing.T) { w.opensNothing(t, w.files(t, files), false) })
	// Its files are read to the end of the build, from where the archive was opened.
	t.Run("context in an archive", func(t *testing.T) {
		files["Dockerfile"] = openingDockerfile
		dir := t.TempDir()
		if err := writeTar(filepath.Join(dir, "context.tar"), w.files(t, files)); err != nil {
			t.Fatal(err)
		}
		w.opensNothing(t, dir, true, "--context=tar:///workspace/context.tar")
	})
}

func writeTar(path, dir string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	return errors.Join(w.AddFS(os.DirFS(dir)), w.Close())
}

func (w *world) opensNothing(t *testing.T, bctx string, readOnly bool, args ...string) {
	front := w.password(t, "user", "secret")
	gateway := rig.StartGateway(t, "bkt")
	s3 := httptest.NewServer(gateway)
	t.Cleanup(s3.Close)
	place := "type=s3,bucket=bkt,use_path_style=true,endpoint_url=" + s3.URL
	home := w.files(t, map[string]string{"aws": "[default]\naws_access_key_id = " + gateway.Key + "\naws_secret_access_key = " + gateway.Secret + "\n", "secret": "not to be seen", ".docker/config.json": `{"auths":{"` + front + `":{"username":"user","password":"secret"}}}`})
	s, out := w.spec(t, w.scratch(t), bctx, readOnly, "--destination="+front+"/result:2", "--insecure-registry="+front,
		"--secret=id=s,src=/outside/secret", "--ssh=default=/agent.sock", "--tar-path=/result/image.tar", "--cache-dir=/bases", "--cache-from="+place, "--cache-to="+place, "--digest-file=/result/digest", "--metadata-file=/result/meta.json")
	s.Mounts = append(s.Mounts, rig.Mount{Source: home, Target: "/outside", ReadOnly: true}, rig.Mount{Source: filepath.Join(w.Dir, "agent.sock"), Target: "/agent.sock"}, rig.Mount{Source: t.TempDir(), Target: "/bases"})
	s.Env = append(s.Env, "HOME=/outside", "AWS_SHARED_CREDENTIALS_FILE=/outside/aws")
	s.Command = append(s.Command, args...)
	id, before := w.create(t, s)
	file := filepath.Join(t.TempDir(), "trace")
	wait, err := w.pod.Trace(t.Context(), id, file)
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.pod.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit != 0 {
		t.Fatalf("exit status %d\n%s", res.Exit, res.Stderr)
	}
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	w.asFound(t, id, before)
	for _, name := range []string{"image.tar", "digest", "meta.json"} {
		if read(t, out, name) == "" {
			t.Errorf("%s is empty", name)
		}
	}
	if kept, err := filepath.Glob(filepath.Join(gateway.Dir, "bkt", "manifests", "hako-*")); err != nil || len(kept) != 1 {
		t.Errorf("the bucket has %d documents of the cache, want 1: %v\n%s", len(kept), err, res.Stderr)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	looked, found := byPath(strings.Split(string(data), "\n"))
	if looked < 500 {
		t.Errorf("hako asked for %d files while the container was parked, want hundreds: is this its trace?", looked)
	}
	for _, l := range head(found, 40) {
		t.Error("looked up from /: " + l)
	}
}

// password returns the address of the rig's registry behind a password, by a
// name that has to be resolved.
func (w *world) password(t *testing.T, user, password string) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: w.Registry})
	asked := false
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			rw.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		asked = true
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(func() {
		s.Close()
		if !asked {
			t.Error("the registry was never asked with the password")
		}
	})
	_, port, _ := strings.Cut(s.Listener.Addr().String(), ":")
	return "localhost:" + port
}

var (
	call   = regexp.MustCompile(`^\d+<([^>]*)> (\w+)\((.*)$`)
	quoted = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"`)
	here   = regexp.MustCompile(`AT_FDCWD<([^>]*)>`)
	// What is moved out of / first and comes back last.
	parks   = regexp.MustCompile(`^\d+<\w+> renameat2?\(\d+<[^>]*>, "[^"]*", \d+</kaniko/work/parked[</>]`)
	returns = regexp.MustCompile(`^\d+<\w+> renameat2?\(\d+</kaniko/work/parked[</>]`)
)

// byPath counts hako's own calls while the container's files are parked, and
// returns those with an absolute path that may be the image's. Calls of RUN's
// processes do not count; until they start their program they have hako's name,
// and all they do by path is to go to their directory and start it.
func byPath(trace []string) (looked int, found []string) {
	first := slices.IndexFunc(trace, parks.MatchString)
	last := len(trace) - 1
	for last > first && !returns.MatchString(trace[last]) {
		last--
	}
	if first < 0 {
		return 0, nil
	}
	for _, l := range trace[first : last+1] {
		m := call.FindStringSubmatch(l)
		// The supervisor, and the engine that it starts from /proc/self/exe.
		if m == nil || m[1] != "executor" && m[1] != "exe" || m[2] == "chdir" || m[2] == "execve" || m[2] == "getcwd" {
			continue
		}
		looked++
		if slices.ContainsFunc(paths(m[2], m[3]), func(p string) bool { return !isOurs(p) }) {
			found = append(found, l)
		}
	}
	return looked, found
}

// paths returns the paths among a call's arguments that are looked up from / or
// from the working directory.
func paths(name, args string) []string {
	var all []string
	for _, m := range quoted.FindAllStringSubmatch(args, -1) {
		all = append(all, m[1])
	}
	switch {
	case strings.HasPrefix(name, "symlink"):
		all = all[min(1, len(all)):] // the first is content
	case strings.HasPrefix(name, "rename"), strings.HasPrefix(name, "link"):
	default:
		all = all[:min(1, len(all))] // what follows is an answer, or a value
	}
	cwd := "/"
	if m := here.FindStringSubmatch(args); m != nil {
		cwd = m[1]
	}
	var out []string
	for _, p := range all {
		if strings.HasPrefix(p, "/") {
			out = append(out, path.Clean(p))
		} else if strings.Contains(args, "AT_FDCWD") {
			out = append(out, path.Join(cwd, p))
		}
	}
	return out
}

// isOurs tells whether no image can have anything at a path: hako's own
// directory, the kernel's account of processes (of its own, by whose open
// descriptors a root is reached as well) and what lies on shared memory under a
// name that hako has just made up.
func isOurs(p string) bool {
	return p == "/kaniko" || strings.HasPrefix(p, "/kaniko/") || p == "/proc" || strings.HasPrefix(p, "/proc/") || strings.HasPrefix(p, "/dev/shm/.hako-")
}

// The check itself must be able to fail.
func TestByPath(t *testing.T) {
	t.Parallel()
	park := `7<exe> renameat(5</>, "etc", 6</kaniko/work/parked>, "etc") = 0`
	back := `7<exe> renameat2(5</kaniko/work/parked>, "etc", 6</>, "etc", RENAME_NOREPLACE) = 0`
	for _, tt := range []struct {
		line string
		bad  bool
	}{
		{`8<exe> openat(AT_FDCWD</kaniko/work>, "/etc/resolv.conf", O_RDONLY|O_CLOEXEC) = 3</etc/resolv.conf>`, true},
		{`8<executor> openat(AT_FDCWD</>, "/etc/hosts", O_RDONLY <unfinished ...>`, true},
		{`8<exe> newfstatat(AT_FDCWD</kaniko/work>, "/etc", {st_mode=S_IFDIR|0755, ...}, 0) = 0`, true},
		{`8<exe> openat(AT_FDCWD</workspace>, "out.tar", O_WRONLY|O_CREAT, 0644) = 4</workspace/out.tar>`, true},
		{`8<exe> openat(AT_FDCWD</kaniko/work>, "/kaniko/../etc/passwd", O_RDONLY) = 4</etc/passwd>`, true},
		{`8<exe> renameat(AT_FDCWD</kaniko/work>, "/kaniko/work/aside/1", AT_FDCWD</kaniko/work>, "/etc/hosts") = 0`, true},
		{`8<exe> renameat(AT_FDCWD</kaniko/work>, "/kaniko/work/aside/1", 9</etc>, "hosts") = 0`, false},
		{`8<exe> openat(AT_FDCWD</kaniko/work>, "/dev/null", O_RDONLY|O_CLOEXEC) = 21</dev/null>`, true},
		{`8<exe> openat(AT_FDCWD</kaniko/work>, "/proc/self/fd/9/hosts", O_RDONLY|O_CLOEXEC) = 21</etc/hosts>`, false},
		{`8<exe> symlinkat("/dev/shm/.hako-1/1", 9</run>, "secret") = 0`, false},
		{`8<exe> openat2(9</>, "etc/passwd", {flags=O_RDONLY}, 24) = 21</etc/passwd>`, false},
		{`8<exe> readlinkat(AT_FDCWD</kaniko/work>, "/proc/self/exe", "/bin/x", 128) = 6`, false},
		{`8<exe> chdir("/src") = 0`, false},
		{`8<sh> openat(AT_FDCWD</>, "/etc/passwd", O_RDONLY) = 3</etc/passwd>`, false},
	} {
		looked, found := byPath([]string{tt.line, park, tt.line, back, tt.line})
		if len(found) > 1 || (len(found) == 1) != tt.bad || looked < 2 {
			t.Errorf("%s\nfound %q of %d, want it found: %v", tt.line, found, looked, tt.bad)
		}
	}
}
