// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/opencontainers/go-digest"
)

const (
	// maxPending is how many bytes of command output may wait for the terminal
	// before the commands have to.
	maxPending = 4 << 20
	// maxBatch is how many of them are handed over at once.
	maxBatch = 256 << 10
	// defaultStall is how long a terminal may take nothing before it is given up.
	defaultStall = 5 * time.Second
)

// ErrStalled is returned by Close when the terminal took nothing for so long
// that the rest of the output was given up.
var ErrStalled = errors.New("write progress: the terminal takes no output")

// A Display is a Sink that shows events with BuildKit's progressui. It is safe
// for concurrent use.
//
// A build never hangs because its terminal does: states of downloads and the
// like are merged while they wait, so they take no room; command output waits
// in a bounded queue, and when that is full the command is slowed down, as by a
// pipe. Only when the terminal has taken nothing for some seconds is output
// dropped, and a line says how much.
type Display struct {
	stall    time.Duration
	activity atomic.Int64 // counts what the terminal took
	done     chan struct{}
	err      error // of the writer; valid once done is closed

	mu     sync.Mutex
	queue  queue
	redact redactor
	stuck  bool          // the terminal took nothing for the stall time
	closed bool          // no more events
	wake   chan struct{} // holds one token when the queue has something
	room   chan struct{} // closed and replaced when the queue was drained
}

// NewDisplay returns a Display that writes to w. The mode is "auto" (or ""),
// "tty", "plain", "rawjson", "quiet" or "none"; auto asks isTerminal, which may
// be nil, whether w can be redrawn. The caller has to Close it.
func NewDisplay(w io.Writer, mode string, isTerminal func(io.Writer) bool) (*Display, error) {
	d := &Display{
		stall: defaultStall,
		done:  make(chan struct{}),
		queue: newQueue(),
		wake:  make(chan struct{}, 1),
		room:  make(chan struct{}),
	}
	ui, err := d.newUI(w, mode, isTerminal)
	if err != nil {
		return nil, err
	}
	go d.run(ui)
	return d, nil
}

func (d *Display) newUI(w io.Writer, mode string, isTerminal func(io.Writer) bool) (progressui.Display, error) {
	var uiMode progressui.DisplayMode
	switch mode {
	case "", "auto":
		uiMode = progressui.PlainMode
		if isTerminal != nil && isTerminal(w) {
			uiMode = progressui.AutoMode
		}
	case "none", "quiet":
		uiMode = progressui.QuietMode
	case "tty", "plain", "rawjson":
		uiMode = progressui.DisplayMode(mode)
	default:
		return progressui.Display{}, fmt.Errorf("show progress: unknown mode %q; there are auto, tty, plain, rawjson, quiet and none", mode)
	}
	d.queue.sparse = uiMode == progressui.PlainMode
	// A console has to be the file itself; elsewhere writes count as signs of life.
	if uiMode == progressui.PlainMode || uiMode == progressui.RawJSONMode {
		w = &activeWriter{w: w, activity: &d.activity}
	}
	ui, err := progressui.NewDisplay(w, uiMode)
	if err != nil {
		return progressui.Display{}, fmt.Errorf("show progress as %s: %w", mode, err)
	}
	return ui, nil
}

// activeWriter counts the writes that came back.
type activeWriter struct {
	w        io.Writer
	activity *atomic.Int64
}

func (a *activeWriter) Write(p []byte) (int, error) {
	n, err := a.w.Write(p)
	a.activity.Add(1)
	return n, err
}

// Redact makes the display write "***" for each of the values wherever
// something to be shown holds it: in command output, also when it arrives in
// pieces, in names and in errors. White space around a value is not part of it.
func (d *Display) Redact(values ...[]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.redact.add(values)
}

// Clean returns s with the values given to Redact taken out.
func (d *Display) Clean(s string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.redact.clean(s)
}

// LastLines returns the end of what the vertex has printed, at most n lines,
// if it has not succeeded.
func (d *Display) LastLines(vertex digest.Digest, n int) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return lastLines(d.queue.ends[vertex], n)
}

// Send implements Sink. Events after Close are dropped.
func (d *Display) Send(e Event) {
	if l, ok := e.(Log); ok && !d.waitForRoom(len(l.Data)) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.queue.add(e, &d.redact)
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// waitForRoom reports whether n more bytes of output may be queued; it waits
// for the terminal as long as that takes anything.
func (d *Display) waitForRoom(n int) bool {
	for {
		d.mu.Lock()
		switch {
		case d.closed:
			d.mu.Unlock()
			return false
		case d.queue.logBytes == 0 || d.queue.logBytes+n <= maxPending:
			d.mu.Unlock()
			return true
		case d.stuck:
			d.queue.dropped += int64(n)
			d.mu.Unlock()
			return false
		}
		room := d.room
		d.mu.Unlock()

		before := d.activity.Load()
		timer := time.NewTimer(d.stall)
		select {
		case <-room:
		case <-timer.C:
			if d.activity.Load() == before {
				d.mu.Lock()
				d.stuck = d.room == room
				d.mu.Unlock()
			}
		}
		timer.Stop()
	}
}

// run moves events from the queue to the display until the queue is closed and
// empty. It is the only sender on statuses, and closes it.
func (d *Display) run(ui progressui.Display) {
	defer close(d.done)
	statuses := make(chan *client.SolveStatus)
	finished := make(chan error, 1)
	go func() {
		// The display ends when statuses does: what was sent is shown even if
		// the build was called off.
		_, err := ui.UpdateFrom(context.Background(), statuses)
		finished <- err
	}()
	for {
		status, more := d.next()
		if status != nil {
			statuses <- status
			d.activity.Add(1)
		}
		if !more {
			break
		}
	}
	close(statuses)
	d.err = <-finished
}

// next waits for something to show; more is false once that was the last.
func (d *Display) next() (status *client.SolveStatus, more bool) {
	for {
		d.mu.Lock()
		if status := d.queue.take(maxBatch); status != nil {
			d.stuck = false
			close(d.room)
			d.room = make(chan struct{})
			d.mu.Unlock()
			return status, true
		}
		closed := d.closed
		d.mu.Unlock()
		if closed {
			return nil, false
		}
		<-d.wake
	}
}

// Close waits until everything sent was shown. It gives up, with ErrStalled,
// when the terminal takes nothing any more. Further calls do the same.
func (d *Display) Close() error {
	d.mu.Lock()
	if !d.closed {
		d.closed = true
		d.queue.flush(&d.redact)
		close(d.room)
		d.room = make(chan struct{})
	}
	select {
	case d.wake <- struct{}{}:
	default:
	}
	d.mu.Unlock()

	for {
		before := d.activity.Load()
		timer := time.NewTimer(d.stall)
		select {
		case <-d.done:
			timer.Stop()
			return d.err
		case <-timer.C:
			if d.activity.Load() == before {
				return ErrStalled
			}
		}
	}
}
