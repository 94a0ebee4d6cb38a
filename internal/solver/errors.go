// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// ErrClosed is returned for what a closed [Solver] did not finish.
var ErrClosed = errors.New("the build was stopped")

// A VertexError is the failure of one step, with its place in the Dockerfile.
type VertexError struct {
	Name   string        // "[build 2/5] RUN make"
	Digest digest.Digest // of the vertex, as in progress events
	File   string        // "Dockerfile"; "" if the step has no line
	Lines  [][2]int      // first and last line of each range, from 1
	Text   []byte        // the whole text of File
	Err    error
}

func newVertexError(v *Vertex, err error) error {
	return &VertexError{Name: v.Name, Digest: v.Digest, File: v.File, Lines: v.Lines, Text: v.Text, Err: err}
}

// Error returns "file:line: name: cause".
func (e *VertexError) Error() string {
	if e.File == "" || len(e.Lines) == 0 {
		return fmt.Sprintf("%s: %v", e.Name, e.Err)
	}
	return fmt.Sprintf("%s:%d: %s: %v", e.File, e.Lines[0][0], e.Name, e.Err)
}

// Unwrap returns the cause.
func (e *VertexError) Unwrap() error { return e.Err }
