// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"archive/tar"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/layout"

	"hako/test/rig"
)

// What several RUNs leave becomes one layer without what is ignored, and a
// command may write to a volume that is.
func TestOneLayer(t *testing.T) {
	w := start(t, false)
	bctx := w.files(t, map[string]string{"Dockerfile": `FROM base.test/busybox
RUN echo 1 > /passing && echo 1 > /stays && rm -r /data/sub /opt/real && echo v > /volume/v
RUN rm /passing && mkdir /data/sub && echo n > /data/sub/new && mkdir -p /var/log/x && echo l > /var/log/x/y
RUN test -e /var/log/x/y && echo 2 > /opt/real && rm -r /data/emptydir
`})
	build := func(args ...string) (rig.PodResult, string) {
		s, out := w.spec(t, w.scratch(t), bctx, true, append(args, "--oci-layout-path=/result/layout")...)
		s.Mounts = append(s.Mounts, rig.Mount{Source: t.TempDir(), Target: "/volume"})
		id, before := w.create(t, s)
		res, err := w.pod.Start(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		w.asFound(t, id, before)
		return res, filepath.Join(out, "layout")
	}
	res, dir := build("--single-snapshot", "--ignore-path=/volume", "--ignore-path=/var/l?g")
	if res.Exit != 0 {
		t.Fatalf("exit status %d\n%s", res.Exit, res.Stderr)
	}
	want := []string{"data/", "data/.wh.emptydir", "data/sub/", "data/sub/new", "data/sub/.wh.one", "data/sub/.wh.two", "opt/", "opt/real", "stays"}
	layers := entries(t, dir)
	if len(layers) != 2 {
		t.Fatalf("the image has %d layers, want the base's and one", len(layers))
	}
	if d := cmp.Diff(want, layers[1]); d != "" {
		t.Errorf("new layer (-want +got):\n%s", d)
	}

	res, _ = build("--ignore-path=/var/log")
	if res.Exit == 0 || !strings.Contains(res.Stderr, "/volume") {
		t.Errorf("exit status %d, want an error about /volume:\n%s", res.Exit, res.Stderr)
	}
}

// entries returns the names in each layer of the only image of a layout.
func entries(t *testing.T, dir string) [][]string {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var all [][]string
	for _, l := range layers {
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for tr := tar.NewReader(rc); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, h.Name)
		}
		if err := rc.Close(); err != nil {
			t.Fatal(err)
		}
		all = append(all, names)
	}
	return all
}

// KANIKO_DIR and --kaniko-dir are where hako works, wherever that is: commands run,
// the directory is in no layer, and the usual one is left alone.
func TestOtherWorkDir(t *testing.T) {
	w := start(t, false)
	bctx := w.files(t, map[string]string{"Dockerfile": "FROM base.test/busybox\nRUN ls /srv /elsewhere > /seen && echo 1 > /made\n"})
	for _, how := range []struct {
		env, args []string
	}{{env: []string{"KANIKO_DIR=/elsewhere/work"}}, {env: []string{"KANIKO_DIR=/wrong"}, args: []string{"--kaniko-dir=/elsewhere/work"}}} {
		s, out := w.spec(t, w.scratch(t), bctx, true, append(how.args, "--oci-layout-path=/result/layout")...)
		s.Env = append(s.Env, how.env...)
		id, _ := w.create(t, s)
		res, err := w.pod.Start(t.Context(), id)
		if err != nil || res.Exit != 0 {
			t.Fatalf("%v, exit status %d\n%s", err, res.Exit, res.Stderr)
		}
		if d := cmp.Diff([]string{"made", "seen"}, entries(t, filepath.Join(out, "layout"))[1]); d != "" {
			t.Errorf("new layer (-want +got):\n%s", d)
		}
		var dirs []string
		for _, line := range w.snapshot(t, id) {
			for _, dir := range []string{"/elsewhere/work/work", "/kaniko/work", "/wrong"} {
				if strings.Contains(line, dir) && !strings.Contains(line, dir+"/") {
					dirs = append(dirs, dir)
				}
			}
		}
		if len(dirs) != 1 || dirs[0] != "/elsewhere/work/work" {
			t.Errorf("work directories are %v", dirs)
		}
	}
}
