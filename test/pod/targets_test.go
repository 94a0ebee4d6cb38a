// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"archive/tar"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestTargets builds two targets in place that share a stage with a RUN.
func TestTargets(t *testing.T) {
	w := start(t, false)
	bctx := w.files(t, map[string]string{"common": "common\n", "a.txt": "a\n", "b.txt": "b\n", "Dockerfile": `FROM base.test/busybox AS base
COPY common /common
RUN cat /proc/sys/kernel/random/uuid > /once
FROM base AS a
COPY a.txt /
RUN cat /common /a.txt > /seen
FROM base.test/busybox AS tool
RUN echo tool > /tool
FROM base AS b
COPY --from=tool /tool /tool
RUN --mount=type=bind,source=b.txt,target=/mnt/b cat /common /mnt/b > /seen
FROM base
RUN false
`})
	s, _ := w.spec(t, w.scratch(t), bctx, true, "--target=a="+w.Registry+"/first:1", "--target=b="+w.Registry+"/second:1")
	s.Command = slices.DeleteFunc(s.Command, func(arg string) bool { return strings.HasPrefix(arg, "--destination=") })
	id, before := w.create(t, s)
	res, err := w.pod.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if res.Exit != 0 {
		t.Fatalf("exit status %d\n%s", res.Exit, res.Stderr)
	}
	w.asFound(t, id, before)
	lines := strings.Fields(res.Stdout)
	if len(lines) != 2 || !strings.HasPrefix(lines[0], w.Registry+"/first:1@sha256:") || !strings.HasPrefix(lines[1], w.Registry+"/second:1@sha256:") {
		t.Fatalf("standard output is %q, want a line for each target", res.Stdout)
	}
	a, b := w.contents(t, lines[0]), w.contents(t, lines[1])
	if a["once"] == "" || a["once"] != b["once"] {
		t.Errorf("the common stage was run twice: %q, %q", a["once"], b["once"])
	}
	if got, want := a["seen"], "common\na\n"; got != want {
		t.Errorf("a has %q, want %q", got, want)
	}
	if got, want := b["seen"], "common\nb\n"; got != want {
		t.Errorf("b has %q, want %q", got, want)
	}
	if a["tool"] != "" || b["tool"] != "tool\n" || b["a.txt"] != "" {
		t.Errorf("what is of one target only: %q in a, %q and %q in b", a["tool"], b["tool"], b["a.txt"])
	}
}

// contents returns the files of a pushed image that are not large.
func (w *world) contents(t *testing.T, ref string) map[string]string {
	t.Helper()
	d, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(d)
	if err != nil {
		t.Fatal(err)
	}
	return smallFiles(t, img)
}

// smallFiles returns the files of an image that are not large.
func smallFiles(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	rc := mutate.Extract(img)
	defer rc.Close()
	files := map[string]string{}
	for tr := tar.NewReader(rc); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg || h.Size > 1<<10 {
			continue
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(h.Name, "/")] = string(data)
	}
}
