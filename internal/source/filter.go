// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/moby/patternmatcher"

	"hako/internal/tree"
)

// maxVerdicts bounds how many directories a filter remembers.
const maxVerdicts = 4096

// A filter decides what of a tree is seen. It gives for single paths the answer
// that fsutil's walk over the whole tree gives: patterns are matched from the
// root downwards with each directory's results handed to what it holds, and
// a directory that no pattern can want anything of is not entered, by the same
// rule as in fsutil's NewFilterFS.
type filter struct {
	base             tree.FS
	include, exclude *patternmatcher.PatternMatcher
	prefixIncludes   bool // no include pattern has wildcards, but for a last /* or /**
	prefixExceptions bool // same for the "!" patterns among the excludes

	mu       sync.Mutex // the matchers compile on first use, and the map
	verdicts map[string]verdict
}

// A verdict is what the patterns say of one path.
type verdict struct {
	kept       bool // matches
	pruned     bool // a directory whose content is not looked at
	include    patternmatcher.MatchInfo
	exclude    patternmatcher.MatchInfo
	holds      bool // something below is kept; valid if holdsKnown
	holdsKnown bool
}

func newFilter(base tree.FS, opt LocalOptions) (*filter, error) {
	includes := slices.Clone(opt.IncludePatterns)
	if len(opt.FollowPaths) > 0 {
		targets, err := followLinks(base, opt.FollowPaths)
		if err != nil {
			return nil, err
		}
		if targets != nil {
			includes = dropBelow(append(includes, targets...))
		}
	}
	f := &filter{base: base, prefixIncludes: true, prefixExceptions: true, verdicts: map[string]verdict{}}
	var err error
	if len(includes) > 0 {
		if f.include, err = patternmatcher.New(includes); err != nil {
			return nil, fmt.Errorf("include patterns %q: %w", includes, err)
		}
		f.prefixIncludes = onlyPrefixes(f.include, false)
	}
	if len(opt.ExcludePatterns) > 0 {
		if f.exclude, err = patternmatcher.New(opt.ExcludePatterns); err != nil {
			return nil, fmt.Errorf("ignore patterns %q: %w", opt.ExcludePatterns, err)
		}
		f.prefixExceptions = onlyPrefixes(f.exclude, true)
	}
	return f, nil
}

// onlyPrefixes reports whether the patterns, of those that are exceptions or of
// those that are not, have wildcards nowhere but at their end.
func onlyPrefixes(pm *patternmatcher.PatternMatcher, exceptions bool) bool {
	special := `*[]?^`
	if runtime.GOOS != "windows" {
		special += `\`
	}
	for _, p := range pm.Patterns() {
		if p.Exclusion() == exceptions && strings.ContainsAny(patternPrefix(p), special) {
			return false
		}
	}
	return true
}

// patternPrefix returns a pattern without a last "/**" and then a last "/*".
func patternPrefix(p *patternmatcher.Pattern) string {
	sep := string(filepath.Separator)
	return strings.TrimSuffix(strings.TrimSuffix(p.String(), sep+"**"), sep+"*")
}

// reaches reports whether a pattern, of those that are exceptions or of those
// that are not, is for something in the directory at p or for p itself.
func reaches(pm *patternmatcher.PatternMatcher, p string, exceptions bool) bool {
	sep := string(filepath.Separator)
	dir := filepath.FromSlash(p) + sep
	return slices.ContainsFunc(pm.Patterns(), func(pat *patternmatcher.Pattern) bool {
		return pat.Exclusion() == exceptions && strings.HasPrefix(patternPrefix(pat)+sep, dir)
	})
}

// shown reports whether the existing path p is in the view.
func (f *filter) shown(p string, isDir bool) (bool, error) {
	if p == "" || f.include == nil && f.exclude == nil {
		return true, nil
	}
	v, err := f.verdict(p, isDir)
	if err != nil || v.kept {
		return v.kept, err
	}
	if !isDir || v.pruned {
		return false, nil
	}
	return f.holds(p, v)
}

// verdict returns the patterns' opinion of p. For a path in a pruned directory
// it is "pruned".
func (f *filter) verdict(p string, isDir bool) (verdict, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.verdictLocked(p, isDir)
}

func (f *filter) verdictLocked(p string, isDir bool) (verdict, error) {
	if isDir {
		if v, ok := f.verdicts[p]; ok {
			return v, nil
		}
	}
	var (
		parent verdict
		err    error
	)
	if dir := tree.Parent(p); dir != "" {
		if parent, err = f.verdictLocked(dir, true); err != nil {
			return verdict{}, err
		}
	}
	v := verdict{pruned: true}
	if !parent.pruned {
		if v, err = f.judge(p, isDir, parent); err != nil {
			return verdict{}, err
		}
	}
	if isDir {
		f.remember(p, v)
	}
	return v, nil
}

func (f *filter) remember(p string, v verdict) {
	if len(f.verdicts) >= maxVerdicts {
		clear(f.verdicts)
	}
	f.verdicts[p] = v
}

// judge matches p itself, given the verdict on its directory.
func (f *filter) judge(p string, isDir bool, parent verdict) (verdict, error) {
	v := verdict{kept: true}
	if f.include != nil {
		m, info, err := f.include.MatchesUsingParentResults(p, parent.include)
		if err != nil {
			return v, fmt.Errorf("match include patterns with %q: %w", p, err)
		}
		v.include = info
		if !m {
			v.kept = false
			if isDir && f.prefixIncludes && !reaches(f.include, p, false) {
				v.pruned = true
				return v, nil
			}
		}
	}
	if f.exclude == nil {
		return v, nil
	}
	m, info, err := f.exclude.MatchesUsingParentResults(p, parent.exclude)
	if err != nil {
		return v, fmt.Errorf("match ignore patterns with %q: %w", p, err)
	}
	v.exclude = info
	if m {
		v.kept = false
		v.pruned = isDir && f.prefixExceptions && !reaches(f.exclude, p, true)
	}
	return v, nil
}

// holds reports whether anything below the directory p, which is not kept
// itself, is. It looks until it finds the first.
func (f *filter) holds(p string, v verdict) (bool, error) {
	if v.holdsKnown {
		return v.holds, nil
	}
	entries, err := f.base.ReadDir(p)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		entries, err = nil, nil // nobody asked for it
	}
	if err != nil {
		return false, err
	}
	for i := range entries {
		ok, err := f.shown(entries[i].Path, entries[i].Mode.IsDir())
		if err != nil {
			return false, err
		}
		if ok {
			v.holds = true
			break
		}
	}
	v.holdsKnown = true
	f.mu.Lock()
	f.remember(p, v)
	f.mu.Unlock()
	return v.holds, nil
}
