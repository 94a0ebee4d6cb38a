// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cache

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// fourStages has 20 steps that make layers, some of a megabyte.
func fourStages() map[string]string {
	files := map[string]string{"big": strings.Repeat("0123456789abcdef", 1<<16)}
	var b strings.Builder
	for stage := range 3 {
		fmt.Fprintf(&b, "FROM REG/base:one AS s%d\n", stage)
		for i := range 3 {
			name := fmt.Sprintf("f%d%d", stage, i)
			files[name] = name
			fmt.Fprintf(&b, "COPY %s /%s\nRUN head -c 1000000 /dev/urandom > /random%d\n", name, name, i)
		}
	}
	b.WriteString("FROM REG/base:one\nCOPY big /\nCOPY --from=s0 /random0 /a\nCOPY --from=s1 /random1 /b\nCOPY --from=s2 /random2 /c\n")
	files["Dockerfile"] = b.String()
	return files
}

// layerGets returns how many blobs were fetched that are no documents: configs and
// what is in a cache beside layers are small.
func layerGets(requests []string) int {
	n := 0
	for _, r := range requests {
		if strings.HasPrefix(r, "GET ") && strings.Contains(r, "/blobs/sha256:") {
			n++
		}
	}
	return n
}

// TestSecondBuildFetchesNothing: from empty local state a build that was done
// before gets no blob but the base image's config.
func TestSecondBuildFetchesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.base("one", "1")
	w.write(fourStages())
	first := w.must(w.build())
	w.reg.take()
	second := w.must(w.build())
	requests := w.reg.take()
	if first.digest != second.digest {
		t.Errorf("first %s, second %s", first.digest, second.digest)
	}
	if len(second.steps) != 22 || len(second.misses()) != 0 {
		t.Errorf("%d steps, of which ran %v\n%s", len(second.steps), second.misses(), second.log)
	}
	if n := layerGets(requests); n > 1 {
		t.Errorf("%d blobs were fetched, want the base's config at most:\n%s", n, strings.Join(requests, "\n"))
	}
	if i := slices.IndexFunc(requests, func(r string) bool { return strings.HasPrefix(r, "PUT ") && strings.Contains(r, "/cache/") }); i >= 0 {
		t.Errorf("a build that found everything wrote to the cache: %s", requests[i])
	}
}

// TestPlaces: the same cache in each kind of place.
func TestPlaces(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tests := map[string][]string{
		"repository":     {"--cache", "--cache-repo=REG/other/cache"},
		"layout":         {"--cache", "--cache-repo=oci:" + filepath.Join(dir, "layout")},
		"directory":      {"--cache", "--cache-repo=" + filepath.Join(dir, "dir")},
		"buildx local":   {"--cache-from=type=local,src=" + filepath.Join(dir, "l"), "--cache-to=type=local,dest=" + filepath.Join(dir, "l") + ",mode=max"},
		"buildx":         {"--cache-from=type=registry,ref=REG/cc:tag", "--cache-to=type=registry,ref=REG/cc:tag,mode=max"},
		"buildx, short":  {"--cache-from=REG/dd", "--cache-to=REG/dd"},
		"beside":         {"--cache-from=REG/app:1", "--cache-to=type=inline"},
		"signed":         {"--cache", "--cache-key-file=" + filepath.Join(dir, "key")},
		"two places":     {"--cache", "--cache-to=type=local,dest=" + filepath.Join(dir, "second")},
		"only in second": {"--cache-from=type=local,src=" + filepath.Join(dir, "second")},
	}
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte("0123456789abcdef0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.base("one", "1")
	w.write(map[string]string{"Dockerfile": "FROM REG/base:one\nCOPY f /\nRUN cat /f > /g; rm /extra\n", "f": "f\n"})
	want := w.uncached()
	for _, name := range []string{"repository", "layout", "directory", "buildx local", "buildx", "buildx, short", "beside", "signed", "two places", "only in second"} {
		w.args = []string{"-d", w.addr + "/app:1"}
		for _, a := range tests[name] {
			w.args = append(w.args, strings.ReplaceAll(a, "REG", w.addr))
		}
		if name != "only in second" {
			if b := w.must(w.build()); b.digest != want {
				t.Errorf("%s: first build %s, want %s\n%s", name, b.digest, want, b.log)
			}
		}
		b := w.must(w.build())
		if b.digest != want || len(b.misses()) > 0 || len(b.steps) != 2 {
			t.Errorf("%s: second build %s, want %s; ran %v of %v\n%s", name, b.digest, want, b.misses(), b.steps, b.log)
		}
	}
	// A layout has one document, however often it was written.
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), ":") {
			t.Errorf("%s: a directory for each key", e.Name())
		}
	}
}

// TestFlags: what the flags leave out is neither looked for nor kept.
func TestFlags(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.base("one", "1")
	w.write(map[string]string{"Dockerfile": "FROM REG/base:one\nCOPY f /\nRUN cat /f > /g\nCOPY f /h\n", "f": "f\n"})
	w.must(w.build())
	for _, test := range []struct {
		args []string
		want []string
	}{
		{nil, nil},
		{[]string{"--cache-ttl=1ns"}, []string{"2", "3", "4"}},
		{[]string{"--cache-run-layers=false"}, []string{"3"}},
		{[]string{"--cache-copy-layers=false"}, nil},
		{[]string{"--no-cache"}, []string{"2", "3", "4"}},
		{[]string{"--compression=zstd"}, []string{"2", "3", "4"}},
		{[]string{"--source-date-epoch=1700000001"}, []string{"2", "3", "4"}},
		{[]string{"--cache-repo=" + w.addr + "/else", "--no-push-cache"}, []string{"2", "3", "4"}},
		{[]string{"--cache-repo=" + w.addr + "/else", "--no-push-cache"}, []string{"2", "3", "4"}},
		{[]string{"--label=a=b"}, nil},
		{[]string{"--build-arg=UNUSED=1"}, nil},
	} {
		b := w.must(w.build(test.args...))
		got := b.misses()
		if slices.Contains(test.args, "--cache-run-layers=false") || slices.Contains(test.args, "--cache-copy-layers=false") {
			// What is left out is not reported; the last step may be found.
			continue
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%v: lines %v ran, want %v\n%s", test.args, got, test.want, b.log)
		}
	}
}

// TestDefectsOfKaniko has what ../../shared/reference/kaniko-census.md says of
// kaniko's cache: none of it is so here.
func TestDefectsOfKaniko(t *testing.T) {
	t.Parallel()
	remote := "one"
	var mu sync.Mutex
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		rw.Header().Set("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
		_, _ = rw.Write([]byte(remote))
	}))
	t.Cleanup(srv.Close)
	type change struct {
		files map[string]string
		args  []string
		do    func()
	}
	tests := []struct {
		name   string
		files  map[string]string
		change change
		want   []string // lines that run after the change
	}{
		{
			"a file is renamed", map[string]string{"Dockerfile": "FROM scratch\nCOPY d /d\n", "d/a": "x", "d/b": "y"},
			change{files: map[string]string{"d/a": "", "d/c": "x"}},
			[]string{"2"},
		},
		{
			"a file gets another name in the same place", map[string]string{"Dockerfile": "FROM scratch\nCOPY d /d\n", "d/a": "x", "d/b": "y"},
			change{files: map[string]string{"d/a": "", "d/aa": "x"}},
			[]string{"2"},
		},
		{
			"two files change places", map[string]string{"Dockerfile": "FROM scratch\nCOPY d /d\n", "d/a": "x", "d/b": "y"},
			change{files: map[string]string{"d/a": "y", "d/b": "x"}},
			[]string{"2"},
		},
		{
			"bytes move to the neighbour", map[string]string{"Dockerfile": "FROM scratch\nCOPY a b /d/\n", "a": "12", "b": "3"},
			change{files: map[string]string{"a": "1", "b": "23"}},
			[]string{"2"},
		},
		{
			"a directory becomes part of a name", map[string]string{"Dockerfile": "FROM scratch\nCOPY d /d\n", "d/a-b": "x"},
			change{files: map[string]string{"d/a-b": "", "d/a/b": "x"}},
			[]string{"2"},
		},
		{
			"an empty directory comes", map[string]string{"Dockerfile": "FROM scratch\nCOPY d /d\n", "d/a": "x", "d/e/x": "x"},
			change{do: func() {}, files: map[string]string{"d/e/x": ""}},
			[]string{"2"},
		},
		{
			"the body of a here-document", map[string]string{"Dockerfile": "FROM scratch\nCOPY <<A /a\none\nA\n"},
			change{files: map[string]string{"Dockerfile": "FROM scratch\nCOPY <<A /a\ntwo\nA\n"}},
			[]string{"2"},
		},
		{
			"what a path's argument stands for", map[string]string{"Dockerfile": "FROM scratch\nARG V=a\nCOPY $V /x\n", "a": "1", "b": "2"},
			change{args: []string{"--build-arg=V=b"}},
			[]string{"3"},
		},
		{
			"an argument that is not used", map[string]string{"Dockerfile": "FROM scratch\nARG V=a\nCOPY a /x\n", "a": "1"},
			change{args: []string{"--build-arg=V=b"}},
			nil,
		},
		{
			"times, and the order in which files were made", map[string]string{"Dockerfile": "FROM scratch\nCOPY d /d\n", "d/a": "x", "d/b": "y"},
			change{files: map[string]string{"d/b": "y", "d/a": "x"}},
			nil,
		},
		{
			"comments and blank lines", map[string]string{"Dockerfile": "FROM scratch\nCOPY a /a\n", "a": "1"},
			change{files: map[string]string{"Dockerfile": "# comment\n\nFROM scratch\n\nCOPY a /a\n"}},
			nil,
		},
		{
			"a file that is ignored", map[string]string{"Dockerfile": "FROM scratch\nCOPY . /a\n", ".dockerignore": "x\n.dockerignore\nDockerfile\n", "a": "1", "x": "1"},
			change{files: map[string]string{"x": "2"}},
			nil,
		},
		{
			"labels and other metadata before", map[string]string{"Dockerfile": "FROM scratch\nLABEL a=b\nCOPY a /a\n", "a": "1"},
			change{files: map[string]string{"Dockerfile": "FROM scratch\nLABEL a=c\nMAINTAINER x\nEXPOSE 80\nCOPY a /a\n"}},
			nil,
		},
		{
			"what a URL gives", map[string]string{"Dockerfile": "FROM scratch\nADD URL/f /f\n"},
			change{do: func() { mu.Lock(); remote = "two"; mu.Unlock() }},
			[]string{"2"},
		},
		{
			"after the first miss others are found", map[string]string{
				"Dockerfile": "FROM REG/base:one AS a\nCOPY x /x\nRUN echo same > /out\nFROM REG/base:one\nCOPY --from=a /out /out\nRUN cat /out > /two\n", "x": "1",
			},
			change{files: map[string]string{"x": "2"}},
			[]string{"2", "3"},
		},
		{
			"a command that changes nothing", map[string]string{"Dockerfile": "FROM REG/base:one\nRUN true\nRUN : > /a\n"},
			change{},
			nil,
		},
		{
			"deleted files and directories", map[string]string{"Dockerfile": "FROM REG/base:one\nRUN rm -r /extra /bin/awk && mkdir /d && : > /d/x\nRUN rm -r /d && mkdir /d && : > /d/y\nRUN ls -R / | grep -v proc > /list; ls /d >> /list\n"},
			change{files: map[string]string{"Dockerfile": "FROM REG/base:one\nRUN rm -r /extra /bin/awk && mkdir /d && : > /d/x\nRUN rm -r /d && mkdir /d && : > /d/y\nRUN ls /d > /list; ls /bin | sort >> /list; ls -d /.wh* /bin/.wh* >> /list 2>/dev/null; true\n"}},
			[]string{"4"},
		},
		{
			"links, modes and capabilities", map[string]string{"Dockerfile": "FROM REG/base:one\nRUN echo x > /a && ln /a /b && ln -s a /c && chmod 4755 /a && chown 12:34 /b && mkfifo /f\nRUN stat -c '%n %f %u %h' /a /b /c /f > /list\n"},
			change{files: map[string]string{"Dockerfile": "FROM REG/base:one\nRUN echo x > /a && ln /a /b && ln -s a /c && chmod 4755 /a && chown 12:34 /b && mkfifo /f\nRUN stat -c '%n %f %u %g %h' /a /b /c /f > /list\n"}},
			[]string{"3"},
		},
		{
			"ADD and WORKDIR", map[string]string{"Dockerfile": "FROM scratch\nWORKDIR /w\nADD a /x\n", "a": "1"},
			change{},
			nil,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if strings.Contains(test.files["Dockerfile"], "REG/") {
				w.base("one", "1")
			}
			url := func(files map[string]string) map[string]string {
				out := map[string]string{}
				for name, content := range files {
					out[name] = strings.ReplaceAll(content, "URL", srv.URL)
				}
				return out
			}
			w.write(url(test.files))
			w.must(w.build())
			w.write(url(test.change.files))
			if test.change.do != nil {
				test.change.do()
			}
			b := w.must(w.build(test.change.args...))
			if got := b.misses(); !slices.Equal(got, test.want) {
				t.Errorf("lines %v ran, want %v\n%s", got, test.want, b.log)
			}
			if want := w.uncached(test.change.args...); b.digest != want {
				t.Errorf("the image with the cache is %s, without %s", b.digest, want)
			}
		})
	}
}

// TestOtherFilesAreLeftAlone: kaniko's cache writes over digest files and into the
// layout of the image.
func TestOtherFilesAreLeftAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(map[string]string{"Dockerfile": "FROM scratch\nCOPY a /a\nCOPY a /b\n", "a": "1"})
	out := t.TempDir()
	for range 2 {
		b := w.must(w.build("--digest-file="+filepath.Join(out, "digest"), "--oci-layout-path="+filepath.Join(out, "layout")))
		got, err := os.ReadFile(filepath.Join(out, "digest"))
		if err != nil || string(got) != b.digest {
			t.Errorf("digest file has %q, want %q (%v)", got, b.digest, err)
		}
		blobs, err := os.ReadDir(filepath.Join(out, "layout/blobs/sha256"))
		if err != nil || len(blobs) != 4 {
			t.Errorf("%d blobs in the layout, want 4 (%v)", len(blobs), err)
		}
	}
}

// TestManyBuildsFewTags: the cache's repository does not grow with builds.
func TestManyBuildsFewTags(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 12 {
		w.write(map[string]string{"Dockerfile": fmt.Sprintf("FROM scratch AS a\nCOPY a /a%d\nFROM scratch AS b\nCOPY a /b\n", i), "a": fmt.Sprint(i)})
		w.must(w.build("--target=" + []string{"a", "b"}[i%2]))
	}
	if tags := w.tags("app/cache"); len(tags) > 3 {
		t.Errorf("%d tags: %v", len(tags), tags)
	}
}

func (w *world) tags(repo string) []string {
	w.t.Helper()
	resp, err := http.Get("http://" + w.addr + "/v2/" + repo + "/tags/list")
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var list struct{ Tags []string }
	decode(w.t, resp.Body, &list)
	return list.Tags
}

// TestTwoWriters: builds that write one cache at the same time are both right, and
// what they leave can be used.
func TestTwoWriters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.base("one", "1")
	files := func(n int) map[string]string {
		return map[string]string{"Dockerfile": fmt.Sprintf("FROM REG/base:one\nCOPY f /f\nRUN cat /f > /%d\n", n), "f": fmt.Sprint(n)}
	}
	var wg sync.WaitGroup
	for n := range 4 {
		one := &world{t: t, reg: w.reg, addr: w.addr, dir: t.TempDir(), args: w.args}
		one.args = []string{"--cache", "--cache-repo=" + w.addr + "/shared", "-d", fmt.Sprintf("%s/app:%d", w.addr, n)}
		one.write(files(n))
		wg.Go(func() {
			for range 2 {
				b := one.build()
				if b.err != nil {
					t.Errorf("build %d: %v\n%s", n, b.err, b.log)
					return
				}
				if want := one.uncached(); b.digest != want {
					t.Errorf("build %d: %s, without a cache %s", n, b.digest, want)
				}
			}
		})
	}
	wg.Wait()
}

// TestDirectoryWriters: a layout on a volume that several builds write loses
// nothing, as it has a lock.
func TestDirectoryWriters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "cache")
	w.atOnce(6, "--cache", "--cache-repo=oci:"+dir)
}

// TestFailedBuildIsGoneOnWith: what a build has made before it fails, or is killed,
// is there for the next one.
func TestFailedBuildIsGoneOnWith(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.base("one", "1")
	w.write(map[string]string{"Dockerfile": "FROM REG/base:one\nRUN echo 1 > /1\nRUN echo 2 > /2\nRUN false\n"})
	b := w.build()
	if b.err == nil || !strings.Contains(b.log, " kept    the results of 2 steps are in the cache "+w.addr+"/app/cache") {
		t.Errorf("%v\n%s", b.err, b.log)
	}
	w.write(map[string]string{"Dockerfile": "FROM REG/base:one\nRUN echo 1 > /1\nRUN echo 2 > /2\nRUN true\n"})
	if b := w.must(w.build()); !slices.Equal(b.misses(), []string{"4"}) {
		t.Errorf("lines %v ran, want 4\n%s", b.misses(), b.log)
	}
}

// TestKilledBuildIsGoneOnWith: steps are kept while the build goes on.
func TestKilledBuildIsGoneOnWith(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.base("one", "1")
	w.write(map[string]string{"Dockerfile": "FROM REG/base:one\nRUN echo 1 > /1\nRUN sleep 1000\n"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.reg.setFault(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/app/cache/manifests/") {
			time.AfterFunc(time.Second, cancel) // SIGKILL, once the answer is given
		}
		return false
	})
	cmd := w.command(ctx, w.dir, w.args...)
	if err := cmd.Run(); err == nil {
		t.Fatal("the build was not killed")
	}
	w.reg.setFault(nil)
	w.write(map[string]string{"Dockerfile": "FROM REG/base:one\nRUN echo 1 > /1\nRUN true\n"})
	b := w.must(w.run(w.dir, w.args...))
	if got := b.misses(); !slices.Equal(got, []string{"3"}) {
		t.Errorf("lines %v ran, want 3\n%s", got, b.log)
	}
}

// TestBaseElsewhere: a base image counts by its content. Where the earlier build
// had it from may be gone.
func TestBaseElsewhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.base("one", "1")
	from, err := name.ParseReference(w.addr + "/base:one")
	if err != nil {
		t.Fatal(err)
	}
	to, err := name.ParseReference(w.addr + "/moved:one")
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(to, img); err != nil {
		t.Fatal(err)
	}
	w.write(map[string]string{"Dockerfile": "FROM REG/base:one\nRUN echo 1 > /1\nRUN echo 2 > /2\n"})
	w.must(w.build())
	w.write(map[string]string{"Dockerfile": "FROM REG/moved:one\nRUN echo 1 > /1\nRUN echo 3 > /2\n"})
	w.reg.setFault(func(rw http.ResponseWriter, r *http.Request) bool {
		return strings.HasPrefix(r.URL.Path, "/v2/base/") && answer(rw, http.StatusNotFound, "{}")
	})
	b := w.must(w.run(w.dir, "--cache", "--cache-repo="+w.addr+"/app/cache", "-d", w.addr+"/other:1"))
	if !slices.Equal(b.misses(), []string{"3"}) {
		t.Errorf("lines %v ran, want 3\n%s", b.misses(), b.log)
	}
}

// TestOldResultsAreRenewed: what is too old is made anew, and is young then.
func TestOldResultsAreRenewed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.write(map[string]string{"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": "f"})
	w.must(w.build())
	time.Sleep(3 * time.Second)
	if b := w.must(w.build("--cache-ttl=2s")); len(b.misses()) != 1 || !strings.Contains(b.why(), "older than") {
		t.Errorf("lines %v ran: %s", b.misses(), b.why())
	}
	if b := w.must(w.build("--cache-ttl=1m")); len(b.misses()) != 0 {
		t.Errorf("lines %v ran: %s", b.misses(), b.why())
	}
}

// TestPlan: a plan tells what the next build will find, what that will fetch, and
// changes nothing.
func TestPlan(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.base("one", "1")
	dockerfile := "FROM REG/base:one AS a\nRUN head -c 3000000 /dev/urandom > /r\nRUN head -c 2000000 /dev/urandom > /s\nRUN ls / > /list\nFROM REG/base:one\nCOPY --from=a /list /list\nCOPY f /f\n"
	w.write(map[string]string{"Dockerfile": dockerfile, "f": "f"})
	w.must(w.build())
	plan := func() string {
		w.reg.take()
		out, err := w.command(t.Context(), w.dir, append(slices.Clone(w.args), "--dryrun")...).Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range w.reg.take() {
			if !strings.HasPrefix(r, "GET ") && !strings.HasPrefix(r, "HEAD ") {
				t.Errorf("a plan asked for %s", r)
			}
		}
		_, last, _ := strings.Cut(string(out), "\nwould ")
		return last
	}
	const nothing = "take 5 steps from the cache, download 0 B, unpack 0 bases, run 0 commands, make 0 copies"
	if got := plan(); !strings.HasPrefix(got, nothing) {
		t.Errorf("after a build: would %s, want %s", got, nothing)
	}
	// The base and both layers below the command that changed, and no more.
	w.write(map[string]string{"Dockerfile": strings.Replace(dockerfile, "ls / > /list", "ls -a / > /list", 1)})
	got := plan()
	if !strings.HasPrefix(got, "take 2 steps from the cache, download ") || !strings.Contains(got, "unpack 1 base, run 1 command, make 2 copies") {
		t.Errorf("after a change: would %s", got)
	}
	var mb float64
	if _, err := fmt.Sscanf(got, "take 2 steps from the cache, download %f MB", &mb); err != nil || mb < 5 || mb > 8 {
		t.Errorf("%.1f MB to download, want what was random, 5 MB, and the base: %s", mb, got)
	}
}
