// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hako/test/rig"
)

// The image's working directory is the place where the context is mounted, as
// in many a Dockerfile written for kaniko.
const workspaceDockerfile = `FROM base.test/busybox
WORKDIR /workspace
COPY a.txt copied
RUN ls | sort > /listing && cp /listing . && echo made > made && rm copied
RUN cat made listing > /seen
`

func TestWorkspaceWritable(t *testing.T) {
	w := start(t, true)
	bctx := w.files(t, map[string]string{"Dockerfile": workspaceDockerfile, "a.txt": "a\n", "never/seen": "by the image\n"})
	before, err := rig.Snapshot(bctx)
	if err != nil {
		t.Fatal(err)
	}
	w.equalToBuildKit(t, bctx, false)
	after, err := rig.Snapshot(bctx)
	if err != nil {
		t.Fatal(err)
	}
	if d := append(difference(before, after), difference(after, before)...); len(d) > 0 {
		t.Errorf("the context was changed:\n  %s", strings.Join(d, "\n  "))
	}
}

func TestWorkspaceReadOnly(t *testing.T) {
	w := start(t, false)
	bctx := w.files(t, map[string]string{"Dockerfile": "FROM base.test/busybox\nRUN echo ran-\"first\"\n" + strings.TrimPrefix(workspaceDockerfile, "FROM base.test/busybox\n"), "a.txt": "a\n"})
	s, _ := w.spec(t, w.scratch(t), bctx, true)
	id, before := w.create(t, s)
	res, err := w.pod.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit == 0 {
		t.Fatal("built over a read-only mount; want an error")
	}
	if strings.Contains(res.Stderr, "ran-first") {
		t.Error("a RUN was started before the error")
	}
	for _, want := range []string{`/workspace`, `(?i)read-only`, `(?m)^error building image: `} {
		if !regexp.MustCompile(want).MatchString(res.Stderr) {
			t.Errorf("message does not match %q:\n%s", want, res.Stderr)
		}
	}
	w.asFound(t, id, before)
}

// The whole ordinary job: two stages and every kind of mount, the context
// read-only at /workspace, on a base that does not use that path.
func TestOrdinaryBuild(t *testing.T) {
	w := start(t, true)
	w.equalToBuildKit(t, w.files(t, map[string]string{"a.txt": "a\n", "Dockerfile": `FROM base.test/busybox AS build
WORKDIR /src
COPY . .
RUN --mount=target=/ctx --mount=type=cache,id=pod1,target=/cache --mount=type=tmpfs,target=/scratch \
    cat /ctx/a.txt > out && cp out /cache/ && cp out /scratch/
RUN test -e /var/run && echo "$HOME" > home
FROM base.test/odd
COPY --from=build /src/out /app/
RUN --mount=from=build,target=/b cp -a /b/src/home /app/ && rm -r /odd/tree
USER app
RUN id > /tmp/id
`}), true)
}

// A Debian base, and packages that bring users, setuid programs and scripts.
func TestDebianPackages(t *testing.T) {
	rig.Require(t, rig.NeedMmdebstrap)
	w := start(t, true)
	if err := w.PushDebian(t.Context(), rig.DebianMinimal); err != nil {
		t.Fatal(err)
	}
	// What differs from run to run by itself: logs, caches that hold inode
	// times, the package lists.
	w.equalToBuildKit(t, w.files(t, map[string]string{"Dockerfile": `FROM base.test/debian:minbase
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update && apt-get install -y --no-install-recommends sudo netcat-openbsd && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/aux-cache /var/log/*
RUN adduser --system --group --no-create-home builder && rm -f /etc/*- && rm -rf /var/log/* && \
    sed -i 's/^\([^:]*:[^:]*:\)[0-9]*:/\118000:/' /etc/shadow
`}), true)
}

// equalToBuildKit builds a context with BuildKit and, in a container FROM
// scratch, with hako, and compares the images.
func (w *world) equalToBuildKit(t *testing.T, bctx string, readOnly bool) {
	t.Helper()
	since := time.Now()
	want := w.BuildKitDirectory(t.Context(), bctx, filepath.Join(t.TempDir(), "buildkit"))
	if want.Err != nil {
		t.Fatalf("BuildKit: %v\n%s", want.Err, want.Log)
	}
	s, out := w.spec(t, w.scratch(t), bctx, readOnly, "--oci-layout-path=/result/layout")
	id, before := w.create(t, s)
	res, err := w.pod.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit != 0 {
		t.Fatalf("hako: exit status %d\n%s", res.Exit, res.Stderr)
	}
	w.asFound(t, id, before)
	diffs, err := w.Compare(t.Context(), want.Layout, filepath.Join(out, "layout"), since, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range diffs {
		t.Error(d)
	}
}

func (w *world) rewrite(t *testing.T, bctx, dockerfile string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(bctx, "Dockerfile"), []byte(w.Address(dockerfile)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// waitFor waits for a container's end, but not forever.
func waitFor(r *rig.Running, limit time.Duration) (rig.PodResult, error) {
	type ended struct {
		res rig.PodResult
		err error
	}
	done := make(chan ended, 1)
	go func() {
		res, err := r.Wait()
		done <- ended{res, err}
	}()
	select {
	case e := <-done:
		return e.res, e.err
	case <-time.After(limit):
		return rig.PodResult{}, errors.New("the container did not end within " + limit.String())
	}
}
