// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/subrequests/targets"

	"hako/internal/frontend"
	"hako/internal/solver"
)

// A stageText is a stage of the Dockerfile and its lines.
type stageText struct {
	targets.Target
	index       int
	first, last int // lines, from 1
	text        string
	needed      bool
}

func (s *stageText) name() string {
	if s.Name == "" {
		return strconv.Itoa(s.index)
	}
	return s.Name
}

// isTarget tells whether the stage is what --target=name means.
func (s *stageText) isTarget(name string) bool {
	if name == "" {
		return s.Default
	}
	return strings.EqualFold(s.Name, name) || strconv.Itoa(s.index) == name
}

// skippedStages returns the stages that nothing of the graph comes from.
func skippedStages(ctx context.Context, fo frontend.Options, g *solver.Graph, wanted []string) ([]PlanStage, error) {
	stages, err := readStages(ctx, fo)
	if err != nil {
		return nil, err
	}
	for i := range stages {
		s := &stages[i]
		s.needed = slices.ContainsFunc(wanted, s.isTarget) ||
			slices.ContainsFunc(g.Vertices(), func(v *solver.Vertex) bool {
				return len(v.Lines) > 0 && v.Lines[0][0] >= s.first && v.Lines[0][0] <= s.last
			})
	}
	// Stages that only name another, or say what no layer holds, have nothing in
	// the graph. They are needed if they are spoken of where it matters. What
	// comes later cannot be spoken of.
	for i := len(stages) - 1; i >= 0; i-- {
		s := &stages[i]
		if !s.needed {
			continue
		}
		for k := range stages[:i] {
			if s.names(&stages[k]) {
				stages[k].needed = true
			}
		}
	}
	out := []PlanStage{}
	for i := range stages {
		if s := &stages[i]; !s.needed {
			out = append(out, PlanStage{Name: s.name(), Line: s.first})
		}
	}
	return out, nil
}

// fromOption is how an instruction names the stage it takes files of.
var fromOption = regexp.MustCompile(`\bfrom=["']?([A-Za-z0-9._-]+)`)

// layered are instructions that leave something in the graph.
var layered = regexp.MustCompile(`(?im)^\s*(RUN|COPY|ADD|WORKDIR)\b`)

// names tells whether s speaks of the earlier stage o.
func (s *stageText) names(o *stageText) bool {
	if o.Name != "" && strings.EqualFold(s.Base, o.Name) {
		return true
	}
	// Which stage a variable names is not known here: it is one that would show
	// in the graph, if it has anything to show.
	if strings.Contains(s.Base, "$") && !layered.MatchString(o.text) {
		return true
	}
	return slices.ContainsFunc(fromOption.FindAllStringSubmatch(s.text, -1), func(m []string) bool {
		return strings.EqualFold(m[1], o.Name) || m[1] == strconv.Itoa(o.index)
	})
}

// readStages asks the frontend for the stages and finds their lines.
func readStages(ctx context.Context, fo frontend.Options) ([]stageText, error) {
	a, err := frontend.Subrequest(ctx, fo, frontend.RequestTargets)
	if err != nil {
		return nil, err
	}
	var list targets.List
	if err := json.Unmarshal(a.JSON, &list); err != nil {
		return nil, fmt.Errorf("read the Dockerfile's stages: %w", err)
	}
	var lines []string
	if len(list.Sources) > 0 {
		lines = strings.Split(string(list.Sources[0]), "\n")
	}
	stages := make([]stageText, 0, len(list.Targets))
	for i, t := range list.Targets {
		s := stageText{Target: t, index: i, last: len(lines)}
		for _, r := range t.Location.GetRanges() {
			s.first = int(r.GetStart().GetLine())
			break
		}
		if s.first < 1 || s.first > len(lines) {
			return nil, fmt.Errorf("read the Dockerfile's stages: stage %s begins at line %d of %d", s.name(), s.first, len(lines))
		}
		if i > 0 {
			stages[i-1].last = s.first - 1
		}
		stages = append(stages, s)
	}
	for i := range stages {
		stages[i].text = strings.Join(lines[stages[i].first-1:stages[i].last], "\n")
	}
	return stages, nil
}
