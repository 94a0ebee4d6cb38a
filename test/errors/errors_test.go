// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package faults plants faults, one to a file of testdata/errors, and compares
// the whole of what hako says about each. README.md beside it says how a case
// is written.
package faults

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hako/test/rig"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata")

// A world is what all cases share.
type world struct {
	*rig.Rig
	pod            *rig.Podman
	scratch, shell string // container images
}

// faultsWanted is how many faults there are at least.
const faultsWanted = 32

func TestErrors(t *testing.T) {
	rig.Require(t, rig.NeedRoot, rig.NeedPodman, rig.NeedRunc, rig.NeedBusybox)
	paths, err := filepath.Glob("testdata/errors/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) < faultsWanted {
		t.Errorf("%d cases, want at least %d", len(paths), faultsWanted)
	}
	w := start(t)
	t.Run("cases", func(t *testing.T) {
		for _, p := range paths {
			c, err := readCase(p)
			if err != nil {
				t.Fatal(err)
			}
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				w.check(t, c)
			})
		}
	})
}

func start(t *testing.T) *world {
	t.Helper()
	r, err := rig.Start(t.Context(), rig.Options{Hako: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close rig: %v", err)
		}
	})
	w := &world{Rig: r}
	w.pod, err = r.Podman(t.Context())
	if err == nil {
		w.scratch, err = w.pod.Scratch(t.Context(), "/kaniko/executor", "/kaniko/bin/hako")
	}
	if err == nil {
		w.shell, err = w.pod.BusyboxHako(t.Context(), "/kaniko/executor", "/kaniko/bin/hako")
	}
	if err == nil {
		err = pushBroken(t.Context(), r.Registry)
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// A said is what a run of hako left behind.
type said struct {
	exit           int
	stdout, stderr string
	termination    string // of a pod
}

// check runs one case and compares what it said and what it left.
func (w *world) check(t *testing.T, c *testCase) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	p := w.lay(t, c)
	var got said
	if c.one("place") == "machine" {
		got = w.onMachine(ctx, t, p)
	} else {
		got = w.inPod(ctx, t, p)
	}
	got.stderr = p.normalize(got.stderr)
	got.termination = p.normalize(got.termination)
	tags, err := w.tags(ctx, "result/"+c.name)
	if err != nil {
		t.Fatal(err)
	}
	if got.exit != 0 && len(tags) > 0 {
		t.Errorf("the build failed and the registry has the tags %q", tags)
	}
	if *update {
		if err := c.update(got); err != nil {
			t.Fatal(err)
		}
	}
	if want := c.section("stderr"); got.stderr != want {
		t.Errorf("stderr (-want +got):\n%s\nin full:\n%s", cmp.Diff(strings.Split(want, "\n"), strings.Split(got.stderr, "\n")), got.stderr)
	}
	if want := c.section("termination"); got.termination != want {
		t.Errorf("termination message %q, want %q", got.termination, want)
	}
	if want := c.one("exit"); fmt.Sprint(got.exit) != want {
		t.Errorf("exit status %d, want %s", got.exit, want)
	}
	if paths := c.options["show"]; len(paths) > 0 {
		w.checkResult(ctx, t, c, paths)
	}
	if c.one("after") == "" { // else something else has the last word
		checkForm(t, got)
	}
}

// checkForm holds for every failure: the last line is the one that scripts look
// for.
func checkForm(t *testing.T, got said) {
	t.Helper()
	if got.exit == 0 {
		return
	}
	lines := strings.Split(strings.TrimRight(got.stderr, "\n"), "\n")
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, "error building image: ") {
		t.Errorf("last line: %q", last)
	}
	if got.stdout != "" {
		t.Errorf("stdout of a failed build: %q", got.stdout)
	}
}

// tags returns the tags of a repository of the rig's registry.
func (w *world) tags(ctx context.Context, repo string) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.Registry+"/v2/"+repo+"/tags/list", nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode == http.StatusNotFound {
		return nil, err
	}
	var list struct{ Tags []string }
	return list.Tags, json.Unmarshal(body, &list)
}

// asFound fails the test if a container's files changed.
func asFound(t *testing.T, before, after []string) {
	t.Helper()
	var diff []string
	for _, l := range before {
		if !slices.Contains(after, l) {
			diff = append(diff, "- "+l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			diff = append(diff, "+ "+l)
		}
	}
	if len(diff) > 0 {
		t.Errorf("the container is not as it was found:\n%s", strings.Join(diff[:min(len(diff), 20)], "\n"))
	}
}

func writeFile(path, data string, mode os.FileMode) error {
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), mode))
}
