// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package conformance builds every Dockerfile of testdata with BuildKit and
// with hako and compares the two images. README.md beside it says how a case
// is written.
package conformance

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hako/test/rig"
)

var (
	reference = flag.Bool("reference", false, "build with BuildKit only: checks the cases themselves")
	workers   = flag.Int("workers", 2, "cases built at a time")
)

// An outcome is what became of one case.
type outcome struct {
	verdict string // equal, different, error, or why the case failed
	failure string // empty if the case passed
}

func TestConformance(t *testing.T) {
	rig.Require(t, rig.NeedRoot, rig.NeedRunc, rig.NeedPodman, rig.NeedBusybox)
	cases, err := rig.ReadCases("testdata")
	if err != nil {
		t.Fatal(err)
	}
	r, err := rig.Start(t.Context(), rig.Options{BuildKit: true, Hako: !*reference})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close rig: %v", err)
		}
	})
	since := time.Now()
	outcomes := runCases(t, r, cases, since)
	report(t, cases, outcomes)
}

// runCases runs the cases as subtests, a few at a time.
func runCases(t *testing.T, r *rig.Rig, cases []*rig.Case, since time.Time) map[string]outcome {
	var mu sync.Mutex
	outcomes := map[string]outcome{}
	slots := make(chan struct{}, *workers)
	t.Run("cases", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.Name, func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				o := runCase(ctx, r, c, since)
				mu.Lock()
				outcomes[c.Name] = o
				mu.Unlock()
				if o.failure != "" {
					t.Error(o.failure)
				}
			})
		}
	})
	return outcomes
}

func runCase(ctx context.Context, r *rig.Rig, c *rig.Case, since time.Time) outcome {
	dir, err := r.Lay(c)
	if err != nil {
		return outcome{"broken", err.Error()}
	}
	want := r.BuildKit(ctx, c, dir)
	if failed := want.Err != nil; failed != (c.Error != nil) {
		return outcome{"broken", fmt.Sprintf("BuildKit: failed: %v, expected: %v\n%s", failed, c.Error != nil, want.Log)}
	}
	if *reference {
		return outcome{verdict: "reference"}
	}
	got := r.Hako(ctx, c, dir)
	switch {
	case c.Error != nil && got.Err == nil:
		return outcome{"accepted", "hako built what BuildKit refuses"}
	case c.Error != nil && !c.Error.MatchString(got.Log):
		return outcome{"wrong words", fmt.Sprintf("hako's message does not match %q:\n%s", c.Error, got.Log)}
	case c.Error != nil:
		return outcome{verdict: "error"}
	case got.Err != nil:
		return outcome{"failed", fmt.Sprintf("hako: %v\n%s", got.Err, got.Log)}
	}
	diffs, err := r.Compare(ctx, want.Layout, got.Layout, since, c.Epoch())
	if err != nil {
		return outcome{"failed", err.Error()}
	}
	if len(diffs) > 0 {
		var b strings.Builder
		for _, d := range diffs {
			fmt.Fprintln(&b, d)
		}
		return outcome{"different", b.String()}
	}
	return outcome{verdict: "equal"}
}

// report prints the table row → cases → verdicts and fails for a row that
// applies and has no case.
func report(t *testing.T, cases []*rig.Case, outcomes map[string]outcome) {
	byRow := map[string][]string{}
	for _, c := range cases {
		for _, row := range c.Rows {
			byRow[row] = append(byRow[row], c.Name)
		}
	}
	var b strings.Builder
	for _, row := range rows {
		names := byRow[row.id]
		delete(byRow, row.id)
		if row.outside != "" {
			fmt.Fprintf(&b, "%-12s not covered: %s\n", row.id, row.outside)
			continue
		}
		if len(names) == 0 {
			t.Errorf("row %s has no case: %s", row.id, row.about)
			continue
		}
		slices.Sort(names)
		for i, n := range names {
			names[i] = n + "=" + outcomes[n].verdict
		}
		fmt.Fprintf(&b, "%-12s %s\n", row.id, strings.Join(names, " "))
	}
	for row, names := range byRow {
		t.Errorf("cases %v name row %q, which does not exist", names, row)
	}
	counts := map[string]int{}
	for _, o := range outcomes {
		counts[o.verdict]++
	}
	fmt.Fprintf(&b, "%d cases: %v\n", len(cases), counts)
	t.Log("\n" + b.String())
	if path := os.Getenv("CONFORMANCE_REPORT"); path != "" {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}
