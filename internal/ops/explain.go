// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"hako/internal/source"
	"hako/internal/tree"
)

// ContextFacts are what messages say of a build context.
type ContextFacts struct {
	Where      string // such as dir:///workspace
	IgnoreName string // of its ignore file, "" if there is none
	IgnoreText []byte
}

// A MissingError is returned for what a command requires and nobody gave: a
// secret or an ssh agent.
type MissingError struct{ What, Remedy string }

func (e *MissingError) Error() string { return e.What + " was not given" }

// Explain tells how to give it.
func (e *MissingError) Explain() string { return " try     " + e.Remedy }

// A view is the part of a build context that one source shows.
type view struct {
	name string
	fs   *source.LocalFS
	opt  source.LocalOptions
}

// remember notes that fsys, which ops are given, shows the part local of a context.
func (in *Interpreter) remember(name string, fsys tree.FS, local *source.LocalFS, opt source.LocalOptions) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.views[fsys] = view{name: name, fs: local, opt: opt}
}

// Explain tells where the path was looked for, and what is like it there.
func (e *NotFoundError) Explain() string { return e.more }

// explain finds out more about a path that was not found.
func (in *Interpreter) explain(ctx context.Context, err error) {
	e, ok := errors.AsType[*NotFoundError](err)
	if !ok || e.in == nil || e.more != "" {
		return
	}
	in.mu.Lock()
	v, ok := in.views[e.in]
	in.mu.Unlock()
	if ok {
		e.more = in.explainContext(ctx, v, e.Path)
		return
	}
	e.more = fmt.Sprintf(" why     %q is not in the stage or image that --from names", e.Path)
	var near []string
	for _, p := range source.Near(ctx, e.in, e.Path) {
		near = append(near, "/"+p)
	}
	if len(near) > 0 {
		e.more += "\n near    " + strings.Join(near, ", ")
	}
	e.more += "\n try     the path as the stage has it: relative ones begin at its /, not at its WORKDIR"
}

// explainContext tells why p is not in what the build sees of a context.
func (in *Interpreter) explainContext(ctx context.Context, v view, p string) string {
	facts := ContextFacts{}
	if in.opt.About != nil {
		facts = in.opt.About(v.name)
	}
	where := "the build context"
	if v.name != "context" {
		where = fmt.Sprintf("the build context %q", v.name)
	}
	if facts.Where != "" {
		where += " (" + facts.Where + ")"
	}
	if facts.IgnoreName == "" {
		facts.IgnoreName = "the ignore file"
	}
	p = strings.TrimPrefix(p, "/")
	a := v.fs.Explain(ctx, v.opt, facts.IgnoreText, p)
	if a.Exists && a.Pattern != "" {
		return fmt.Sprintf(" why     %q is in %s, but %s leaves it out\n try     add the line \"!%s\" after it",
			p, where, facts.rule(a.Pattern, a.Line), p)
	}
	s := fmt.Sprintf(" why     %q is not in %s", p, where)
	for _, n := range a.Near {
		s += "\n near    " + n.Path
		if n.Pattern != "" {
			s += ", which " + facts.rule(n.Pattern, n.Line) + " leaves out"
		}
	}
	if len(a.Near) == 0 {
		s += "\n try     paths are relative to the context's root: is it the directory you mean?"
	}
	return s
}

// rule names a pattern of the ignore file.
func (f ContextFacts) rule(pattern string, line int) string {
	if line == 0 {
		return fmt.Sprintf("%s (%q)", f.IgnoreName, pattern)
	}
	return fmt.Sprintf("%s line %d (%q)", f.IgnoreName, line, pattern)
}
