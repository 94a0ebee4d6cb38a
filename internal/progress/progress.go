// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package progress carries what happens in a build to whoever shows it: typed
// events into a [Sink]. Writers for terminals, logs and machines are built on
// BuildKit's progressui.
package progress

import (
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Sink receives events, in order, from many goroutines. Send must not block
// for long.
type Sink interface{ Send(Event) }

// An Event is one of Started, Done, Log, Status, Warning.
type Event interface{ event() }

// Started opens a vertex. A vertex that was done may be started again, which
// continues it.
type Started struct {
	Vertex digest.Digest
	Name   string // as BuildKit names it: "[build 2/5] RUN make"
	Inputs []digest.Digest
	Time   time.Time
}

// Done closes a vertex.
type Done struct {
	Vertex digest.Digest
	Time   time.Time
	Cached bool
	Err    error // nil for success
}

// Log carries output of a vertex: of its command, or a line about it.
type Log struct {
	Vertex digest.Digest
	Stream int // 1 stdout, 2 stderr of a command
	Data   []byte
	Time   time.Time
}

// Status is the state of one item of a vertex, like a blob on its way.
type Status struct {
	Vertex    digest.Digest
	ID        string // "sha256:4e1f0c… 12.3MB" or "pushing layers"
	Current   int64  // bytes or items
	Total     int64  // 0 if not known
	Time      time.Time
	Started   time.Time
	Completed time.Time // zero while it goes on
}

// Warning is a finding of the Dockerfile checks.
type Warning struct {
	Vertex digest.Digest
	Level  int
	Short  string
	Detail []string
	URL    string
	File   string
	Source []byte // the Dockerfile's text
	Lines  [][2]int
}

func (Started) event() {}
func (Done) event()    {}
func (Log) event()     {}
func (Status) event()  {}
func (Warning) event() {}

// Discard is the Sink that drops everything.
type Discard struct{}

// Send implements Sink.
func (Discard) Send(Event) {}

// A Task is a vertex under way.
type Task struct {
	sink   Sink
	vertex digest.Digest
}

// Start opens a vertex and returns it. A nil sink discards everything.
func Start(sink Sink, vertex digest.Digest, name string, inputs ...digest.Digest) *Task {
	if sink == nil {
		sink = Discard{}
	}
	sink.Send(Started{Vertex: vertex, Name: name, Inputs: inputs, Time: time.Now()})
	return &Task{sink: sink, vertex: vertex}
}

// Logf adds a line about the vertex.
func (t *Task) Logf(format string, args ...any) {
	t.sink.Send(Log{Vertex: t.vertex, Stream: 2, Data: []byte(fmt.Sprintf(format, args...) + "\n"), Time: time.Now()})
}

// Output adds output of the vertex's command; stream is 1 or 2. It keeps data.
func (t *Task) Output(stream int, data []byte) {
	t.sink.Send(Log{Vertex: t.vertex, Stream: stream, Data: data, Time: time.Now()})
}

// Status sets the state of one item; done closes it.
func (t *Task) Status(id string, current, total int64, started time.Time, done bool) {
	s := Status{Vertex: t.vertex, ID: id, Current: current, Total: total, Started: started, Time: time.Now()}
	if done {
		s.Completed = s.Time
	}
	t.sink.Send(s)
}

// Done closes the vertex; err may be nil.
func (t *Task) Done(err error) {
	t.sink.Send(Done{Vertex: t.vertex, Time: time.Now(), Err: err})
}

// Cached closes the vertex as one that needed no work.
func (t *Task) Cached() {
	t.sink.Send(Done{Vertex: t.vertex, Time: time.Now(), Cached: true})
}
