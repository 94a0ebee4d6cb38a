// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"hako/internal/tree"
)

// An Outcome is what became of one step.
type Outcome struct {
	Step Step
	Hit  bool
	Why  string    // of a miss
	Size int64     // of the layer that was found, compressed
	Made time.Time // when it was made
}

// Outcomes returns what became of the steps so far, in the order of their lines.
func (c *Cache) Outcomes() []Outcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := slices.Clone(c.outcomes)
	slices.SortStableFunc(list, func(a, b Outcome) int { return a.Step.Line - b.Step.Line })
	return list
}

// Missed says in a few words why s was not found, compared with the most similar
// earlier one of the same step.
func (c *Cache) Missed(ctx context.Context, s *Step) string {
	select {
	case <-c.loaded:
	case <-ctx.Done():
		return ""
	}
	why := c.why(ctx, s)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcomes = append(c.outcomes, Outcome{Step: *s, Why: why})
	return why
}

// Skipped notes a step that need not be looked for, as what became of it was found.
func (c *Cache) Skipped(s *Step) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.outcomes = append(c.outcomes, Outcome{Step: *s, Hit: true})
}

func (c *Cache) why(ctx context.Context, s *Step) string {
	if s.NoCache {
		return "it is to be done anew (--no-cache)"
	}
	im, r := c.similar(s)
	if r == nil {
		return c.whyNothing()
	}
	if reasons := c.differences(ctx, im, r, s); len(reasons) > 0 {
		return strings.Join(reasons, "; ")
	}
	if c.isOld(r) {
		return fmt.Sprintf("what it made on %s is older than the cache's time to live", r.Made.Format("2006-01-02 15:04"))
	}
	return "its inputs could not be named before they were there"
}

func (c *Cache) whyNothing() string {
	read, records := 0, 0
	for _, im := range c.imports {
		if im.doc != nil {
			read++
			records += len(im.doc.Records)
		}
	}
	switch {
	case len(c.imports) == 0:
		return "no cache is read"
	case read == 0:
		return "the cache could not be read"
	case records == 0:
		return "the cache has nothing of this Dockerfile yet"
	}
	return "no earlier build had this step"
}

// place tells which step of a Dockerfile s is, whatever its number of steps:
// "[build 4/5] COPY . ." is "Dockerfile build 4".
func (s *Step) place() string {
	_, rest, ok := strings.Cut(s.Name, "[")
	where, _, ok2 := strings.Cut(rest, "]")
	if !ok || !ok2 {
		return s.File
	}
	where, _, _ = strings.Cut(where, "/")
	return s.File + " " + where
}

// similar returns the record that has most in common with s, of those of the same
// step or the same text; of several the youngest.
func (c *Cache) similar(s *Step) (*imported, *record) {
	place := s.place()
	var (
		best  *record
		from  *imported
		score = -1
	)
	for _, im := range c.imports {
		if im.doc == nil {
			continue
		}
		for i := range im.doc.Records {
			r := &im.doc.Records[i]
			n, sameText := r.common(s)
			if r.Step != place && !sameText {
				continue
			}
			if r.Step == place {
				n += 2
			}
			if n > score || n == score && r.Made.After(best.Made) {
				best, from, score = r, im, n
			}
		}
	}
	return from, best
}

// common counts the parts that r and s have in common.
func (r *record) common(s *Step) (n int, sameText bool) {
	for _, p := range s.Parts {
		d := r.part(p.Kind, p.Name)
		if d == nil || d.Mac != r.macOf(p.Value) {
			continue
		}
		n++
		if p.Kind == partText {
			sameText = true
		}
	}
	return n, sameText
}

func (r *record) macOf(value string) string {
	if value == "" {
		return ""
	}
	return r.mac(value)
}

func (r *record) part(kind, name string) *docPart {
	for i := range r.Parts {
		if p := &r.Parts[i]; p.Kind == kind && p.Name == name {
			return p
		}
	}
	return nil
}

// The kinds of parts, as the solver calls them.
const (
	partText    = "text"
	partBase    = "base"
	partEnv     = "env"
	partOp      = "op"
	partFiles   = "files"
	partInput   = "input"
	partOptions = "options"
)

// differences lists what is not the same as in r, the most telling first.
func (c *Cache) differences(ctx context.Context, im *imported, r *record, s *Step) []string {
	changed := map[string][]Part{} // by kind
	for _, p := range s.Parts {
		if d := r.part(p.Kind, p.Name); d == nil || d.Mac != r.macOf(p.Value) {
			changed[p.Kind] = append(changed[p.Kind], p)
		}
	}
	var reasons []string
	add := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	if len(changed[partText]) > 0 {
		add("the instruction was %q", Clip(r.text(), 60))
	}
	for _, p := range changed[partBase] {
		add("the image %s is another one now", p.Name)
	}
	if names := r.variables(s, changed[partEnv]); len(names) > 0 {
		add("%s", strings.Join(names, ", "))
	}
	for _, p := range changed[partFiles] {
		add("%s", c.changedFiles(ctx, im, r, p))
	}
	if len(changed[partOp]) > 0 && len(changed[partText]) == 0 {
		add("%s", whyOp(s))
	}
	if len(changed[partOptions]) > 0 {
		add("times, compression or the format of layers are others now")
	}
	if len(reasons) > 0 {
		return reasons // what its input is may be nothing but a consequence
	}
	for _, p := range changed[partInput] {
		add("its input changed: %s", Clip(p.Name, 60))
	}
	return reasons
}

// text returns the instruction that r came from.
func (r *record) text() string {
	for _, p := range r.Parts {
		if p.Kind == partText {
			return p.Name
		}
	}
	return ""
}

// variables tells which variables changed, are new or gone.
func (r *record) variables(s *Step, changed []Part) []string {
	var out []string
	for _, p := range changed {
		if r.part(partEnv, p.Name) == nil {
			out = append(out, p.Name+" is new")
		} else {
			out = append(out, p.Name+" changed")
		}
	}
	for _, d := range r.Parts {
		same := func(p Part) bool { return p.Kind == partEnv && p.Name == d.Name }
		if d.Kind == partEnv && !slices.ContainsFunc(s.Parts, same) {
			out = append(out, d.Name+" is gone")
		}
	}
	return out
}

// whyOp names the variables that an unchanged instruction uses: what they stand
// for is all that can have changed.
func whyOp(s *Step) string {
	var names []string
	for _, m := range regexp.MustCompile(`\$\{?([A-Za-z_][A-Za-z0-9_]*)`).FindAllStringSubmatch(s.Text, -1) {
		if name := "$" + m[1]; !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "settings from other lines or flags (USER, WORKDIR, SHELL, --network, …) changed"
	}
	return "what " + strings.Join(names, ", ") + " stands for changed"
}

// Clip shortens a text to one line of so many letters.
func Clip(s string, most int) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// fileLines are what is kept of a list of files.
func fileLines(files []tree.SelectedFile) []string {
	lines := make([]string, 0, len(files))
	for _, f := range files {
		lines = append(lines, shortSum(f)+" "+f.Path)
	}
	return lines
}

func shortSum(f tree.SelectedFile) string { return f.Digest.Encoded()[:16] }

// changedFiles names what changed of what is read of a directory.
func (c *Cache) changedFiles(ctx context.Context, im *imported, r *record, p Part) string {
	old, err := c.filesOf(ctx, im, r.part(partFiles, p.Name))
	if err != nil || old == nil {
		return "what it reads of " + p.Name + " changed"
	}
	var out []string
	for _, f := range p.Files {
		switch sum, ok := old[f.Path]; {
		case !ok:
			out = append(out, shownPath(f.Path)+" is new")
		case sum != shortSum(f):
			out = append(out, shownPath(f.Path)+" changed")
		}
		delete(old, f.Path)
	}
	for _, path := range slices.Sorted(maps.Keys(old)) {
		out = append(out, shownPath(path)+" is gone")
	}
	out = slices.DeleteFunc(out, func(s string) bool { return strings.HasPrefix(s, "/ ") && len(out) > 1 })
	const most = 4
	switch {
	case len(out) == 0:
		return "how " + p.Name + " is read changed"
	case len(out) > most:
		return strings.Join(out[:most], ", ") + fmt.Sprintf(" and %d more", len(out)-most)
	}
	return strings.Join(out, ", ")
}

func shownPath(p string) string {
	if p == "" {
		return "/"
	}
	return p
}

// filesOf reads a list of files; nil if there is none.
func (c *Cache) filesOf(ctx context.Context, im *imported, d *docPart) (map[string]string, error) {
	switch {
	case d == nil:
		return nil, nil //nolint:nilnil // as said
	case len(d.Files) > 0:
		return unpackFiles(d.Files)
	case d.Blob == nil:
		return nil, nil //nolint:nilnil // as said
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second) // it is only for a message
	defer cancel()
	rc, err := openVerified(ctx, im.Blob(d.Blob.descriptor()), *d.Blob)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		return nil, err
	}
	return unpackFiles(b)
}
