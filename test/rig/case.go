// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/txtar"
)

// DefaultEpoch is the SOURCE_DATE_EPOCH of a case that sets none.
const DefaultEpoch = "1700000000"

// A Case is one Dockerfile with its context, its options and what is expected
// of both builders. Its form as a txtar file is described in
// test/conformance/README.md.
type Case struct {
	Name string
	// Rows are the semantics rows that the case covers.
	Rows []string
	// Error, if set, says that both builds must fail and that hako's message
	// matches it.
	Error *regexp.Regexp
	// Differences are the entries of docs/differences.md that the case shows.
	Differences []Listed
	// Except are files whose difference counts for nothing.
	Except []Exception
	// OneID says that the case needs no id but one, and so must do without
	// subordinate ones.
	OneID bool
	// Options are the build's options, by name, each with its values in order.
	Options map[string][]string

	archive *txtar.Archive
}

// A Listed difference is one that docs/differences.md tells of: hako must
// refuse the case with the words, or, without words, make another image.
type Listed struct {
	Sandbox Sandbox
	Entry   string // of docs/differences.md: a number, or Namespaces
	Words   *regexp.Regexp
}

// Namespaces stands for what docs/differences.md says of user namespaces.
const Namespaces = "namespaces"

// An Exception is a set of paths of which it is known why no two builds of a
// case agree on them, whoever makes them.
type Exception struct {
	Path *regexp.Regexp
	Why  string
}

var (
	optionLine = regexp.MustCompile(`^([a-z][a-z-]*):\s*(.*)$`)
	runLine    = regexp.MustCompile(`(?mi)^\s*(onbuild\s+)?run[\s\\]`)
)

// ReadCases reads every case of a directory, in the order of their names.
func ReadCases(dir string) ([]*Case, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil {
		return nil, err
	}
	var cases []*Case
	for _, path := range paths {
		c, err := readCase(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		cases = append(cases, c)
	}
	return cases, nil
}

func readCase(path string) (*Case, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c := &Case{
		Name:    strings.TrimSuffix(filepath.Base(path), ".txtar"),
		Options: map[string][]string{},
		archive: txtar.Parse(data),
	}
	for line := range strings.Lines(string(c.archive.Comment)) {
		m := optionLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m == nil {
			continue
		}
		if err := c.option(m[1], m[2]); err != nil {
			return nil, err
		}
	}
	if len(c.Rows) == 0 {
		return nil, fmt.Errorf("no rows: line")
	}
	return c, nil
}

func (c *Case) option(name, value string) (err error) {
	switch name {
	case "rows":
		c.Rows = append(c.Rows, strings.Fields(value)...)
	case "error":
		c.Error, err = regexp.Compile(value)
	case "difference":
		return c.difference(value)
	case "except":
		return c.except(value)
	case "ids":
		if c.OneID = value == "one"; !c.OneID {
			return fmt.Errorf("ids: %q: there is one", value)
		}
	case "build-arg", "target", "platform", "label", "annotation", "context", "secret", "ssh", "epoch", "dockerfile",
		"add-host", "call", "allow", "shm-size", "ulimit", "no-cache", "network", "rewrite-timestamp":
		c.Options[name] = append(c.Options[name], value)
	default:
		return fmt.Errorf("unknown option %q", name)
	}
	return err
}

// difference reads "SANDBOX ENTRY [REGEXP]".
func (c *Case) difference(value string) (err error) {
	words := strings.SplitN(value, " ", 3)
	if len(words) < 2 || !slices.Contains(Sandboxes(), Sandbox(words[0])) {
		return fmt.Errorf("difference %q: want SANDBOX ENTRY [REGEXP]", value)
	}
	d := Listed{Sandbox: Sandbox(words[0])}
	if d.Entry = words[1]; d.Entry != Namespaces {
		if _, err := strconv.Atoi(d.Entry); err != nil {
			return fmt.Errorf("difference %q: %w", value, err)
		}
	}
	if len(words) == 3 {
		if d.Words, err = regexp.Compile(words[2]); err != nil {
			return fmt.Errorf("difference %q: %w", value, err)
		}
	}
	c.Differences = append(c.Differences, d)
	return nil
}

// except reads "REGEXP | WHY"; the expression has to match a whole path.
func (c *Case) except(value string) error {
	path, why, ok := strings.Cut(value, " | ")
	if !ok {
		return fmt.Errorf("except %q: want REGEXP | WHY", value)
	}
	re, err := regexp.Compile("^(?:" + path + ")$")
	if err != nil {
		return fmt.Errorf("except %q: %w", value, err)
	}
	c.Except = append(c.Except, Exception{Path: re, Why: why})
	return nil
}

// Listed returns the difference that the case shows in a sandbox, if any.
func (c *Case) Listed(s Sandbox) *Listed {
	for i := range c.Differences {
		if c.Differences[i].Sandbox == s {
			return &c.Differences[i]
		}
	}
	return nil
}

// Call is what is asked of the Dockerfile instead of building it; empty for a
// build.
func (c *Case) Call() string {
	if v := c.Options["call"]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Mentions says whether a file of the case holds text.
func (c *Case) Mentions(text string) bool {
	return slices.ContainsFunc(c.archive.Files, func(f txtar.File) bool { return strings.Contains(string(f.Data), text) })
}

// HasRun says whether the case runs commands, and so needs a place to run them.
func (c *Case) HasRun() bool {
	for _, f := range c.archive.Files {
		if strings.Contains(strings.ToLower(f.Name), "dockerfile") && runLine.Match(f.Data) {
			return true
		}
	}
	return false
}

// Epoch is the SOURCE_DATE_EPOCH of the case, empty if it asks for none.
func (c *Case) Epoch() string {
	switch e := c.Options["epoch"]; {
	case len(e) == 0:
		return DefaultEpoch
	case e[0] == "none":
		return ""
	default:
		return e[0]
	}
}

// dockerfile returns where the Dockerfile is, as directory and name within the
// case's files. A value beginning with @ lies outside the context.
func (c *Case) dockerfile() (dir, name string) {
	f := "Dockerfile"
	if v := c.Options["dockerfile"]; len(v) > 0 {
		f = v[0]
	}
	if rest, ok := strings.CutPrefix(f, "@"); ok {
		dir, name, _ = strings.Cut(rest, "/")
		return dir, name
	}
	return contextDir, f
}

// contexts returns the named contexts in the order of their names; a value
// beginning with @ is a directory of the case.
func (c *Case) contexts(r *Rig) (names []string, values map[string]string) {
	values = map[string]string{}
	for _, v := range c.Options["context"] {
		name, value, _ := strings.Cut(v, "=")
		values[r.Address(name)] = r.Address(value)
	}
	return slices.Sorted(maps.Keys(values)), values
}
