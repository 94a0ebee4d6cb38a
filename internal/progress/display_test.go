// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

func newTestDisplay(t *testing.T, w *bytes.Buffer, mode string) *Display {
	t.Helper()
	d, err := NewDisplay(w, mode, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDisplayPlain(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := newTestDisplay(t, &out, "auto")
	a := Start(d, digest.FromString("a"), "[1/2] RUN make")
	a.Logf("root: %d layers", 7)
	a.Output(1, []byte("cc -O2 a.c\n"))
	a.Done(nil)
	Start(d, digest.FromString("b"), "[2/2] COPY . .").Cached()
	Start(d, digest.FromString("c"), "push").Done(errors.New("denied"))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d.Send(Started{Vertex: digest.FromString("late"), Name: "late", Time: time.Now()})
	for _, want := range []string{"[1/2] RUN make", "root: 7 layers", "cc -O2 a.c", "DONE", "CACHED", "ERROR: denied"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output has no %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "late") {
		t.Errorf("event after Close was shown:\n%s", out.String())
	}
	if err := d.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
}

// TestDisplayLateWarning: a warning about a vertex whose end has been printed is
// printed too.
func TestDisplayLateWarning(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		d := newTestDisplay(t, &out, "plain")
		load := Start(d, digest.FromString("a"), "load build definition")
		load.Done(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		if !strings.Contains(out.String(), "DONE") {
			t.Fatalf("the vertex's end was not printed:\n%s", out.String())
		}
		d.Send(Warning{Vertex: digest.FromString("a"), Level: 1, Short: "FromAsCasing"})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(out.String(), "WARN: FromAsCasing"); n != 1 {
			t.Errorf("the warning was printed %d times:\n%s", n, out.String())
		}
	})
}

func TestDisplayNothingSent(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"auto", "plain", "rawjson", "quiet", "none", ""} {
		var out bytes.Buffer
		if err := newTestDisplay(t, &out, mode).Close(); err != nil || out.Len() > 0 {
			t.Errorf("mode %q: Close = %v, output %q", mode, err, out.String())
		}
	}
}

func TestDisplayModes(t *testing.T) {
	t.Parallel()
	if _, err := NewDisplay(&bytes.Buffer{}, "fancy", nil); err == nil || !strings.Contains(err.Error(), `"fancy"`) {
		t.Errorf("unknown mode: %v", err)
	}
	if _, err := NewDisplay(&bytes.Buffer{}, "tty", nil); err == nil {
		t.Error("tty on a buffer was accepted")
	}
	var out bytes.Buffer
	d := newTestDisplay(t, &out, "rawjson")
	Start(d, digest.FromString("a"), "step").Done(nil)
	_ = d.Close()
	if !strings.Contains(out.String(), `"name":"step"`) {
		t.Errorf("rawjson = %s", out.String())
	}
	out.Reset()
	d = newTestDisplay(t, &out, "quiet")
	Start(d, digest.FromString("a"), "step").Done(nil)
	if err := d.Close(); err != nil || out.Len() > 0 {
		t.Errorf("quiet wrote %q, Close = %v", out.String(), err)
	}
}

func TestDisplayManySenders(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := newTestDisplay(t, &out, "plain")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			task := Start(d, digest.FromString(fmt.Sprint(i)), fmt.Sprintf("step %d", i))
			for line := range 50 {
				task.Output(1, fmt.Appendf(nil, "out %d.%d.\n", i, line))
				task.Status("blob", int64(line), 50, time.Now(), line == 49)
			}
			task.Done(nil)
		})
	}
	wg.Wait()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		for line := range 50 {
			if want := fmt.Sprintf(" out %d.%d.\n", i, line); !strings.Contains(out.String(), want) {
				t.Fatalf("output has no %q", want)
			}
		}
	}
}

// deadWriter is a terminal that takes nothing until it is released.
type deadWriter struct{ release chan struct{} }

func (w deadWriter) Write(p []byte) (int, error) {
	<-w.release
	return len(p), nil
}

func TestDisplayDeadTerminal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := deadWriter{make(chan struct{})}
		d, err := NewDisplay(w, "plain", nil)
		if err != nil {
			t.Fatal(err)
		}
		task := Start(d, digest.FromString("a"), "step")
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		start := time.Now()
		for range 50 {
			task.Output(1, chunk)
		}
		// The first stall may be waited for, not one for each piece of output.
		if waited := time.Since(start); waited > 3*defaultStall {
			t.Errorf("senders waited %v for a dead terminal", waited)
		}
		d.mu.Lock()
		pending := d.queue.logBytes
		d.mu.Unlock()
		if pending > maxPending {
			t.Errorf("%d bytes are pending", pending)
		}
		if err := d.Close(); !errors.Is(err, ErrStalled) {
			t.Errorf("Close = %v, want ErrStalled", err)
		}
		close(w.release)
		<-d.done
	})
}

func TestStatusesAreMerged(t *testing.T) {
	t.Parallel()
	q := newQueue()
	for i := range 1000 {
		q.add(Status{Vertex: "v", ID: "blob", Current: int64(i)}, &redactor{})
	}
	got := q.take(maxBatch)
	if len(got.Statuses) != 1 || got.Statuses[0].Current != 999 {
		t.Errorf("got %d statuses, first %+v", len(got.Statuses), got.Statuses[0])
	}
}

// A log has a line after 5 s, 10 s, 20 s and so on, and one at the end.
func TestStatusesInLogs(t *testing.T) {
	t.Parallel()
	q := newQueue()
	q.sparse = true
	var shown []int64
	began := time.Unix(1000, 0)
	for second := range int64(60) {
		s := Status{Vertex: "v", ID: "blob", Current: second, Started: began, Time: began.Add(time.Duration(second) * time.Second)}
		if second == 59 {
			s.Completed = s.Time
		}
		q.add(s, &redactor{})
		if got := q.take(maxBatch); got != nil {
			shown = append(shown, got.Statuses[0].Current)
		}
	}
	if want := []int64{5, 10, 20, 40, 59}; !slices.Equal(shown, want) {
		t.Errorf("shown at %v, want %v", shown, want)
	}
}

func TestDoneComesAfterOutput(t *testing.T) {
	t.Parallel()
	q := newQueue()
	q.add(Started{Vertex: "v", Name: "step"}, &redactor{})
	q.add(Log{Vertex: "v", Data: make([]byte, 100)}, &redactor{})
	q.add(Log{Vertex: "v", Data: make([]byte, 100)}, &redactor{})
	q.add(Done{Vertex: "v"}, &redactor{})
	first, second := q.take(100), q.take(100)
	if len(first.Logs) != 1 || len(first.Vertexes) != 1 || first.Vertexes[0].Completed != nil {
		t.Errorf("first batch: %+v", first)
	}
	if second == nil || len(second.Logs) != 1 || len(second.Vertexes) != 1 || second.Vertexes[0].Completed == nil {
		t.Errorf("second batch: %+v", second)
	}
	if more := q.take(100); more != nil {
		t.Errorf("third batch: %+v", more)
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	const key = "-----BEGIN-----\nabcdefghijkl\n}\n-----END-----\n"
	tests := []struct {
		name    string
		secrets []string
		pieces  []string
		want    string
	}{
		{"whole", []string{"hunter2\n"}, []string{"pw=hunter2 ok\n"}, "pw=*** ok\n"},
		{"in pieces", []string{"hunter2"}, []string{"pw=hu", "nte", "r2!\n"}, "pw=***!\n"},
		{"only begun", []string{"hunter2"}, []string{"hunt", "ing\n"}, "hunting\n"},
		{"begun at the end", []string{"hunter2"}, []string{"we hunt"}, "we hunt"},
		{"longer wins", []string{"abc", "abcdef"}, []string{"abc", "def abc."}, "*** ***."},
		{"repeats", []string{"aa"}, []string{"aaa", "a", "ba"}, "******ba"},
		{"a line of a key", []string{key}, []string{"> abcdefghijkl\n}\n"}, "> ***\n}\n"},
		{"none", []string{"", "\n"}, []string{"a\n"}, "a\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var r redactor
			for _, s := range test.secrets {
				r.add([][]byte{[]byte(s)})
			}
			q := newQueue()
			q.add(Started{Vertex: "v"}, &r)
			for _, p := range test.pieces {
				q.add(Log{Vertex: "v", Stream: 1, Data: []byte(p)}, &r)
			}
			q.add(Done{Vertex: "v"}, &r)
			var got strings.Builder
			for _, l := range q.logs {
				got.Write(l.Data)
			}
			if got.String() != test.want {
				t.Errorf("got %q, want %q", got.String(), test.want)
			}
		})
	}
}

func TestDisplayRedactsNamesAndErrors(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := newTestDisplay(t, &out, "plain")
	d.Redact([]byte("s3cr3t"))
	Start(d, digest.FromString("a"), "RUN echo s3cr3t").Done(errors.New("exit s3cr3t"))
	_ = d.Close()
	if strings.Contains(out.String(), "s3cr3t") || !strings.Contains(out.String(), "RUN echo ***") {
		t.Errorf("output:\n%s", out.String())
	}
	if got := d.Clean("x s3cr3t"); got != "x ***" {
		t.Errorf("Clean = %q", got)
	}
}
