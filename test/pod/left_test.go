// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"context"
	"testing"
	"time"

	"hako/test/rig"
)

// A build that changes much of its root, in two stages.
const goodDockerfile = `FROM base.test/busybox AS build
WORKDIR /src
COPY a.txt .
RUN cp a.txt /built && rm -r /data/sub && chmod 4755 /data/old && ln /built /also
RUN mkdir -p /var/new/dir && echo x > /etc/motd
FROM base.test/usrmerge
COPY --from=build /built /also /app/
RUN ls -l /app | wc -l > /count && rm /opt/link
`

const failingDockerfile = `FROM base.test/busybox
RUN echo x > /x && rm -rf /data /home
RUN echo about to fail >&2; exit 42
`

const waitingDockerfile = `FROM base.test/busybox
RUN rm -rf /data && echo x > /etc/new && echo ready-for-"signal" && sleep 300
`

// waiting is what the waiting Dockerfile prints once it runs. The instruction's
// own text, which progress shows before, differs in its quotes.
const waiting = "ready-for-signal"

// images are the two kinds of container image: hako alone, and hako on top of
// a large root that cannot be renamed away as a whole.
func images(t *testing.T, w *world) map[string]string {
	t.Helper()
	found := map[string]string{"scratch": w.scratch(t)}
	if testing.Short() {
		return found
	}
	rig.Require(t, rig.NeedMmdebstrap)
	debian, err := w.pod.DebianPod(t.Context(), rig.DebianLarge)
	if err != nil {
		t.Fatal(err)
	}
	found["debian"] = debian
	return found
}

func TestLeftAsFound(t *testing.T) {
	w := start(t, false)
	for name, image := range images(t, w) {
		t.Run(name, func(t *testing.T) {
			t.Run("success", func(t *testing.T) { w.endsByItself(t, image, goodDockerfile, 0) })
			t.Run("failure", func(t *testing.T) { w.endsByItself(t, image, failingDockerfile, 42) })
			t.Run("SIGTERM", func(t *testing.T) { w.endsBySignal(t, image) })
			t.Run("SIGKILL", func(t *testing.T) { w.restoredByNextStart(t, image) })
			t.Run("again", func(t *testing.T) { w.buildsThrice(t, image) })
		})
	}
}

// endsByItself runs a build that ends with the given status.
func (w *world) endsByItself(t *testing.T, image, dockerfile string, status int) {
	bctx := w.files(t, map[string]string{"Dockerfile": dockerfile, "a.txt": "a\n"})
	s, _ := w.spec(t, image, bctx, true)
	id, before := w.create(t, s)
	res, err := w.pod.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit != status {
		t.Errorf("exit status %d, want %d\n%s", res.Exit, status, res.Stderr)
	}
	w.asFound(t, id, before)
}

// endsBySignal asks a build in the middle of a RUN to stop. It has five
// seconds to put things back.
func (w *world) endsBySignal(t *testing.T, image string) {
	bctx := w.files(t, map[string]string{"Dockerfile": waitingDockerfile})
	s, _ := w.spec(t, image, bctx, true)
	id, before := w.create(t, s)
	running := w.runUntil(t, id, waiting)
	if err := w.pod.Kill(t.Context(), id, "TERM"); err != nil {
		t.Fatal(err)
	}
	res, err := waitFor(running, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit == 0 {
		t.Error("a build that was stopped says that it succeeded")
	}
	w.asFound(t, id, before)
}

// restoredByNextStart kills a build in the middle of a RUN; the next start in
// the same container puts things back before anything else. The context is
// changed in between, so that the second build ends by itself.
func (w *world) restoredByNextStart(t *testing.T, image string) {
	bctx := w.files(t, map[string]string{"Dockerfile": waitingDockerfile, "a.txt": "a\n"})
	s, _ := w.spec(t, image, bctx, true)
	id, before := w.create(t, s)
	running := w.runUntil(t, id, waiting)
	if err := w.pod.Kill(t.Context(), id, "KILL"); err != nil {
		t.Fatal(err)
	}
	if _, err := waitFor(running, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	w.rewrite(t, bctx, goodDockerfile)
	res, err := w.pod.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit != 0 {
		t.Errorf("second start: exit status %d\n%s", res.Exit, res.Stderr)
	}
	w.asFound(t, id, before)
}

// buildsThrice builds the same in one container, one after the other: every
// build must push the same file system.
func (w *world) buildsThrice(t *testing.T, image string) {
	bctx := w.files(t, map[string]string{"Dockerfile": goodDockerfile, "a.txt": "a\n"})
	s, out := w.spec(t, image, bctx, true, "--oci-layout-path=/result/layout", "--rewrite-timestamp", "--digest-file=/result/digest")
	id, before := w.create(t, s)
	var digests []string
	for range 3 {
		res, err := w.pod.Start(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if res.Exit != 0 {
			t.Fatalf("exit status %d\n%s", res.Exit, res.Stderr)
		}
		digests = append(digests, read(t, out, "digest"))
	}
	if digests[0] == "" || digests[0] != digests[1] || digests[1] != digests[2] {
		t.Errorf("digests of three builds in one container: %q, want them equal", digests)
	}
	w.asFound(t, id, before)
}

// runUntil starts a container and waits until it has printed text.
func (w *world) runUntil(t *testing.T, id, text string) *rig.Running {
	t.Helper()
	running, err := w.pod.Attach(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := running.Said(ctx, text); err != nil {
		t.Fatal(err)
	}
	return running
}
