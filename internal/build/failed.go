// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"hako/internal/ops"
	"hako/internal/tree"
)

// A FailedError is a build without a result, and what it left behind.
type FailedError struct {
	Err error
	// Pushing is set if the build was to push; Pushed are the references that
	// were set before it failed.
	Pushing bool
	Pushed  []string
	// Kept tells, a line each, where the images are that could not be pushed and
	// how to push them.
	Kept []string
	// Moved is set if the container's files were moved away, Back if they are
	// back as they were.
	Moved, Back bool
}

func (e *FailedError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *FailedError) Unwrap() error { return e.Err }

// KeptLines returns Kept.
func (e *FailedError) KeptLines() []string { return e.Kept }

// State tells what the build left.
func (e *FailedError) State() string {
	var parts []string
	switch {
	case len(e.Pushed) > 0:
		parts = append(parts, "pushed before the failure: "+strings.Join(e.Pushed, ", "))
	case e.Pushing:
		parts = append(parts, "nothing was pushed")
	}
	switch {
	case e.Moved && e.Back:
		parts = append(parts, "this container's files are back as they were")
	case e.Moved:
		parts = append(parts, "this container's files are NOT all back: hako restore tries again")
	}
	return strings.Join(parts, "; ")
}

// failed adds to an error what the build has left. closing is what went wrong
// while everything was given back.
func (b *build) failed(err, closing error) error {
	e := &FailedError{Err: err, Back: closing == nil}
	if b.room != nil {
		e.Moved = b.room.moved
	}
	if b.cache != nil {
		if n, place := b.cache.Kept(); n > 0 {
			steps := "steps"
			if n == 1 {
				steps = "step"
			}
			e.Kept = append(e.Kept, fmt.Sprintf("the results of %d %s are in the cache %s: the next build goes on from there", n, steps, place))
		}
	}
	if b.outputs != nil {
		e.Pushing, e.Kept = len(b.outputs.tags()) > 0, append(e.Kept, b.outputs.kept...)
		for _, p := range b.outputs.pushed {
			e.Pushed = append(e.Pushed, p.Ref)
		}
	}
	return e
}

// ignoreSuffix ends the name of an ignore file: of the context's, and of the
// one that belongs to a Dockerfile.
const ignoreSuffix = ".dockerignore"

// about describes a context for messages.
func (c *contexts) about(name string) (facts ops.ContextFacts) {
	if name == localContext {
		facts.Where = c.dir
		if abs, err := filepath.Abs(c.dir); err == nil && c.remote == nil {
			facts.Where = "dir://" + abs
		}
		facts.IgnoreName = c.filename + ignoreSuffix
		if facts.IgnoreText = readSmall(c.locals[localDockerfile], facts.IgnoreName); facts.IgnoreText != nil {
			return facts
		}
	}
	facts.IgnoreName = ignoreSuffix
	facts.IgnoreText = readSmall(c.locals[name], ignoreSuffix)
	return facts
}

func readSmall(fsys tree.FS, name string) []byte {
	if fsys == nil {
		return nil
	}
	rc, err := fsys.Open(name)
	if err != nil {
		return nil
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, 1<<20))
	if err != nil {
		return nil
	}
	return b
}
