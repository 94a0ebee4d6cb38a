// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package sandbox has the places in which RUN runs: a root file system made of
// layers, a process in it, and what the process changed.
//
// There is one so far, [InPlace]: the container's own / becomes the root, which
// needs no mount and no namespace. What stood there is renamed away (parked)
// and put back at the end, whatever the end is; see park_linux.go.
package sandbox

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net"
	"time"

	"hako/internal/tree"
)

// A MountType is the kind of a RUN --mount.
type MountType int

// The mount types of a Dockerfile.
const (
	Bind MountType = iota
	Cache
	Tmpfs
	Secret
	SSH
)

// A Mount is something that a process sees at a path for as long as it runs.
// None of it gets into the image.
type Mount struct {
	Type MountType
	// Dest is the path in the root, absolute.
	Dest string
	// Tree is what a bind mount shows, or what a new cache begins with; nil is empty.
	Tree tree.FS
	// Selector is the path in Tree, a file or a directory.
	Selector string
	// CacheID names a cache mount; its content lives as long as the work directory.
	CacheID string
	// Private asks for a cache that no other process uses meanwhile.
	Private bool
	// ReadOnly: what the process writes to a cache does not stay in it.
	ReadOnly bool
	// Data is the content of a secret.
	Data []byte
	// Dial connects to the agent of an ssh mount.
	Dial func(ctx context.Context) (net.Conn, error)
	// Mode, UID and GID are a secret's or socket's.
	Mode     tree.Mode
	UID, GID uint32
}

// A Process is a command to run in a root.
type Process struct {
	Args []string
	Env  []string
	// Cwd is made, owned by the user, if it does not exist.
	Cwd string
	// User is "", "name", "uid", "name:group", … as in USER; names are those of the root.
	User       string
	Mounts     []Mount
	ExtraHosts []HostIP
	// ValidExitCodes are the exit codes that count as success; nil means 0.
	ValidExitCodes []int
	Stdin          io.Reader // nil: empty
	Stdout, Stderr io.Writer
}

// A HostIP is a line of /etc/hosts.
type HostIP struct{ Host, IP string }

// A Result is what a process did. Changes is valid until the next Run; Close
// gives up what it reads.
type Result struct {
	Changes iter.Seq2[tree.Change, error]
	Looked  int           // names looked at
	Changed int           // names in Changes but for parents
	Scan    time.Duration // time to find the changes
	PeakRSS int64         // bytes, of the largest process
	// Layers were unpacked for the root this time, compressed Bytes of them, and
	// Waited is how long that kept the command waiting; 0 if the root stood.
	Layers int
	Bytes  int64
	Waited time.Duration

	done func() error
}

// Close ends the reading of Changes.
func (r *Result) Close() error {
	if r.done == nil {
		return nil
	}
	return r.done()
}

// An ExitError is returned when the command ran and failed.
type ExitError struct {
	Code   int // exit code, or 128 + signal as shells count
	Signal int // 0 if it exited by itself
	OOM    bool
	// Limit is the container's memory limit in bytes if OOM, 0 if not known.
	Limit int64
	// PeakRSS is what the largest process of the command used, in bytes.
	PeakRSS int64
	Took    time.Duration
}

func (e *ExitError) Error() string {
	if e.OOM {
		return fmt.Sprintf("out of memory (exit %d)", e.Code)
	}
	if e.Signal != 0 {
		return fmt.Sprintf("killed by signal %d", e.Signal)
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// ExitCode is the status that the whole program exits with.
func (e *ExitError) ExitCode() int { return e.Code }

// An UnsupportedError is returned for what this place cannot honour; it is
// found before anything is run.
type UnsupportedError struct {
	What   string // "RUN --network=none"
	Why    string
	Remedy string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("%s: %s", e.What, e.Why)
}
