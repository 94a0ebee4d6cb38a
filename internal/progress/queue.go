// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"fmt"
	"slices"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// queue holds events in the form the display takes them, until it does. What
// describes a state is merged, so that only command output can pile up.
type queue struct {
	vertexes map[digest.Digest]*client.Vertex // all that were ever seen
	changed  []*client.Vertex                 // copies to be shown, in order
	statuses map[statusKey]*client.VertexStatus
	order    []statusKey
	warnings []*client.VertexWarning
	logs     []*client.VertexLog
	logBytes int
	dropped  int64 // bytes of output that found no room
	tails    map[streamKey][]byte
	ends     map[digest.Digest][]byte // of the output of what has not succeeded
	// sparse is for logs, which keep every line: how far something is comes after
	// five seconds, ten, twenty and so on.
	sparse bool
	due    map[statusKey]time.Duration
}

// maxEnd is how much of a vertex's output is kept to be shown again.
const maxEnd = 8 << 10

type statusKey struct {
	vertex digest.Digest
	id     string
}

type streamKey struct {
	vertex digest.Digest
	stream int
}

func newQueue() queue {
	return queue{
		vertexes: map[digest.Digest]*client.Vertex{},
		statuses: map[statusKey]*client.VertexStatus{},
		tails:    map[streamKey][]byte{},
		ends:     map[digest.Digest][]byte{},
		due:      map[statusKey]time.Duration{},
	}
}

func (q *queue) add(e Event, r *redactor) {
	switch e := e.(type) {
	case Started:
		q.start(e, r)
	case Done:
		q.finish(e, r)
	case Log:
		q.log(e, r)
	case Status:
		q.status(e)
	case Warning:
		q.warn(e)
	}
}

func (q *queue) start(e Started, r *redactor) {
	v := &client.Vertex{Digest: e.Vertex, Inputs: e.Inputs, Name: r.clean(e.Name), Started: &e.Time}
	q.vertexes[e.Vertex] = v
	q.show(v)
}

func (q *queue) finish(e Done, r *redactor) {
	v := q.vertexes[e.Vertex]
	if v == nil {
		return // the display would have no name for it
	}
	q.flushVertex(e.Vertex, e.Time, r)
	v.Completed, v.Cached = &e.Time, e.Cached
	if e.Err != nil {
		v.Error = r.clean(e.Err.Error())
	} else {
		delete(q.ends, e.Vertex)
	}
	q.show(v)
}

func (q *queue) show(v *client.Vertex) {
	c := *v
	q.changed = append(q.changed, &c)
}

// log queues output, except for an end that may be the beginning of a secret:
// that waits for what follows it.
func (q *queue) log(e Log, r *redactor) {
	key := streamKey{e.Vertex, e.Stream}
	data := append(slices.Clone(q.tails[key]), e.Data...)
	data, tail := r.filter(data)
	delete(q.tails, key)
	if len(tail) > 0 {
		q.tails[key] = tail
	}
	q.addLog(key, data, e.Time)
}

func (q *queue) addLog(key streamKey, data []byte, at time.Time) {
	if len(data) == 0 {
		return
	}
	q.logs = append(q.logs, &client.VertexLog{Vertex: key.vertex, Stream: key.stream, Data: data, Timestamp: at})
	q.logBytes += len(data)
	end := append(q.ends[key.vertex], data...)
	if len(end) > 2*maxEnd {
		end = slices.Clone(end[len(end)-maxEnd:])
	}
	q.ends[key.vertex] = end
}

// flushVertex queues what was held back of the vertex's output.
func (q *queue) flushVertex(vertex digest.Digest, at time.Time, r *redactor) {
	for _, stream := range q.tailStreams(vertex) {
		key := streamKey{vertex, stream}
		q.addLog(key, []byte(r.clean(string(q.tails[key]))), at)
		delete(q.tails, key)
	}
}

func (q *queue) tailStreams(vertex digest.Digest) []int {
	var streams []int
	for key := range q.tails {
		if key.vertex == vertex {
			streams = append(streams, key.stream)
		}
	}
	slices.Sort(streams)
	return streams
}

// flush queues what was held back anywhere.
func (q *queue) flush(r *redactor) {
	now := time.Now()
	for vertex := range q.vertexes {
		q.flushVertex(vertex, now, r)
	}
}

func (q *queue) status(e Status) {
	s := &client.VertexStatus{ID: e.ID, Vertex: e.Vertex, Current: e.Current, Total: e.Total, Timestamp: e.Time}
	if !e.Started.IsZero() {
		s.Started = &e.Started
	}
	if !e.Completed.IsZero() {
		s.Completed = &e.Completed
	}
	key := statusKey{e.Vertex, e.ID}
	if q.sparse && !q.isDue(key, e) {
		return
	}
	if _, waiting := q.statuses[key]; !waiting {
		q.order = append(q.order, key)
	}
	q.statuses[key] = s
}

// firstStatus is after how long a log says how far something is.
const firstStatus = 5 * time.Second

// isDue reports whether a log says now how far something is.
func (q *queue) isDue(key statusKey, e Status) bool {
	if !e.Completed.IsZero() {
		delete(q.due, key)
		return true
	}
	took := e.Time.Sub(e.Started)
	if took < max(q.due[key], firstStatus) {
		return false
	}
	q.due[key] = 2 * took
	return true
}

func (q *queue) warn(e Warning) {
	w := &client.VertexWarning{Vertex: e.Vertex, Level: e.Level, Short: []byte(e.Short), URL: e.URL}
	for _, d := range e.Detail {
		w.Detail = append(w.Detail, []byte(d))
	}
	if e.File != "" {
		w.SourceInfo = &pb.SourceInfo{Filename: e.File, Data: e.Source}
	}
	for _, l := range e.Lines {
		w.Range = append(w.Range, &pb.Range{
			Start: &pb.Position{Line: int32(l[0])},
			End:   &pb.Position{Line: int32(l[1])},
		})
	}
	q.warnings = append(q.warnings, w)
	if v := q.vertexes[e.Vertex]; v != nil && v.Completed != nil {
		// progressui prints the warnings of a vertex when the vertex changes,
		// and takes one for changed whose time of completion is another pointer.
		at := *v.Completed
		v.Completed = &at
		q.show(v)
	}
}

// take returns what waits, with about limit bytes of output, or nil. A vertex is
// shown as done only with or after the last of its output.
func (q *queue) take(limit int) *client.SolveStatus {
	logs, rest := q.takeLogs(limit)
	if len(q.changed)+len(q.order)+len(q.warnings)+len(logs) == 0 {
		return nil
	}
	status := &client.SolveStatus{Logs: logs, Warnings: q.warnings}
	q.warnings = nil
	q.changed, status.Vertexes = splitVertexes(q.changed, rest)
	for _, key := range q.order {
		status.Statuses = append(status.Statuses, q.statuses[key])
	}
	q.order = nil
	clear(q.statuses)
	return status
}

func (q *queue) takeLogs(limit int) (taken, rest []*client.VertexLog) {
	n, bytes := 0, 0
	for n < len(q.logs) && (n == 0 || bytes+len(q.logs[n].Data) <= limit) {
		bytes += len(q.logs[n].Data)
		n++
	}
	taken, rest = q.logs[:n:n], q.logs[n:]
	q.logs, q.logBytes = rest, q.logBytes-bytes
	if q.dropped > 0 && len(taken) > 0 && len(rest) == 0 {
		last := taken[len(taken)-1]
		note := fmt.Sprintf("\n[%d bytes of output left out: the terminal did not keep up]\n", q.dropped)
		taken = append(taken, &client.VertexLog{Vertex: last.Vertex, Stream: 2, Data: []byte(note), Timestamp: last.Timestamp})
		q.dropped = 0
	}
	return taken, rest
}

// splitVertexes divides changes into those to keep, because output of a
// finished vertex is still to come, and those to show now.
func splitVertexes(changes []*client.Vertex, logs []*client.VertexLog) (keep, show []*client.Vertex) {
	waiting := map[digest.Digest]bool{}
	for _, l := range logs {
		waiting[l.Vertex] = true
	}
	held := map[digest.Digest]bool{}
	for _, v := range changes {
		if held[v.Digest] || v.Completed != nil && waiting[v.Digest] {
			held[v.Digest] = true
			keep = append(keep, v)
			continue
		}
		show = append(show, v)
	}
	return keep, show
}
