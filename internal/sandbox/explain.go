// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"strings"
	"time"
)

// Explain tells how the command ended and what would help.
func (e *ExitError) Explain() string {
	switch {
	case e.OOM:
		return e.explainOOM()
	case e.DiskFull:
		return " disk    / was full when it ended; its files are gone again\n try     more ephemeral-storage for this container, or a RUN that removes what it no longer needs"
	case e.Signal != 0:
		s := fmt.Sprintf(" killed by signal %d (%s) after %s", e.Signal, signalName(e.Signal), e.took())
		if e.Signal == 9 {
			s += "; not by this container's memory limit"
		}
		return s
	case e.Code == 127:
		return " why     127 is what a shell says of a command that it cannot find\n try     install it in this stage, or check PATH"
	case e.Code == 126:
		return " why     126 is what a shell says of a file that it may not execute\n try     chmod +x, or a base of this platform"
	case e.Code == 137:
		return fmt.Sprintf(" why     137 is what a shell says of a command killed by signal 9, after %s; not by this container's memory limit", e.took())
	case e.OneID:
		return " why     if it says \"Invalid argument\" or \"Operation not permitted\" of an owner or a group: one user id is mapped here\n try     " + moreIDs
	}
	return ""
}

// moreIDs is how an ordinary user gets the ids that images need.
const moreIDs = "give this user subordinate ids: lines in /etc/subuid and /etc/subgid, and the programs newuidmap and newgidmap (package uidmap)"

// NotMapped returns the error of something that needs ids which an ordinary user does
// not have.
func NotMapped(what string) error {
	return &UnsupportedError{What: what, Why: "only one user id is mapped here", Remedy: moreIDs}
}

func (e *ExitError) explainOOM() string {
	s := fmt.Sprintf(" killed by signal 9 after %s: out of memory.", e.took())
	if e.Limit == 0 {
		return s + "\n try     a higher resources.limits.memory"
	}
	s += fmt.Sprintf(" The container's limit is %d MiB; the step used %d", e.Limit>>20, e.PeakRSS>>20)
	if own := ownMemory(); own > 0 {
		s += fmt.Sprintf(", hako %d", own>>20)
	}
	return s + ".\n try     resources.limits.memory: " + quantity(2*e.Limit)
}

// quantity writes bytes as Kubernetes does.
func quantity(n int64) string {
	if n%(1<<30) == 0 {
		return fmt.Sprintf("%dGi", n>>30)
	}
	return fmt.Sprintf("%dMi", n>>20)
}

func (e *ExitError) took() string {
	if e.Took < time.Second {
		return fmt.Sprintf("%d ms", e.Took.Milliseconds())
	}
	return fmt.Sprintf("%.0f s", e.Took.Seconds())
}

// Explain tells why and what to do instead.
func (e *UnsupportedError) Explain() string {
	var lines []string
	if e.Why != "" {
		lines = append(lines, " why     "+e.Why)
	}
	if e.Remedy != "" {
		lines = append(lines, " try     "+e.Remedy)
	}
	return strings.Join(lines, "\n")
}
