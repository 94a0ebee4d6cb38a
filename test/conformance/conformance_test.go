// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package conformance builds every Dockerfile of testdata with BuildKit and
// with hako, in each sandbox asked for, and compares the images. README.md
// beside it says how a case is written.
package conformance

import (
	"context"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hako/test/rig"
)

var (
	reference = flag.Bool("reference", false, "build with BuildKit only: checks the cases themselves")
	sandboxes = flag.String("sandbox", string(rig.InPlace), "where hako builds: inplace, namespace, plain, rootless, single, or all; several with commas")
	document  = flag.String("document", "", "write the document of results to this file of the repository")
	cached    = flag.Bool("cached", false, "build with hako twice, and compare what comes out of its cache")
	workers   = flag.Int("workers", 2, "cases built at a time")
)

// An outcome is what became of one case in one sandbox.
type outcome struct {
	verdict string // equal, error, listed, refused, or why the case failed
	failure string // empty if the case passed
}

// outcomes are known by case, then by sandbox.
type outcomes map[string]map[rig.Sandbox]outcome

// A suite is what all cases share.
type suite struct {
	rig       *rig.Rig
	sandboxes []rig.Sandbox
	since     time.Time
	debian    func() error // pushes the Debian base, once
}

func TestConformance(t *testing.T) {
	chosen := chosenSandboxes(t)
	needs := []rig.Need{rig.NeedRoot, rig.NeedRunc, rig.NeedBusybox, rig.NeedMmdebstrap}
	for _, s := range chosen {
		needs = append(needs, s.Needs()...)
	}
	rig.Require(t, needs...)
	cases, err := rig.ReadCases("testdata")
	if err != nil {
		t.Fatal(err)
	}
	r, err := rig.Start(t.Context(), rig.Options{BuildKit: true, Hako: !*reference, Cached: *cached})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close rig: %v", err)
		}
	})
	s := &suite{rig: r, sandboxes: chosen, since: time.Now()}
	s.debian = sync.OnceValue(func() error { return r.PushDebian(t.Context(), rig.DebianMinimal) })
	all := s.run(t, cases)
	report(t, chosen, cases, all)
}

func chosenSandboxes(t *testing.T) []rig.Sandbox {
	t.Helper()
	if *sandboxes == "all" {
		return rig.Sandboxes()
	}
	var out []rig.Sandbox
	for _, name := range strings.Split(*sandboxes, ",") {
		if !slices.Contains(rig.Sandboxes(), rig.Sandbox(name)) {
			t.Fatalf("-sandbox=%s: there are all and %v", name, rig.Sandboxes())
		}
		out = append(out, rig.Sandbox(name))
	}
	return out
}

// run runs the cases as subtests, a few at a time.
func (s *suite) run(t *testing.T, cases []*rig.Case) outcomes {
	var mu sync.Mutex
	all := outcomes{}
	slots := make(chan struct{}, *workers)
	t.Run("cases", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.Name, func(t *testing.T) {
				t.Parallel()
				slots <- struct{}{}
				defer func() { <-slots }()
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
				defer cancel()
				found := s.one(ctx, t, c)
				mu.Lock()
				all[c.Name] = found
				mu.Unlock()
			})
		}
	})
	return all
}

// one builds a case with BuildKit, then with hako in each sandbox.
func (s *suite) one(ctx context.Context, t *testing.T, c *rig.Case) map[rig.Sandbox]outcome {
	t.Helper()
	if c.Mentions(rig.BaseHost + "/debian:") {
		if err := s.debian(); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := s.rig.Lay(c)
	if err != nil {
		t.Fatal(err)
	}
	want := s.rig.BuildKit(ctx, c, dir)
	if failed := want.Err != nil; failed != (c.Error != nil) {
		t.Fatalf("BuildKit: failed: %v, expected: %v\n%s", failed, c.Error != nil, want.Log)
	}
	found := map[rig.Sandbox]outcome{}
	if *reference {
		return found
	}
	for _, box := range s.sandboxes {
		o := s.compare(ctx, c, want, s.rig.Hako(ctx, c, dir, box, c.HasRun() && want.Ran), box)
		if found[box] = o; o.failure != "" {
			t.Errorf("%s: %s: %s", box, o.verdict, o.failure)
		}
	}
	return found
}

// compare judges hako's build by BuildKit's.
func (s *suite) compare(ctx context.Context, c *rig.Case, want, got rig.Built, box rig.Sandbox) outcome {
	listed := c.Listed(box)
	switch {
	case c.Error != nil && got.Err == nil:
		return outcome{"accepted", "hako built what BuildKit refuses"}
	case c.Error != nil && !c.Error.MatchString(got.Log):
		return outcome{"wrong words", fmt.Sprintf("hako's message does not match %q:\n%s", c.Error, got.Log)}
	case c.Error != nil:
		return outcome{verdict: "error"}
	case c.Call() != "":
		return compareAnswers(want, got)
	case got.Err != nil && listed != nil && listed.Words != nil && listed.Words.MatchString(got.Log):
		return outcome{verdict: "listed"}
	case got.Err != nil && box == rig.SingleID && !c.OneID && lacksIDs.MatchString(got.Log):
		return outcome{verdict: "refused"}
	case got.Err != nil:
		return outcome{"failed", fmt.Sprintf("hako: %v\n%s", got.Err, got.Log)}
	}
	diffs, err := s.rig.Compare(ctx, want.Layout, got.Layout, s.since, c.Epoch(), c.Except...)
	switch {
	case err != nil:
		return outcome{"failed", err.Error()}
	case listed != nil && (listed.Words != nil || len(diffs) == 0):
		return outcome{"not listed", fmt.Sprintf("the case does not show what entry %s of docs/differences.md says", listed.Entry)}
	case listed != nil:
		return outcome{verdict: "listed"}
	case len(diffs) > 0:
		var b strings.Builder
		for _, d := range diffs {
			fmt.Fprintln(&b, d)
		}
		return outcome{"different", b.String()}
	}
	return outcome{verdict: "equal"}
}

// lacksIDs is what hako says to a command that needs ids that a user without
// subordinate ones does not have. Anything but that, or an equal image, fails.
var lacksIDs = regexp.MustCompile(`(?i)subuid|subordinate|not mapped`)

// compareAnswers compares what is said of a Dockerfile that is not built.
// hako's exit status is 1 for findings; buildctl has none for them.
func compareAnswers(want, got rig.Built) outcome {
	if got.Answer != want.Answer {
		return outcome{"different", fmt.Sprintf("BuildKit:\n%s\nhako (%v):\n%s", want.Answer, got.Err, got.Log)}
	}
	return outcome{verdict: "equal"}
}
