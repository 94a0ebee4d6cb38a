// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"fmt"
	"sync"
)

// Once returns a Sink that passes each [Warning] on once: whoever looks at a
// Dockerfile several times finds the same each time.
func Once(sink Sink) Sink {
	if sink == nil {
		return Discard{}
	}
	return &once{sink: sink, seen: map[string]bool{}}
}

type once struct {
	sink Sink

	mu   sync.Mutex
	seen map[string]bool
}

// Send implements Sink.
func (o *once) Send(e Event) {
	if w, ok := e.(Warning); ok && !o.isNew(w) {
		return
	}
	o.sink.Send(e)
}

func (o *once) isNew(w Warning) bool {
	key := fmt.Sprintf("%s\x00%s\x00%s\x00%d\x00%v", w.Short, w.URL, w.File, w.Level, w.Lines)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seen[key] {
		return false
	}
	o.seen[key] = true
	return true
}
