// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"hako/internal/progress"
	"hako/internal/registry"
)

// transferPace is after how long a transfer is shown, and how often it is shown
// anew. What takes less is not worth a line.
const transferPace = 500 * time.Millisecond

// transfers show how far blobs are, below one vertex for each repository and
// direction, which is open while any of its blobs is shown. It is safe for
// concurrent use.
type transfers struct {
	sink progress.Sink
	now  func() time.Time

	mu   sync.Mutex
	open map[string]*openTransfers // by the vertex's name
}

type openTransfers struct {
	task *progress.Task
	n    int // blobs that are shown
}

func newTransfers(sink progress.Sink) *transfers {
	return &transfers{sink: sink, now: time.Now, open: map[string]*openTransfers{}}
}

// tune lets a registry's client tell of its transfers.
func (t *transfers) tune(o *registry.Options) { o.Transfer = t.begin }

// and does so besides what else there is to tune.
func (t *transfers) and(tune func(*registry.Options)) func(*registry.Options) {
	return func(o *registry.Options) {
		tune(o)
		t.tune(o)
	}
}

func (t *transfers) begin(x registry.Transfer) registry.Moving {
	name := "[internal] fetch layers of "
	if x.IsPush {
		name = "[internal] send layers to "
	}
	now := t.now()
	return &moving{all: t, name: name + x.Repo.Name(), id: x.Blob.String(), size: x.Size, began: now, shown: now}
}

// enter opens a vertex for one more blob.
func (t *transfers) enter(name string) *progress.Task {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.open[name]
	if o == nil {
		o = &openTransfers{task: progress.Start(t.sink, digest.FromString(name), name)}
		t.open[name] = o
	}
	o.n++
	return o.task
}

// leave closes it after the last one.
func (t *transfers) leave(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.open[name]
	if o.n--; o.n == 0 {
		o.task.Done(nil)
		delete(t.open, name)
	}
}

// moving is one blob on its way; it implements registry.Moving.
type moving struct {
	all      *transfers
	name, id string
	size     int64
	began    time.Time

	mu    sync.Mutex
	shown time.Time
	at    int64
	task  *progress.Task // nil while it is not shown
	ended bool
}

// At implements registry.Moving.
func (m *moving) At(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.at = n
	now := m.all.now()
	if m.ended || now.Sub(m.shown) < transferPace {
		return
	}
	m.shown = now
	if m.task == nil {
		m.task = m.all.enter(m.name)
	}
	m.task.Status(m.id, m.at, m.size, m.began, false)
}

// End implements registry.Moving.
func (m *moving) End() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return
	}
	m.ended = true
	if m.task != nil {
		m.task.Status(m.id, m.at, m.size, m.began, true)
		m.all.leave(m.name)
	}
}
