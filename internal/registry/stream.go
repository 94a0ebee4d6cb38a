// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// cancelTimeout is how long telling a registry to forget an upload may take: it
// would forget it anyway.
const cancelTimeout = time.Second

// A Growing is a blob that is still being made.
type Growing interface {
	// Open returns its bytes from the start. Reading waits for those that are to
	// come, until ctx is done, and gives io.EOF only when all have been.
	Open(ctx context.Context) io.ReadCloser
	// Descriptor tells what it is, once it is finished.
	Descriptor() (desc ocispecs.Descriptor, isFinished bool)
}

// A stream is an upload of a blob that is still being made.
type stream struct {
	host, repo string
	blob       Growing
	done       chan struct{} // closed when isThere and isSent are set

	isThere bool // the registry has the blob
	isSent  bool // it was given all of it, and may have it

	mu     sync.Mutex
	body   *streamBody // of the last request
	moving Moving      // nil while nobody has asked for the blob
}

// StreamBlob uploads a blob to dst while it is being made: only the last request
// of an upload needs its digest (OCI distribution-spec, "Pushing a blob in
// chunks"). It returns when the upload has ended. A PushBlob of the same blob,
// once that is finished, waits for the end. Whatever goes wrong here, the
// registry is told to forget what it got, and PushBlob does it all and reports
// what is in the way: so this has no error to return, and is not tried again with
// that registry.
func (c *Client) StreamBlob(ctx context.Context, dst name.Repository, blob Growing) {
	a := c.access(dst, "", true)
	s := &stream{host: dst.RegistryStr(), repo: dst.Name(), blob: blob, done: make(chan struct{})}
	if !c.addStream(s) {
		return
	}
	defer close(s.done)
	if s.isThere = a.stream(ctx, s) == nil; !s.isThere {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.unstreamed[s.host] = true
	}
}

// addStream reports whether the registry is one to stream to, which takes requests
// of any size and where no stream has failed, and there is still something to
// gain. A blob that is finished may be in PushBlob's hands.
func (c *Client) addStream(s *stream) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, isFinished := s.blob.Descriptor(); isFinished || c.pieces[s.host] > 0 || c.unstreamed[s.host] {
		return false
	}
	c.streams = append(c.streams, s)
	return true
}

// stream sends the blob in one request of unknown length.
func (a *access) stream(ctx context.Context, s *stream) (err error) {
	u, _, err := a.startUpload(ctx, nil)
	if err != nil {
		return err
	}
	last := u
	defer func() {
		if err != nil {
			a.forgetUpload(ctx, last)
		}
	}()
	if u, err = a.sendGrowing(ctx, u, s); err != nil {
		return err
	}
	last = u
	desc, isFinished := s.blob.Descriptor()
	if !isFinished || desc.Size != s.progress() {
		return errors.New("the blob has another size than its descriptor says")
	}
	s.isSent = true
	resp, err := a.finish(ctx, u, desc.Digest) //nolint:bodyclose // stored closes it
	if err != nil {
		return err
	}
	return a.stored("", resp, desc.Digest)
}

// sendGrowing sends all bytes of the blob and returns where the upload is ended.
func (a *access) sendGrowing(ctx context.Context, u *url.URL, s *stream) (*url.URL, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // net/http may wait for more bytes of a request that was answered
	resp, err := a.do(ctx, request{
		method: http.MethodPatch, url: u, header: map[string]string{"Content-Type": "application/octet-stream"}, size: -1,
		body: func() (io.ReadCloser, error) { return s.open(ctx, a.c.sent), nil },
	})
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusAccepted, http.StatusNoContent, http.StatusCreated:
	default:
		return nil, a.failStatus("", resp)
	}
	discard(resp)
	if got, ok := uploadedBytes(resp.Header.Get("Range")); ok && got != s.progress() {
		return nil, errors.New("the registry got another number of bytes")
	}
	e, err := a.endpoint(ctx)
	if err != nil {
		return nil, err
	}
	return a.location(e, resp)
}

// forgetUpload cancels an upload even after the build was. The reference registry
// takes that only with the place that it gives for the bytes it has (416), which
// may still become more until it sees that the connection has ended.
func (a *access) forgetUpload(ctx context.Context, u *url.URL) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	for {
		u = a.uploadPlace(ctx, u)
		resp, err := a.do(ctx, request{method: http.MethodDelete, url: u})
		if err != nil {
			return
		}
		discard(resp)
		if resp.StatusCode != http.StatusRequestedRangeNotSatisfiable || a.c.sleep(ctx, cancelTimeout/10) != nil {
			return
		}
	}
}

// uploadPlace asks where an upload is now; u, if nobody says.
func (a *access) uploadPlace(ctx context.Context, u *url.URL) *url.URL {
	resp, err := a.do(ctx, request{method: http.MethodGet, url: u})
	if err != nil {
		return u
	}
	discard(resp)
	e, err := a.endpoint(ctx)
	if err != nil || resp.StatusCode != http.StatusNoContent {
		return u
	}
	if now, err := a.location(e, resp); err == nil {
		return now
	}
	return u
}

// streamed waits for a stream of the blob, if there is one, and reports whether
// the registry has the blob from it.
func (c *Client) streamed(ctx context.Context, dst name.Repository, up *upload) (bool, error) {
	s := c.takeStream(dst.Name(), up.desc)
	if s == nil {
		return false, nil
	}
	s.show(up.moving)
	defer s.show(nil)
	select {
	case <-s.done:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	up.isSent = s.isSent
	return s.isThere, nil
}

// takeStream returns the stream of the blob: once, since what it left in the
// registry may be lost later.
func (c *Client) takeStream(repo string, desc ocispecs.Descriptor) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.streams {
		if d, ok := s.blob.Descriptor(); ok && s.repo == repo && d.Digest == desc.Digest {
			c.streams = slices.Delete(c.streams, i, i+1)
			return s
		}
	}
	return nil
}

// open begins to read the blob, anew where the request is sent again.
func (s *stream) open(ctx context.Context, sent func(int64)) io.ReadCloser {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.body = &streamBody{ReadCloser: s.blob.Open(ctx), s: s, sent: sent}
	return s.body
}

// progress returns how many bytes the last request brought.
func (s *stream) progress() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.body == nil {
		return 0
	}
	return s.body.at
}

// show has m told from now on how far it is.
func (s *stream) show(m Moving) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.moving = m; m != nil && s.body != nil {
		m.At(s.body.at)
	}
}

// A streamBody is the body of one request of a stream.
type streamBody struct {
	io.ReadCloser
	s    *stream
	sent func(int64)
	at   int64 // guarded by s.mu
}

func (b *streamBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.sent(int64(n))
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	b.at += int64(n)
	if b.s.moving != nil && b.s.body == b {
		b.s.moving.At(b.at)
	}
	return n, err
}
