// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"net/http"
	"net/url"

	"github.com/opencontainers/go-digest"
)

// pieceSizes are the sizes in which blobs are sent to who refuses larger requests,
// such as a proxy with a limit: below 100 MB, and nginx's default of 1 MiB.
func pieceSizes() []int64 { return []int64{64 << 20, 16 << 20, 4 << 20, 1 << 20, 512 << 10} }

// piece returns the most that one request to the registry may bring, 0 for no limit.
func (a *access) piece() int64 {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	return a.c.pieces[a.repo.RegistryStr()]
}

// lowerPiece has smaller pieces sent from now on, after a request with n bytes was
// refused for its size. It reports whether there is anything smaller.
func (a *access) lowerPiece(n int64) bool {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	host := a.repo.RegistryStr()
	for _, size := range pieceSizes() {
		if size < n {
			if old := a.c.pieces[host]; old == 0 || size < old {
				a.c.pieces[host] = size
			}
			return true
		}
	}
	return false
}

// sendPieces uploads the blob in requests of limited size (OCI distribution-spec,
// "Pushing a blob in chunks").
func (a *access) sendPieces(ctx context.Context, u *url.URL, up *upload) error {
	what := "blob " + up.desc.Digest.String()
	if up.begun != nil {
		up.begun = u
	}
	u, err := a.sendRest(ctx, u, up, 0)
	if err != nil {
		return err
	}
	if u == nil {
		e := a.newError(what)
		e.Status, e.Message = http.StatusRequestEntityTooLarge, "and it does not take the blob in pieces"
		return e
	}
	up.begun = nil
	resp, err := a.finish(ctx, u, up.desc.Digest) //nolint:bodyclose // stored closes it
	if err != nil {
		return err
	}
	return a.stored(what, resp, up.desc.Digest)
}

// finish ends an upload of which all bytes are there.
func (a *access) finish(ctx context.Context, u *url.URL, d digest.Digest) (*http.Response, error) {
	return a.do(ctx, request{method: http.MethodPut, url: u, query: url.Values{"digest": {d.String()}}, body: emptyBody})
}
