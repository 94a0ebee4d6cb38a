// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// A testCase is one planted fault.
type testCase struct {
	name, path string
	options    map[string][]string
	archive    *txtar.Archive
}

var (
	optionLine = regexp.MustCompile(`^([a-z]+):\s*(.*)$`)
	exitLine   = regexp.MustCompile(`(?m)^exit:.*$`)
)

// known are the options of a case.
var known = map[string]string{"place": "machine", "exit": "1", "flags": "", "podargs": "", "memory": "", "disk": "", "front": "", "prepare": "", "show": "", "after": "", "destination": ""}

func readCase(path string) (*testCase, error) {
	a, err := txtar.ParseFile(path)
	if err != nil {
		return nil, err
	}
	c := &testCase{name: strings.TrimSuffix(filepath.Base(path), ".txtar"), path: path, archive: a, options: map[string][]string{}}
	for _, line := range strings.Split(string(a.Comment), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		m := optionLine.FindStringSubmatch(line)
		if m == nil {
			return nil, fmt.Errorf("%s: %q is neither a comment nor an option", path, line)
		}
		if _, ok := known[m[1]]; !ok {
			return nil, fmt.Errorf("%s: unknown option %q", path, m[1])
		}
		c.options[m[1]] = append(c.options[m[1]], m[2])
	}
	return c, nil
}

// one returns an option's only value.
func (c *testCase) one(name string) string {
	if v := c.options[name]; len(v) > 0 {
		return v[0]
	}
	return known[name]
}

// expected are the files of a case that are no input.
func expected(name string) bool { return name == "stderr" || name == "termination" || name == "result" }

func (c *testCase) section(name string) string {
	for _, f := range c.archive.Files {
		if f.Name == name {
			return string(f.Data)
		}
	}
	return ""
}

// update rewrites the case with what was said.
func (c *testCase) update(got said) error {
	c.set("stderr", got.stderr)
	c.set("termination", got.termination)
	if line := "exit: " + strconv.Itoa(got.exit); got.exit != 1 && c.options["exit"] == nil {
		c.archive.Comment = append(c.archive.Comment, line+"\n"...)
	} else {
		c.archive.Comment = exitLine.ReplaceAll(c.archive.Comment, []byte(line))
	}
	c.options["exit"] = []string{strconv.Itoa(got.exit)}
	return os.WriteFile(c.path, txtar.Format(c.archive), 0o644)
}

func (c *testCase) set(name, data string) {
	for i := range c.archive.Files {
		if c.archive.Files[i].Name == name {
			c.archive.Files[i].Data = []byte(data)
			return
		}
	}
	if data != "" {
		c.archive.Files = append(c.archive.Files, txtar.File{Name: name, Data: []byte(data)})
	}
}

// A place is a case laid out in a directory.
type place struct {
	*testCase
	w     *world
	dir   string // holds context, home and out
	front string // host:port of the faulty registry
}

// lay writes a case's files, starts its faulty registry and plants what no text
// can hold.
func (w *world) lay(t *testing.T, c *testCase) *place {
	t.Helper()
	p := &place{testCase: c, w: w, dir: t.TempDir()}
	if f := c.one("front"); f != "" {
		p.front = startFront(t, f, w.Registry)
	}
	for _, d := range []string{"context", "home", "out"} {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range c.archive.Files {
		if expected(f.Name) {
			continue
		}
		path := filepath.Join(p.dir, "context", f.Name)
		if rest, ok := strings.CutPrefix(f.Name, "@"); ok {
			path = filepath.Join(p.dir, rest)
		}
		if err := writeFile(path, p.expand(string(f.Data)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range c.options["prepare"] {
		prepare(t, p, name)
	}
	return p
}

// expand puts addresses and paths in the place of the names that cases use.
func (p *place) expand(s string) string {
	s = strings.ReplaceAll(s, "base.test", p.w.Registry)
	s = strings.ReplaceAll(s, "front.test", p.front)
	return strings.ReplaceAll(s, "$WORK", p.dir)
}

// A rule makes text of one run equal to that of another. Nothing else is
// normalized.
type rule struct {
	find    *regexp.Regexp
	replace string
}

var rules = []rule{
	{regexp.MustCompile(`sha256:[0-9a-f]{64}`), "sha256:DIGEST"},
	// Ports, of servers in the test and of connections to them.
	{regexp.MustCompile(`127\.0\.0\.1:[0-9]{4,5}`), "127.0.0.1:PORT"},
	// Durations.
	{regexp.MustCompile(`\b(after|in) [0-9.]+ ?(µs|ms|s)\b`), "$1 TIME"},
	// Memory used, which differs from run to run; limits do not.
	{regexp.MustCompile(`\bused (at most )?[0-9]+\b`), "used ${1}N"},
	{regexp.MustCompile(`\bhako [0-9]+\b`), "hako N"},
	// How far a file that changes had been read, and temporary files.
	{regexp.MustCompile(`[0-9]+ bytes now`), "N bytes now"},
	{regexp.MustCompile(`/run/[0-9]+/tmp/w[0-9]+`), "/run/N/tmp/wN"},
	{regexp.MustCompile(`/work/kept/[0-9a-f]{12}\b`), "/work/kept/DIGEST"},
	{regexp.MustCompile(`\.image\.tar\.[0-9]+`), ".image.tar.N"},
	// Free space of the machine's own disks.
	{regexp.MustCompile(`[0-9.]+ [kMGT]?B free`), "SPACE free"},
	{regexp.MustCompile(`/\.hako-[0-9]+-[0-9a-f]+`), "/.hako-ID"},
}

func (p *place) normalize(s string) string {
	s = strings.ReplaceAll(s, p.dir, "$$WORK")
	s = strings.ReplaceAll(s, "$$WORK", "$WORK")
	s = strings.ReplaceAll(s, p.w.Registry, "base.test")
	if p.front != "" {
		s = strings.ReplaceAll(s, p.front, "front.test")
	}
	for _, r := range rules {
		s = r.find.ReplaceAllString(s, r.replace)
	}
	return s
}

// rewrite writes the Dockerfile again, after the front's name has changed.
func (p *place) rewrite(t *testing.T) {
	t.Helper()
	if err := writeFile(filepath.Join(p.dir, "context", "Dockerfile"), p.expand(p.section("Dockerfile")), 0o644); err != nil {
		t.Fatal(err)
	}
}
