// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux && runtimes

package gvisor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"hako/test/rig"
)

// dockerfile has what a root can show that a kernel might do in its own way.
const dockerfile = `FROM base AS one
COPY a.txt script /in/
RUN /in/script
RUN test -p /d/fifo && chmod 0644 /in/a.txt /d/file && cat /d/hard > /d/again
RUN rm -rf /data/sub && mv /data/a /data/moved && mkdir /data/sub && echo new > /data/sub/new
RUN ln -sf /d/file /opt/link && chown -R 7:8 /srv && touch -d @1000000000 /d/old && echo old >> /etc/motd
RUN --mount=type=cache,target=/c --mount=type=bind,from=base,target=/b cp /b/etc/passwd /c/p && cp /c/p /passwd
FROM base
COPY --from=one /d /x/
COPY --from=one --chmod=0711 /in/script /s
RUN sh -c 'id; cat /x/file; wc -c < /x/mapped' > /seen && mkdir -p /run/of/it && echo kept > /var/tmp/kept
`

const script = `#!/bin/sh
set -e
mkdir -p /d/e/f && echo file > /d/file && ln /d/file /d/hard && ln -s file /d/link && mkfifo /d/fifo
mknod /d/null c 1 3 && chown 5:6 /d/e && chmod 2750 /d/e && chmod 4755 /d/file
dd if=/dev/zero of=/d/mapped bs=4096 count=64 2>/dev/null && truncate -s 10M /d/sparse
echo body > /d/tmp && mv /d/tmp /d/renamed && rm /home/app/.profile
`

// TestGVisor builds in place under runsc and under runc: the images are equal
// to the last digest.
func TestGVisor(t *testing.T) {
	rig.Require(t, rig.NeedRoot, rig.NeedPodman, rig.NeedRunc, rig.NeedBusybox)
	r, err := rig.Start(t.Context(), rig.Options{Hako: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close rig: %v", err)
		}
	})
	p, err := r.Podman(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	image, err := p.Scratch(t.Context(), "/kaniko/executor")
	if err != nil {
		t.Fatal(err)
	}
	bctx, base := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{"Dockerfile": dockerfile, "a.txt": "a\n", "script": script} {
		if err := os.WriteFile(filepath.Join(bctx, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := name.ParseReference(r.Registry+"/odd", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	odd, err := remote.Image(ref, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	l, err := layout.Write(base, empty.Index)
	if err == nil {
		err = l.AppendImage(odd)
	}
	if err != nil {
		t.Fatal(err)
	}
	runsc, err := r.Tool(t.Context(), "runsc")
	if err != nil {
		t.Fatal(err)
	}
	run := func(runtime string, mounts []rig.Mount, command ...string) string {
		t.Helper()
		res, err := p.Run(t.Context(), rig.PodSpec{
			Image: image, Runtime: runtime, Network: "none", Mounts: mounts, Command: append([]string{"/kaniko/executor"}, command...),
		})
		if err != nil || res.Exit != 0 {
			t.Fatalf("%s: %v, exit status %d\n%s%s", runtime, err, res.Exit, res.Stdout, res.Stderr)
		}
		return res.Stdout + res.Stderr
	}
	if out := run(runsc, nil, "doctor"); !strings.Contains(out, "gvisor") {
		t.Fatalf("this is not gVisor's kernel:\n%s", out)
	}
	for _, target := range []string{"one", ""} {
		outs := map[string]string{}
		for _, runtime := range []string{"", runsc} {
			out := t.TempDir()
			outs[runtime] = out
			log := run(runtime, []rig.Mount{{Source: bctx, Target: "/workspace", ReadOnly: true}, {Source: base, Target: "/base", ReadOnly: true}, {Source: out, Target: "/result"}},
				"--context=dir:///workspace", "--build-context=base=oci-layout:///base", "--target="+target, "--no-push", "--destination=app.test/app:1", "--progress=plain",
				"--rewrite-timestamp", "--source-date-epoch=1700000000", "--oci-layout-path=/result/layout", "--tar-path=/result/image.tar", "--digest-file=/result/digest")
			if !strings.Contains(log, "inplace sandbox") {
				t.Errorf("not in place:\n%s", log)
			}
		}
		for _, result := range []string{"oci:%s/layout", "%s/image.tar"} {
			a, b := fmt.Sprintf(result, outs[""]), fmt.Sprintf(result, outs[runsc])
			if out, err := exec.CommandContext(t.Context(), r.HakoBin, "diff", a, b).CombinedOutput(); err != nil {
				t.Errorf("target %q: runc's %s and runsc's differ: %v\n%s", target, result, err, out)
			}
		}
	}
}
