// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Base is an image that a Dockerfile names.
type Base struct {
	Ref      string
	Platform ocispecs.Platform
}

// Bases lists the images that the stages of a Dockerfile begin with, and those
// that it copies or mounts from, each once. Names of stages are none, nor is
// scratch. args are build arguments.
func Bases(dockerfile []byte, args map[string]string, build, target ocispecs.Platform) ([]Base, error) {
	ast, err := parser.Parse(bytes.NewReader(dockerfile))
	if err != nil {
		return nil, err
	}
	stages, meta, err := instructions.Parse(ast.AST, nil)
	if err != nil {
		return nil, err
	}
	f := &baseFinder{lex: shell.NewLex(ast.EscapeToken), target: target}
	if err := f.arguments(meta, args, build); err != nil {
		return nil, err
	}
	for i := range stages {
		if err := f.stage(&stages[i]); err != nil {
			return nil, err
		}
	}
	return f.list, nil
}

type baseFinder struct {
	lex    *shell.Lex
	env    baseArgs
	target ocispecs.Platform
	names  []string // of the stages so far; "" if it has none
	list   []Base
}

// baseArgs are what FROM may refer to.
type baseArgs map[string]string

// Get implements shell.EnvGetter.
func (a baseArgs) Get(key string) (string, bool) { v, ok := a[key]; return v, ok }

// Keys implements shell.EnvGetter.
func (a baseArgs) Keys() []string { return slices.Sorted(maps.Keys(a)) }

// arguments reads what stands before the first FROM.
func (f *baseFinder) arguments(meta []instructions.ArgCommand, args map[string]string, build ocispecs.Platform) error {
	f.env = baseArgs{"TARGETSTAGE": "default"}
	for prefix, p := range map[string]ocispecs.Platform{"BUILD": build, "TARGET": f.target} {
		f.env[prefix+"PLATFORM"] = platforms.FormatAll(p)
		f.env[prefix+"OS"], f.env[prefix+"ARCH"], f.env[prefix+"VARIANT"] = p.OS, p.Architecture, p.Variant
	}
	for k := range f.env {
		if v, ok := args[k]; ok {
			f.env[k] = v
		}
	}
	for _, cmd := range meta {
		for _, a := range cmd.Args {
			v, given := args[a.Key]
			switch {
			case given:
			case a.Value == nil:
				continue // it stays what it was, if it was anything
			default:
				var err error
				if v, _, err = f.lex.ProcessWord(*a.Value, f.env); err != nil {
					return parser.WithLocation(err, cmd.Location())
				}
			}
			f.env[a.Key] = v
		}
	}
	return nil
}

func (f *baseFinder) stage(st *instructions.Stage) error {
	ref, _, err := f.lex.ProcessWord(st.BaseName, f.env)
	if err == nil && ref == "" {
		err = fmt.Errorf("base name (%s) should not be blank", st.BaseName)
	}
	platform := f.target
	if err == nil && st.Platform != "" {
		var p string
		if p, _, err = f.lex.ProcessWord(st.Platform, f.env); err == nil {
			platform, err = platforms.Parse(p)
		}
	}
	if err != nil {
		return parser.WithLocation(err, st.Location)
	}
	f.add(ref, platforms.Normalize(platform))
	for _, cmd := range st.Commands {
		switch c := cmd.(type) {
		case *instructions.CopyCommand:
			f.add(c.From, f.target)
		case *instructions.RunCommand:
			same := func(word string) (string, error) { return word, nil }
			if err := c.Expand(same); err != nil {
				return parser.WithLocation(err, c.Location())
			}
			for _, m := range instructions.GetMounts(c) {
				f.add(m.From, f.target)
			}
		}
	}
	f.names = append(f.names, st.Name)
	return nil
}

// add notes an image, if ref is the name of one.
func (f *baseFinder) add(ref string, p ocispecs.Platform) {
	if ref == "" || ref == "scratch" || ref == "context" || strings.Contains(ref, "$") {
		return
	}
	if n, err := strconv.Atoi(ref); err == nil && n >= 0 && n <= len(f.names) {
		return
	}
	isName := func(name string) bool { return name != "" && strings.EqualFold(name, ref) }
	if slices.ContainsFunc(f.names, isName) {
		return
	}
	b := Base{Ref: ref, Platform: p}
	if !slices.ContainsFunc(f.list, func(o Base) bool {
		return o.Ref == ref && platforms.FormatAll(o.Platform) == platforms.FormatAll(p)
	}) {
		f.list = append(f.list, b)
	}
}
