// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cache

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A trip is one request, from its arrival to its answer.
type trip struct {
	what     string
	from, to time.Time
}

// inSequence returns how many of the trips were made one after another at least:
// the greatest number that do not overlap.
func inSequence(trips []trip) int {
	slices.SortFunc(trips, func(a, b trip) int { return a.to.Compare(b.to) })
	n, end := 0, time.Time{}
	for _, t := range trips {
		if t.from.After(end) {
			n, end = n+1, t.to
		}
	}
	return n
}

// TestRoundTrips: what a build that finds everything asks before it pushes is
// asked in at most three rounds. Each answer takes so long that requests that do
// not wait for each other overlap.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.base("one", "1")
	w.write(fourStages())
	w.must(w.build())
	var mu sync.Mutex
	var lookups, pushes []trip
	w.reg.setFault(func(_ http.ResponseWriter, r *http.Request) bool {
		began := time.Now()
		time.Sleep(800 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		one := trip{r.Method + " " + r.URL.Path, began, time.Now()}
		if r.URL.Path == "/v2/" {
			return false // each side of a registry, pull and push, is greeted once
		}
		if r.Method == http.MethodGet && !strings.HasPrefix(r.URL.Path, "/v2/app/blobs/") {
			lookups = append(lookups, one)
		} else {
			pushes = append(pushes, one)
		}
		return false
	})
	began := time.Now()
	b := w.must(w.build())
	rounds := 1 + inSequence(lookups) // with the greeting
	t.Logf("%d requests to look up in %d rounds, %d to push in %d rounds, %.1f s", len(lookups), rounds, len(pushes), inSequence(pushes), time.Since(began).Seconds())
	if len(b.misses()) > 0 {
		t.Errorf("lines %v ran", b.misses())
	}
	if rounds > 3 {
		for _, l := range lookups {
			t.Logf("%s – %s %s", l.from.Format("05.000"), l.to.Format("05.000"), l.what)
		}
		t.Errorf("%d rounds, want 3 at most", rounds)
	}
}
