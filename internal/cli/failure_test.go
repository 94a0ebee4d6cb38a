// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"hako/internal/build"
	"hako/internal/frontend"
	"hako/internal/layer"
	"hako/internal/registry"
	"hako/internal/sandbox"
	"hako/internal/solver"
)

const failingDockerfile = "FROM a\nRUN one \\\n  # a note\n  two\nRUN c\n"

func vertexError(err error) error {
	return &solver.VertexError{
		Name: "[2/3] RUN one two", Digest: "sha256:v", File: "Dockerfile", Lines: [][2]int{{2, 4}}, Text: []byte(failingDockerfile), Err: err,
	}
}

func TestFailureText(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"a step", vertexError(&sandbox.ExitError{Code: 3}), `Dockerfile:2: RUN one two
    1 | FROM a
    2 > RUN one \
    3 >   # a note
    4 >   two
    5 | RUN c
 last lines:
   said
error building image: Dockerfile:2: RUN one two: exit code 3
`},
		{"a step without a line", &solver.VertexError{Name: "load context", Err: errors.New("gone")}, "error building image: load context: gone\n"},
		{"a line that is not there", &frontend.SourceError{File: "D", Lines: [][2]int{{9, 9}}, Text: []byte("FROM a\n"), Err: errors.New("odd")}, "error building image: odd\n"},
		{"what is left", &build.FailedError{Err: errors.New("no"), Pushing: true, Moved: true, Back: true},
			" state   nothing was pushed; this container's files are back as they were\nerror building image: no\n"},
		{"what is left, in part", &build.FailedError{Err: errors.New("no"), Pushing: true, Pushed: []string{"r.io/a:1"}, Moved: true},
			" state   pushed before the failure: r.io/a:1; this container's files are NOT all back: hako restore tries again\nerror building image: no\n"},
		{"said once", fmt.Errorf("push to r.io/a: %w", &registry.Error{Op: "push", Ref: "r.io/a:1", Status: 418}), "error building image: push r.io/a:1: i'm a teapot (418)\n"},
	}
	tail := func(d digest.Digest) []string {
		if d == "sha256:v" {
			return []string{"said"}
		}
		return nil
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, failureText(failurePrefix, test.err, tail)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestLongInstruction(t *testing.T) {
	t.Parallel()
	text := "FROM a\nRUN <<EOF\n" + strings.Repeat("x\n", 40) + "EOF\nRUN b\n"
	err := &solver.VertexError{File: "Dockerfile", Lines: [][2]int{{2, 43}}, Text: []byte(text), Err: errors.New("no")}
	got := failureText(failurePrefix, err, nil)
	if n := strings.Count(got, "\n"); n > maxSource+6 || !strings.Contains(got, "… > 30 more lines") || !strings.Contains(got, "   44 | RUN b\n") {
		t.Errorf("%d lines:\n%s", n, got)
	}
}

func TestKinds(t *testing.T) {
	t.Parallel()
	for want, err := range map[string]error{
		"oom":             vertexError(&sandbox.ExitError{Code: 137, OOM: true}),
		"signal":          vertexError(&sandbox.ExitError{Code: 143, Signal: 15}),
		"exit":            vertexError(&sandbox.ExitError{Code: 1}),
		"unsupported":     vertexError(&sandbox.UnsupportedError{What: "x"}),
		"denied":          fmt.Errorf("x: %w", &registry.Error{Op: "push", Status: 403}),
		"image-not-found": &registry.Error{Op: "pull", Status: 404},
		"disk-full":       vertexError(&os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}),
		"context-changed": vertexError(fmt.Errorf("x: %w", layer.ErrChanged)),
		"corrupt":         vertexError(fmt.Errorf("x: %w", layer.ErrDigestMismatch)),
		"dockerfile":      &frontend.SourceError{File: "Dockerfile", Lines: [][2]int{{1, 1}}, Text: []byte("FROMM"), Err: errors.New("x")},
		"error":           vertexError(errors.New("x")),
	} {
		if got := kindOf(err); got != want {
			t.Errorf("kindOf(%v) = %q, want %q", err, got, want)
		}
	}
}

func TestTerminationMessage(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	app := &App{TerminationLog: path}
	opt := build.Options{Executor: true}
	if f := app.openTermination(&opt); f != nil {
		t.Error("a file that was not there was made")
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("old", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, other := range []build.Options{{}, {Executor: true, DigestFile: path}} {
		if f := app.openTermination(&other); f != nil {
			t.Errorf("opened for %+v", other)
		}
	}
	f := app.openTermination(&opt)
	if f == nil {
		t.Fatal("not opened")
	}
	defer f.Close()
	writeTermination(f, vertexError(&sandbox.ExitError{Code: 137, OOM: true}), 137)
	got, err := os.ReadFile(path)
	if want := "{\"step\":\"Dockerfile:2\",\"kind\":\"oom\",\"exit\":137}\n"; err != nil || string(got) != want {
		t.Errorf("message %q, %v; want %q", got, err, want)
	}
}
