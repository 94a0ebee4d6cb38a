// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"hako/internal/progress"
	"hako/internal/registry"
)

// texts keeps events as lines.
type texts struct {
	mu    sync.Mutex
	lines []string
}

// Send implements progress.Sink.
func (x *texts) Send(e progress.Event) {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch e := e.(type) {
	case progress.Started:
		x.lines = append(x.lines, "start "+e.Name)
	case progress.Status:
		x.lines = append(x.lines, fmt.Sprintf("%s %d/%d %t", e.ID, e.Current, e.Total, !e.Completed.IsZero()))
	case progress.Done:
		x.lines = append(x.lines, "done")
	}
}

// What takes half a second is shown, that often, below one vertex for all blobs of
// a repository.
func TestTransfers(t *testing.T) {
	t.Parallel()
	repo, err := name.NewRepository("r.example.com/app")
	if err != nil {
		t.Fatal(err)
	}
	sink, now := &texts{}, time.Unix(0, 0)
	all := newTransfers(sink)
	all.now = func() time.Time { return now }
	pass := func(ms int) { now = now.Add(time.Duration(ms) * time.Millisecond) }
	blob := func(id string, isPush bool) registry.Moving {
		return all.begin(registry.Transfer{Repo: repo, IsPush: isPush, Blob: digest.Digest(id), Size: 100})
	}
	a, b, quick := blob("a", false), blob("b", false), blob("quick", false)
	pass(100)
	a.At(10)
	quick.At(100)
	quick.End()
	pass(400)
	a.At(20)
	b.At(30)
	pass(100)
	a.At(40)
	a.End()
	a.End()
	pass(500)
	b.At(60)
	b.End()
	c := blob("c", true)
	pass(600)
	c.At(1)
	c.End()
	c.At(2)
	want := []string{
		"start [internal] fetch layers of r.example.com/app", "a 20/100 false", "b 30/100 false", "a 40/100 true", "b 60/100 false", "b 60/100 true", "done",
		"start [internal] send layers to r.example.com/app", "c 1/100 false", "c 1/100 true", "done",
	}
	if !slices.Equal(sink.lines, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(sink.lines, "\n"), strings.Join(want, "\n"))
	}
}
