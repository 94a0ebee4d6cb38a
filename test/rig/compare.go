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
	"slices"
	"strconv"
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
	Dir   bool   `json:"dir"`
}

func (d Difference) String() string {
	return fmt.Sprintf("%s %s %s: buildkit %q, hako %q", d.Kind, d.Path, d.Field, d.A, d.B)
}

// Compare compares BuildKit's image with hako's field by field. Times that the
// clock gave at build time cannot agree; they, and nothing else, are let pass:
// BuildKit's must lie in the run, and hako's too, or be the epoch, which hako
// gives to what it creates, or, for a directory that got a child, be older,
// since hako leaves an existing directory its time.
// Files of except are let pass whatever differs.
func (r *Rig) Compare(ctx context.Context, buildkit, hako string, since time.Time, epoch string, except ...Exception) ([]Difference, error) {
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
		excepted := func(e Exception) bool { return d.Path != "" && e.Path.MatchString(d.Path) }
		if !clockDifference(d, since, epoch) && !slices.ContainsFunc(except, excepted) {
			left = append(left, d)
		}
	}
	return left, nil
}

// clockDifference says whether d is a time that the clock gave.
func clockDifference(d Difference, since time.Time, epoch string) bool {
	if !strings.HasSuffix(d.Field, "mtime") && d.Field != "created" {
		return false
	}
	a, errA := time.Parse(time.RFC3339Nano, d.A)
	b, errB := time.Parse(time.RFC3339Nano, d.B)
	if errA != nil || errB != nil {
		return false
	}
	// Layers keep whole seconds.
	began := since.Truncate(time.Second)
	inRun := func(t time.Time) bool { return !t.Before(began) && !t.After(time.Now()) }
	if !inRun(a) {
		return false
	}
	return inRun(b) || strconv.FormatInt(b.Unix(), 10) == epoch || d.Dir && b.Before(began)
}
