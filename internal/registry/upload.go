// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// minResume is the size from which going on with an upload is worth the
// question how far it got.
const minResume = 256 << 10

// An upload is one blob on its way, over as many requests as it takes.
type upload struct {
	desc ocispecs.Descriptor
	open Opener
	// begun is where the registry has the beginning of the blob; nil if it has
	// none, or does not keep what a broken request brought.
	begun *url.URL
	// isSent tells that the whole was sent once: if the registry has it now, this
	// is why.
	isSent bool
	moving Moving
}

// sendWhole uploads the blob in one request of known length, which all registries
// take; in pieces, if something on the way takes no request of that length.
func (a *access) sendWhole(ctx context.Context, u *url.URL, up *upload) error {
	up.begun, up.isSent = nil, true
	if up.desc.Size >= minResume {
		up.begun = u
	}
	if most := a.piece(); most > 0 && up.desc.Size > most {
		return a.sendPieces(ctx, u, up)
	}
	resp, err := a.sendBlob(ctx, http.MethodPut, u, up, 0, up.desc.Size)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusRequestEntityTooLarge && a.lowerPiece(up.desc.Size) {
		discard(resp)
		// If it was the registry itself that refused, that upload has ended.
		if u, _, err = a.startUpload(ctx, nil); err != nil {
			return err
		}
		return a.sendPieces(ctx, u, up)
	}
	return a.stored("blob "+up.desc.Digest.String(), resp, up.desc.Digest)
}

// resume goes on with an upload that broke off, as far as the registry says
// that it got (OCI distribution-spec, "Pushing a blob in chunks"). It reports
// whether the blob is there now; where the registry cannot go on, the whole has
// to be sent again, which is no error.
func (a *access) resume(ctx context.Context, up *upload) (isDone bool, err error) {
	if up.begun == nil {
		return false, nil
	}
	u, offset, err := a.uploadStatus(ctx, up)
	if u == nil {
		return false, err
	}
	up.begun = u
	if offset < up.desc.Size {
		if u, err = a.sendRest(ctx, u, up, offset); u == nil {
			return false, err
		}
	}
	up.begun = nil // what is wrong now is wrong with what the registry has
	resp, err := a.finish(ctx, u, up.desc.Digest)
	if err != nil {
		return false, err
	}
	if resp.StatusCode >= 400 && resp.StatusCode < 500 && !isTemporaryStatus(resp.StatusCode) {
		discard(resp)
		return false, nil
	}
	err = a.stored("blob "+up.desc.Digest.String(), resp, up.desc.Digest)
	return err == nil, err
}

// uploadStatus asks how much of the blob is there. A nil URL is the answer that
// it has to be sent anew.
func (a *access) uploadStatus(ctx context.Context, up *upload) (*url.URL, int64, error) {
	resp, err := a.do(ctx, request{method: http.MethodGet, url: up.begun})
	if err != nil {
		return nil, 0, err
	}
	if isTemporaryStatus(resp.StatusCode) {
		return nil, 0, a.failStatus("blob "+up.desc.Digest.String(), resp)
	}
	defer discard(resp)
	offset, ok := uploadedBytes(resp.Header.Get("Range"))
	if resp.StatusCode != http.StatusNoContent || !ok || offset > up.desc.Size {
		up.begun = nil
		return nil, 0, nil
	}
	if resp.Header.Get("Location") == "" {
		return up.begun, offset, nil
	}
	e, err := a.endpoint(ctx)
	if err != nil {
		return nil, 0, err
	}
	u, err := a.location(e, resp)
	return u, offset, err
}

// uploadedBytes reads "0-N", after which N+1 bytes are there. "0-0" is also what
// registries say of an upload without any, so it is not believed.
func uploadedBytes(s string) (n int64, ok bool) {
	first, last, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(s), "bytes="), "-")
	if !ok || first != "0" {
		return 0, false
	}
	n, err := strconv.ParseInt(last, 10, 64)
	if err != nil || n < 1 || n >= 1<<62 {
		return 0, false
	}
	return n + 1, true
}

// sendRest sends what is missing, in pieces if that is what can be taken, and
// returns where the upload is ended; nil if it has to start again.
func (a *access) sendRest(ctx context.Context, u *url.URL, up *upload, offset int64) (*url.URL, error) {
	for offset < up.desc.Size {
		n := up.desc.Size - offset
		if most := a.piece(); most > 0 {
			n = min(n, most)
		}
		resp, err := a.sendBlob(ctx, http.MethodPatch, u, up, offset, n)
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode == http.StatusRequestEntityTooLarge && a.lowerPiece(n):
			discard(resp)
			continue
		case isTemporaryStatus(resp.StatusCode) || resp.StatusCode == http.StatusRequestEntityTooLarge:
			return nil, a.failStatus("blob "+up.desc.Digest.String(), resp)
		}
		discard(resp)
		offset += n
		got, ok := uploadedBytes(resp.Header.Get("Range"))
		if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusNoContent || ok && got != offset {
			up.begun = nil
			return nil, nil //nolint:nilnil // the whole is sent again
		}
		e, err := a.endpoint(ctx)
		if err != nil {
			return nil, err
		}
		if u, err = a.location(e, resp); err != nil {
			return nil, err
		}
		if up.begun != nil {
			up.begun = u
		}
	}
	return u, nil
}

// sendBlob sends n bytes of the blob from offset on. What goes wrong at our end is
// final.
func (a *access) sendBlob(ctx context.Context, method string, u *url.URL, up *upload, offset, n int64) (*http.Response, error) {
	var source atomic.Pointer[error] // what went wrong at our end
	r := request{
		method: method, url: u, header: map[string]string{"Content-Type": "application/octet-stream"}, size: n,
		body: func() (io.ReadCloser, error) {
			r, err := up.open(ctx, offset)
			if err != nil {
				return nil, fmt.Errorf("open: %w", err)
			}
			if offset+n < up.desc.Size {
				r = limited{io.LimitReader(r, n), r}
			}
			at := offset
			sent := func(n int64) {
				at += n
				a.c.sent(n)
				up.moving.At(at)
			}
			return &sizedReader{r: r, left: n, sent: sent, fail: func(err error) { source.Store(&err) }}, nil
		},
	}
	if method == http.MethodPut {
		r.query = url.Values{"digest": {up.desc.Digest.String()}}
	} else {
		r.header["Content-Range"] = fmt.Sprintf("%d-%d", offset, offset+n-1)
	}
	resp, err := a.do(ctx, r)
	if p := source.Load(); p != nil {
		if err == nil {
			resp.Body.Close()
		}
		return nil, permanentError{*p}
	}
	return resp, err
}

// limited is the beginning of a stream.
type limited struct {
	io.Reader
	io.Closer
}
