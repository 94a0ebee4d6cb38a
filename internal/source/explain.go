// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"hako/internal/tree"
)

// An Absence says why a path is not in a build context.
type Absence struct {
	// Pattern is the ignore pattern that leaves the path out, and Line its
	// line in the ignore file; "" and 0 if it is not ignored.
	Pattern string
	Line    int
	// Exists: the directory has the path.
	Exists bool
	// Near are paths that might have been meant, the likeliest first.
	Near []NearPath
}

// A NearPath is a path that exists. Pattern and Line are as in [Absence].
type NearPath struct {
	Path    string
	Pattern string
	Line    int
}

const (
	maxNear     = 3
	maxSearched = 20000 // entries looked at to find near paths
)

// Explain says why p is not in the view. ignoreFile is the text of the ignore
// file that the exclude patterns come from; nil if there is none.
//
// It is for error messages: what cannot be found out is left out.
func (l *LocalFS) Explain(ctx context.Context, opt LocalOptions, ignoreFile []byte, p string) Absence {
	p = tree.Clean(p)
	x := explainer{patterns: opt.ExcludePatterns, file: ignoreFile}
	_, err := l.base.Lstat(p)
	a := Absence{Exists: err == nil}
	a.Pattern, a.Line = x.reason(p)
	for _, q := range nearPaths(ctx, l.base, p) {
		n := NearPath{Path: q}
		n.Pattern, n.Line = x.reason(q)
		a.Near = append(a.Near, n)
	}
	return a
}

// Near returns the paths of a tree that p may have been meant to be, the
// likeliest first.
func Near(ctx context.Context, fsys tree.FS, p string) []string {
	return nearPaths(ctx, fsys, tree.Clean(p))
}

type explainer struct {
	patterns []string
	file     []byte
}

// reason returns the pattern that leaves p out and its line. It is the last one
// that turns the answer from "seen" to "ignored".
func (x explainer) reason(p string) (string, int) {
	found, was := -1, false
	for i := range x.patterns {
		pm, err := patternmatcher.New(x.patterns[:i+1])
		if err != nil {
			return "", 0
		}
		is, err := pm.MatchesOrParentMatches(p)
		if err != nil {
			return "", 0
		}
		if is && !was {
			found = i
		}
		was = is
	}
	if !was || found < 0 {
		return "", 0
	}
	return x.patterns[found], patternLine(x.file, x.patterns, found)
}

// patternLine returns the line of the ignore file that patterns[i] comes from;
// 0 if the patterns are not the file's.
func patternLine(file []byte, patterns []string, i int) int {
	n := 0
	for no, line := range bytes.Split(file, []byte("\n")) {
		if no > 0 {
			// Only a file's first line may have a byte order mark.
			line = append([]byte("\n"), line...)
		}
		got, err := ignorefile.ReadAll(bytes.NewReader(line))
		if err != nil || len(got) != 1 {
			continue
		}
		if n >= len(patterns) || got[0] != patterns[n] {
			return 0
		}
		if n == i {
			return no + 1
		}
		n++
	}
	return 0
}

// nearPaths returns paths of fsys that p may have been meant to be: the same
// name elsewhere, or a similar name in the same directory.
func nearPaths(ctx context.Context, fsys tree.FS, p string) []string {
	type candidate struct {
		path string
		cost int
	}
	var found []candidate
	name, limit, seen := tree.Base(p), max(1, len(tree.Base(p))/3), 0
	err := tree.Walk(ctx, quiet{fsys}, "", func(e tree.Entry) error {
		if seen++; seen > maxSearched {
			return fs.SkipAll
		}
		if e.Path == "" || e.Path == p {
			return nil
		}
		switch d := distance(strings.ToLower(e.Name()), strings.ToLower(name)); {
		case e.Name() == name, d == 0:
			found = append(found, candidate{e.Path, 0})
		case tree.Parent(e.Path) == tree.Parent(p) && d <= limit:
			found = append(found, candidate{e.Path, d})
		}
		return nil
	})
	if err != nil {
		return nil
	}
	slices.SortFunc(found, func(a, b candidate) int {
		return cmp.Or(a.cost-b.cost, strings.Count(a.path, "/")-strings.Count(b.path, "/"), strings.Compare(a.path, b.path))
	})
	var out []string
	for _, c := range found[:min(len(found), maxNear)] {
		out = append(out, path.Clean(c.path))
	}
	return out
}

// quiet hides what may not be read.
type quiet struct{ tree.FS }

func (q quiet) ReadDir(p string) ([]tree.Entry, error) {
	entries, err := q.FS.ReadDir(p)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return entries, err
}

// distance is the number of bytes to insert, delete or replace to make a of b;
// long names are told apart by their beginning.
func distance(a, b string) int {
	const longest = 64
	a, b = a[:min(len(a), longest)], b[:min(len(b), longest)]
	var row [longest + 1]int
	for j := range len(b) + 1 {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := diagonal
			if a[i] != b[j] {
				next = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
