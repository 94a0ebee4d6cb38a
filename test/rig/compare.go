// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// A Difference is one field in which two images differ, as `hako diff
// --format=json` prints it.
type Difference struct {
	Kind  string `json:"kind"`
	Path  string `json:"path"`
	Field string `json:"field"`
	A     string `json:"a"`
	B     string `json:"b"`
}

func (d Difference) String() string {
	return fmt.Sprintf("%s %s %s: buildkit %q, hako %q", d.Kind, d.Path, d.Field, d.A, d.B)
}

// Compare compares BuildKit's image with hako's field by field. Times that the
// clock gave at build time cannot agree; they, and nothing else, are let pass:
// BuildKit's mtime must lie in the run, and so must hako's, unless the path is
// a directory that got a child, where BuildKit leaves the clock's time and
// hako the base's.
func (r *Rig) Compare(ctx context.Context, buildkit, hako string, since time.Time) ([]Difference, error) {
	cmd := exec.CommandContext(ctx, r.HakoBin, "diff", "--format=json", buildkit, hako)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
		return nil, fmt.Errorf("hako diff: %w: %s", err, stderr.String())
	}
	var all []Difference
	if jsonErr := json.Unmarshal(out, &all); jsonErr != nil {
		return nil, fmt.Errorf("read hako diff's answer %q: %w", out, jsonErr)
	}
	if err != nil && len(all) == 0 {
		return nil, errors.New("hako diff: images differ, but no difference is listed")
	}
	var left []Difference
	for _, d := range all {
		if !clockDifference(d, since) {
			left = append(left, d)
		}
	}
	return left, nil
}

// clockDifference says whether d is a time that the clock gave.
func clockDifference(d Difference, since time.Time) bool {
	if !strings.HasSuffix(d.Field, "mtime") && d.Field != "created" {
		return false
	}
	inRun := func(s string) bool {
		t, err := time.Parse(time.RFC3339Nano, s)
		// Layers keep whole seconds.
		return err == nil && !t.Before(since.Truncate(time.Second)) && !t.After(time.Now())
	}
	return inRun(d.A) && inRun(d.B)
}
