// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package namespace

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// hako builds in a RUN of its own: in place, and in namespaces where the RUN may
// make them. The image is the one that it builds outside.
func TestNested(t *testing.T) {
	w := start(t, `FROM base.test/busybox
RUN mkdir /w && echo hi > /w/x && chown 3:4 /w/x && rm /bin/false
FROM base.test/busybox
COPY --from=0 /w /w
RUN rm /w/x && echo y > /w/y
`)
	inner := []string{
		"build", "--progress=plain", "--no-push", "-t=x:1", "--insecure-registry=" + w.rig.Registry, "--source-date-epoch=" + epoch, "--rewrite-timestamp",
	}
	work := workDir(t, 0)
	digest := filepath.Join(work, "digest")
	if log, err := w.command(t.Context(), 0, work, "--source-date-epoch="+epoch, "--rewrite-timestamp", "--digest-file="+digest).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	want, err := os.ReadFile(digest)
	if err != nil {
		t.Fatal(err)
	}
	outer := t.TempDir()
	reach(t, outer)
	for _, cmd := range [][]string{{"cp", w.rig.HakoBin, outer + "/hako"}, {"cp", "-r", w.dir, outer + "/in"}} {
		if out, err := exec.CommandContext(t.Context(), cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for flags, box := range map[string]string{"": "inplace sandbox", "--security=insecure ": "namespace sandbox (plain directories"} {
		dockerfile := w.rig.Address("FROM base.test/busybox\nCOPY hako /kaniko/hako\nCOPY in /in\nENV KANIKO_DIR=/kaniko\n" +
			"RUN " + flags + "/kaniko/hako " + strings.Join(inner, " ") + " --digest-file=/digest /in && cat /digest\n" +
			"RUN test -x /bin/busybox && test -f /in/Dockerfile && test ! -e /w\n")
		if err := os.WriteFile(filepath.Join(outer, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
			t.Fatal(err)
		}
		line := w.line(workDir(t, 0), "--allow=security.insecure")
		line[len(line)-1] = outer
		log, err := exec.CommandContext(t.Context(), line[0], line[1:]...).CombinedOutput()
		if err != nil || !strings.Contains(string(log), box) || !strings.Contains(string(log), strings.TrimSpace(string(want))) {
			t.Errorf("RUN %s: %v, want in the %s the digest %s\n%s", flags, err, box, want, log)
		}
	}
}

// A RUN for another platform in an emulator, registered where nobody else sees it.
func TestForeignRun(t *testing.T) {
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil || runtime.GOARCH != "amd64" {
		t.Skip("skipped: needs qemu-user-static, on amd64")
	}
	w := start(t, "FROM scratch\nCOPY prog /prog\nRUN [\"/prog\"]\n")
	src := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":  "module m\n",
		"main.go": "package main\n\nimport \"runtime\"\n\nfunc main() { println(\"I am \" + runtime.GOARCH) }\n",
	} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(w.dir, "prog"), ".")
	build.Dir, build.Env = src, append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const register = `mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc || exit 99
printf ':hako-test:M:18:\\xb7\\x00::%s:F' "$0" > /proc/sys/fs/binfmt_misc/register && exec "$@"`
	args := append([]string{"--user", "--map-root-user", "--mount", "sh", "-c", register, qemu}, w.line(workDir(t, 0), "--platform=linux/arm64")...)
	log, err := exec.CommandContext(t.Context(), "unshare", args...).CombinedOutput()
	if e, ok := err.(*exec.ExitError); ok && e.ExitCode() == 99 {
		t.Skip("skipped: needs binfmt_misc in a user namespace (Linux 6.7)")
	}
	if err != nil || !regexp.MustCompile(`(?m)^#\d+ [\d.]+ I am arm64$`).Match(log) {
		t.Errorf("%v\n%s", err, log)
	}
}
