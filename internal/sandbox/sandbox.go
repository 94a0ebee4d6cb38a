// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package sandbox has the places in which RUN runs: a root file system made of
// layers, a process in it, and what the process changed.
//
// [InPlace]: the container's own / becomes the root, which needs no mount and no
// namespace. What stood there is renamed away (parked) and put back at the end,
// whatever the end is; see park_linux.go.
//
// [Namespace]: a root of its own in new namespaces, with BuildKit's default
// confinement; see confine_linux.go. Several commands run at a time.
package sandbox

import (
	"context"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"time"

	"hako/internal/layer"
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

func (t MountType) String() string { return [...]string{"bind", "cache", "tmpfs", "secret", "ssh"}[t] }

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
	// Private asks for a cache that no other process uses meanwhile, another one
	// if need be; Locked waits for the one.
	Private, Locked bool
	// ReadOnly: what the process writes to a cache does not stay in it.
	ReadOnly bool
	// Size limits a tmpfs, in bytes; 0 is the kernel's default.
	Size int64
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
	// Hostname is "" for the sandbox's default.
	Hostname string
	// NoNetwork leaves nothing but a loopback interface.
	NoNetwork bool
	Limits    []Limit
	// Insecure gives the command all rights that this process has.
	Insecure bool
	// ValidExitCodes are the exit codes that count as success; nil means 0.
	ValidExitCodes []int
	Stdin          io.Reader // nil: empty
	Stdout, Stderr io.Writer
}

// A Limit is a resource limit; Name is that of getrlimit(2) in small letters and
// without RLIMIT_, such as nofile. -1 is no limit.
type Limit struct {
	Name       string
	Soft, Hard int64
}

// A HostIP is a line of /etc/hosts.
type HostIP struct{ Host, IP string }

// A Result is what a process did. Changes is valid until Close.
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
	keep func(l *layer.Layer)
	lose func() // nil: nothing has to be done
}

// Close ends the reading of Changes. Given the layer that they have become, the
// root is kept as one that has it on top; nil gives the root up.
func (r *Result) Close(l *layer.Layer) error {
	var err error
	if r.done != nil {
		err = r.done()
	}
	switch {
	case l != nil && err == nil:
		r.keep(l)
	case r.lose != nil:
		r.lose()
	}
	return err
}

// An ExitError is returned when the command ran and failed.
type ExitError struct {
	Code   int // exit code, or 128 + signal as shells count
	Signal int // 0 if it exited by itself
	OOM    bool
	// DiskFull: there was next to no room left on the root's disk.
	DiskFull bool
	// Limit is the container's memory limit in bytes if OOM, 0 if not known.
	Limit int64
	// PeakRSS is what the largest process of the command used, in bytes.
	PeakRSS int64
	Took    time.Duration
	// OneID: the command had one user id to be.
	OneID bool
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

// A Supervisor is the process that started this one and cleans up behind it.
type Supervisor struct {
	pipe *os.File
	// Mapped: this process is root only in a user namespace that was made for it; an
	// ordinary user started it.
	Mapped bool
	// Entered: root started it, and it is in such a namespace because it asked for
	// that.
	Entered bool
}

// tell tells what to do if this process is killed. A nil Supervisor does nothing.
func (s *Supervisor) tell(what, dir string) error {
	if s == nil {
		return nil
	}
	if _, err := fmt.Fprintf(s.pipe, "%s %s\n", what, dir); err != nil {
		return fmt.Errorf("tell the supervisor: %w", err)
	}
	return nil
}

// What a supervisor is told: directories with a container to restore, or with
// what one build leaves.
const (
	tellRestore = "restore"
	tellSweep   = "sweep"
	tellEnter   = "enter" // to start the engine again, in a user namespace
)

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
