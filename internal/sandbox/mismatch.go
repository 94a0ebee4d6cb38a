// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"strings"
)

// A Mismatch is a path at which layers are not the tree they were made from.
type Mismatch struct {
	Path string // absolute
	What string // what differs
}

// A MismatchError is returned when the layers of a root do not give the tree
// that its commands left: hako has made a wrong image, which must not get a name.
type MismatchError struct {
	// After is the last command that ran there.
	After string
	Found []Mismatch // the first ones, in path order
	More  int        // further ones
	// Unnoticed: the kernel did not tell of these changes when they were made.
	Unnoticed bool
}

func (e *MismatchError) Error() string {
	n := len(e.Found) + e.More
	what := "1 path"
	if n != 1 {
		what = fmt.Sprintf("%d paths", n)
	}
	return "internal error: the layers differ from the tree that the commands left, at " + what
}

// Explain names the paths and asks for a report.
func (e *MismatchError) Explain() string {
	var b strings.Builder
	if e.After != "" {
		fmt.Fprintf(&b, " after   %s\n", e.After)
	}
	for _, m := range e.Found {
		fmt.Fprintf(&b, " differs %s: %s\n", m.Path, m.What)
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "         and %d more\n", e.More)
	}
	if e.Unnoticed {
		b.WriteString(" why     the kernel did not tell of this change when a command made it, so it is in no layer; no tag was set and no file written\n")
		b.WriteString(" try     --snapshot-mode=full, with which every file is looked at after each command; and report it, with these lines")
		return b.String()
	}
	b.WriteString(" why     a fault of hako, not of the Dockerfile: the image would be wrong, so no tag was set and no file written\n")
	b.WriteString(" try     report it, with these lines, the Dockerfile and what hako doctor says")
	return b.String()
}
