// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// A stalledError ends an exchange on which nothing moved.
type stalledError struct{ limit time.Duration }

func (e stalledError) Error() string { return fmt.Sprintf("nothing moved for %s", e.limit) }

// A watchedTransport ends exchanges on which nothing moves, in either direction,
// for the limit. How long the answer's reader, or what is sent, takes for other
// things does not count.
type watchedTransport struct {
	http.RoundTripper
	limit time.Duration
}

// maxAnswer bounds what is read of an answer that is no object.
const maxAnswer = 1 << 20

// A watch is that of one exchange.
type watch struct {
	timer *time.Timer
	limit time.Duration
	ctx   context.Context //nolint:containedctx // the exchange's
	stop  context.CancelCauseFunc
}

func (w *watch) arm()   { w.timer.Reset(w.limit) }
func (w *watch) pause() { w.timer.Stop() }

func (w *watch) end() {
	w.pause()
	w.stop(nil)
}

// cause puts the reason in the place of a canceled context.
func (w *watch) cause(err error) error {
	if e, ok := errors.AsType[stalledError](context.Cause(w.ctx)); ok && err != nil {
		return e
	}
	return err
}

// RoundTrip implements http.RoundTripper.
func (t watchedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, stop := context.WithCancelCause(r.Context())
	w := &watch{limit: t.limit, ctx: ctx, stop: stop}
	w.timer = time.AfterFunc(t.limit, func() { stop(stalledError{t.limit}) })
	r = r.Clone(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &sentBody{r.Body, w}
	}
	resp, err := t.RoundTripper.RoundTrip(r)
	if err != nil {
		w.end()
		return nil, w.cause(err)
	}
	w.pause()
	// The end of the exchange reaches the server before the connection is closed, so
	// what it answers to that, an empty object say, may still come through.
	if err := w.cause(ctx.Err()); err != nil {
		_ = resp.Body.Close()
		w.end()
		return nil, err
	}
	var body io.Reader = resp.Body
	if r.Method != http.MethodGet || resp.StatusCode >= 300 {
		body = io.LimitReader(body, maxAnswer) // it is read as a whole
	}
	resp.Body = &receivedBody{body, resp.Body, w}
	return resp, nil
}

// A sentBody is watched between reads: then it is sent.
type sentBody struct {
	io.ReadCloser
	w *watch
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.w.pause()
	defer b.w.arm()
	return b.ReadCloser.Read(p)
}

// A receivedBody is watched while it is read.
type receivedBody struct {
	io.Reader
	io.Closer
	w *watch
}

func (b *receivedBody) Read(p []byte) (int, error) {
	b.w.arm()
	n, err := b.Reader.Read(p)
	b.w.pause()
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.w.cause(err)
	}
	return n, err
}

func (b *receivedBody) Close() error {
	err := b.Closer.Close()
	b.w.end()
	return err
}
