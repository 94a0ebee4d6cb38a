// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hako/test/rig"
)

// repository is where the repository's root is for this package's tests.
const repository = "../.."

const documentPath = "docs/conformance.md"

// casesOf returns the names of the cases of each row.
func casesOf(cases []*rig.Case) map[string][]string {
	byRow := map[string][]string{}
	for _, c := range cases {
		for _, row := range c.Rows {
			byRow[row] = append(byRow[row], c.Name)
		}
	}
	return byRow
}

// TestRows holds rows, cases and documents together, without building anything.
func TestRows(t *testing.T) {
	cases, err := rig.ReadCases("testdata")
	if err != nil {
		t.Fatal(err)
	}
	byRow := casesOf(cases)
	for _, r := range rows {
		if n := len(byRow[r.id]); (n == 0) != (r.outside != "") {
			t.Errorf("row %s (%s) has %d cases and is out of scope because of %q: one of the two", r.id, r.about, n, r.outside)
		}
		delete(byRow, r.id)
	}
	for row, names := range byRow {
		t.Errorf("cases %v name row %q, which does not exist", names, row)
	}
	text := read(t, documentPath)
	for _, r := range rows {
		if !strings.Contains(text, "| "+r.id+" | "+r.about+" |") {
			t.Errorf("%s does not tell of row %s: run make conformance", documentPath, r.id)
		}
	}
	entries := regexp.MustCompile(`(?m)^\d+\. `).FindAllString(read(t, "docs/differences.md"), -1)
	for _, c := range cases {
		for _, d := range c.Differences {
			if d.Entry != rig.Namespaces && !slices.Contains(entries, d.Entry+". ") {
				t.Errorf("case %s: docs/differences.md has no entry %s", c.Name, d.Entry)
			}
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(repository, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// report prints what became of the cases, and writes the document if asked to.
func report(t *testing.T, boxes []rig.Sandbox, cases []*rig.Case, all outcomes) {
	t.Helper()
	if *reference {
		return
	}
	for _, box := range boxes {
		counts := map[string]int{}
		for _, o := range all {
			counts[o[box].verdict]++
		}
		t.Logf("%s: %d cases: %v", box, len(all), counts)
	}
	if *document == "" {
		return
	}
	if len(all) < len(cases) {
		t.Fatalf("-document: %d of %d cases were run", len(all), len(cases))
	}
	path := filepath.Join(repository, *document)
	if filepath.IsAbs(*document) {
		path = *document
	}
	text := write(page{boxes: boxes, cases: cases, all: all, buildkit: buildkitVersion(t), date: time.Now()})
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Error(err)
	}
}

func buildkitVersion(t *testing.T) string {
	t.Helper()
	m := regexp.MustCompile(`github.com/moby/buildkit (v\S+)`).FindStringSubmatch(read(t, "tools/go.mod"))
	if m == nil {
		t.Fatal("tools/go.mod names no version of BuildKit")
	}
	return m[1]
}

// A page is what the document is made of.
type page struct {
	boxes    []rig.Sandbox
	cases    []*rig.Case
	all      outcomes
	buildkit string
	date     time.Time
}

// write returns the document: totals, then a table of rules for each section.
func write(p page) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Conformance

Every rule of the Dockerfile language and of BuildKit's exporter, with the cases that test it. BuildKit %s and hako build
each case; the images have to agree in config, history, layers and every file's content, mode, owner, time and link,
and what one refuses the other has to refuse. %s. `+"`make conformance`"+` writes this page; the cases are
`+"`test/conformance/testdata/NAME.txtar`"+`, and its README says how they are compared.

`, p.buildkit, p.date.UTC().Format(time.DateOnly))
	p.totals(&b)
	p.exceptions(&b)
	last := ""
	byRow := casesOf(p.cases)
	for _, r := range rows {
		if s := section(r.id); s != last {
			last = s
			fmt.Fprintf(&b, "\n## %s\n\n| rule | | cases |%s\n|---|---|---|%s\n", s, p.heads(), strings.Repeat("---|", len(p.boxes)))
		}
		if r.outside != "" {
			fmt.Fprintf(&b, "| %s | %s | none: %s |%s\n", r.id, r.about, r.outside, strings.Repeat(" |", len(p.boxes)))
			continue
		}
		names := byRow[r.id]
		slices.Sort(names)
		fmt.Fprintf(&b, "| %s | %s | %s |%s\n", r.id, r.about, strings.Join(names, " · "), p.verdicts(names))
	}
	return b.String()
}

// totals writes how many cases came to what, in each sandbox.
func (p page) totals(b *strings.Builder) {
	fmt.Fprintf(b, "| %d cases |%s\n|---|%s\n", len(p.cases), p.abouts(), strings.Repeat("---|", len(p.boxes)))
	for _, line := range []struct{ verdict, text string }{
		{"equal", "equal"},
		{"error", "refused by both, for the same reason"},
		{"listed", "a [listed difference](differences.md)"},
		{"refused", "refused, for want of ids"},
		{"", "**not as they should be**"},
	} {
		fmt.Fprintf(b, "| %s |", line.text)
		for _, box := range p.boxes {
			n := 0
			for _, found := range p.all {
				o := found[box]
				if line.verdict == "" && o.failure != "" || line.verdict != "" && o.verdict == line.verdict && o.failure == "" {
					n++
				}
			}
			fmt.Fprintf(b, " %d |", n)
		}
		b.WriteString("\n")
	}
}

// exceptions lists the files that are left out of a comparison.
func (p page) exceptions(b *strings.Builder) {
	for _, c := range p.cases {
		for i, e := range c.Except {
			if i == 0 {
				fmt.Fprintf(b, "\nNot compared in %s, because no two builds agree, whoever makes them:\n\n", c.Name)
			}
			fmt.Fprintf(b, "- `%s`: %s\n", strings.TrimSuffix(strings.TrimPrefix(e.Path.String(), "^(?:"), ")$"), e.Why)
		}
	}
}

func (p page) heads() string {
	var b strings.Builder
	for _, box := range p.boxes {
		fmt.Fprintf(&b, " %s |", box)
	}
	return b.String()
}

func (p page) abouts() string {
	var b strings.Builder
	for _, box := range p.boxes {
		fmt.Fprintf(&b, " %s: %s |", box, box.About())
	}
	return b.String()
}

// verdicts sums up a row's cases: equal unless something is to be told.
func (p page) verdicts(names []string) string {
	var b strings.Builder
	for _, box := range p.boxes {
		var tell []string
		refused := 0
		for _, c := range p.cases {
			if !slices.Contains(names, c.Name) {
				continue
			}
			switch o := p.all[c.Name][box]; {
			case o.failure != "":
				tell = append(tell, fmt.Sprintf("**%s: %s**", c.Name, o.verdict))
			case o.verdict == "listed":
				entry := c.Listed(box).Entry
				at := "differences.md"
				if entry == rig.Namespaces {
					at += "#in-namespaces"
				}
				tell = append(tell, fmt.Sprintf("%s: [%s](%s)", c.Name, entry, at))
			case o.verdict == "refused":
				refused++
			}
		}
		if refused > 0 {
			tell = append(tell, fmt.Sprintf("%d of %d refused", refused, len(names)))
		}
		if len(tell) == 0 {
			tell = []string{"equal"}
		}
		fmt.Fprintf(&b, " %s |", strings.Join(tell, ", "))
	}
	return b.String()
}

// section names the part of the document that a row belongs to.
func section(id string) string {
	for _, s := range []struct{ ids, name string }{
		{`^P\d`, "Lines and words"},
		{`^H\d`, "Heredocs"},
		{`^V\d`, "Variables"},
		{`^M\.`, "Mounts of RUN"},
		{`^K\d`, "COPY and ADD"},
		{`^N\d`, "Contexts, arguments, options"},
		{`^C$`, "Checks"},
		{`^E\.`, "What RUN sees and leaves"},
		{`^X\.`, "Layers"},
	} {
		if regexp.MustCompile(s.ids).MatchString(id) {
			return s.name
		}
	}
	return "Instructions"
}
