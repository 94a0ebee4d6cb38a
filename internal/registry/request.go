// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// A request is what is to be sent; it can be sent again.
type request struct {
	method string
	path   string   // below /v2/, or
	url    *url.URL // an absolute URL that the registry gave
	query  url.Values
	header map[string]string
	size   int64
	body   func() (io.ReadCloser, error) // nil for none
}

const maxRedirects = 10

// do sends r and follows redirects. The registry gets credentials, renewed
// once when it says that they have run out; other hosts get none. The answer
// may have any status; its body is the caller's to close.
func (a *access) do(ctx context.Context, r request) (*http.Response, error) {
	e, err := a.endpoint(ctx)
	if err != nil {
		return nil, err
	}
	auth, err := a.authorize(ctx, e, "", nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.follow(ctx, e, r, auth)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !a.isRegistry(resp.Request.URL) {
		return resp, err
	}
	ch, ok := challengeOf(resp)
	if !ok {
		return resp, nil
	}
	renewed, err := a.authorize(ctx, e, auth, &ch)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	if renewed == auth {
		return resp, nil // nothing new to say
	}
	discard(resp)
	return a.follow(ctx, e, r, renewed)
}

// follow sends r, and sends it again to where it is redirected.
func (a *access) follow(ctx context.Context, e *endpoint, r request, auth string) (*http.Response, error) {
	u := r.url
	if u == nil {
		u = &url.URL{Scheme: e.scheme, Host: e.reg.RegistryStr(), Path: a.base() + r.path}
	}
	if query := a.query(r.query); len(query) > 0 {
		c := *u
		q := c.Query()
		for k, v := range query {
			q[k] = v
		}
		c.RawQuery = q.Encode()
		u = &c
	}
	for n := 0; ; n++ {
		resp, err := a.send(ctx, u, r, auth)
		if err != nil {
			return nil, err
		}
		if !isRedirect(resp.StatusCode, r.method) {
			return resp, nil
		}
		if n == maxRedirects {
			resp.Body.Close()
			return nil, permanentError{fmt.Errorf("more than %d redirects", maxRedirects)}
		}
		next, err := a.location(e, resp)
		discard(resp)
		if err != nil {
			return nil, err
		}
		u = next
	}
}

func isRedirect(status int, method string) bool {
	switch status {
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther:
		return method == http.MethodGet || method == http.MethodHead
	}
	return false
}

func (a *access) send(ctx context.Context, u *url.URL, r request, auth string) (*http.Response, error) {
	ctx, dog, stop := a.c.watch(ctx)
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), nil)
	if err != nil {
		stop()
		return nil, permanentError{errors.New("the registry gave an invalid URL")}
	}
	for k, v := range r.header {
		req.Header.Set(k, v)
	}
	if auth != "" && a.isRegistry(u) {
		req.Header.Set("Authorization", auth)
	}
	if r.body == nil {
		dog.arm()
	} else if err := setBody(req, r, dog); err != nil {
		stop()
		return nil, permanentError{err}
	}
	resp, err := a.transport().RoundTrip(req)
	dog.pause()
	if err != nil {
		err = stallCause(ctx, err)
		stop()
		if !a.isRegistry(u) {
			return nil, fmt.Errorf("%s: %w", u.Host, err)
		}
		return nil, err
	}
	resp.Body = &answerBody{ReadCloser: resp.Body, ctx: ctx, dog: dog, stop: stop}
	return resp, nil
}

func setBody(req *http.Request, r request, dog *watchdog) error {
	body, err := r.body()
	if err != nil {
		return err
	}
	req.Body, req.ContentLength = &questionBody{ReadCloser: body, dog: dog}, r.size
	if r.size == 0 {
		// net/http takes 0 with a body for an unknown length.
		req.Body = http.NoBody
		return body.Close()
	}
	return nil
}

// isRegistry reports whether u is at the registry itself, over the scheme
// that it was found at: the one place that credentials are for.
func (a *access) isRegistry(u *url.URL) bool {
	if u.Scheme == "http" && !a.mayUseHTTP() {
		return false
	}
	return canonicalHost(u.Host, u.Scheme) == canonicalHost(a.repo.RegistryStr(), u.Scheme)
}

// isInsecure reports whether plain HTTP is allowed by a setting.
func (a *access) isInsecure() bool {
	return a.place != nil && a.place.Scheme == "http" || a.c.isInsecure(a.repo.Registry, a.push)
}

// mayUseHTTP reports whether the registry may be spoken to without TLS.
func (a *access) mayUseHTTP() bool {
	return a.isInsecure() || a.repo.Scheme() == "http"
}

// location returns the absolute URL of an answer's Location. Registries
// behind a proxy that ends TLS often name themselves with http: that is
// corrected.
func (a *access) location(e *endpoint, resp *http.Response) (*url.URL, error) {
	l := resp.Header.Get("Location")
	if l == "" {
		return nil, permanentError{errors.New("the registry gave no Location")}
	}
	ref, err := url.Parse(l)
	if err != nil {
		// The cause repeats the URL, which may be signed.
		return nil, permanentError{errors.New("the registry gave an invalid Location")}
	}
	u := resp.Request.URL.ResolveReference(ref)
	u.User, u.Fragment = nil, ""
	if u.Scheme == "http" && e.scheme == "https" && canonicalHost(u.Host, "https") == canonicalHost(e.reg.RegistryStr(), "https") {
		u.Scheme = "https"
	}
	if err := checkTarget(u, e.scheme == "http"); err != nil {
		return nil, err
	}
	return u, nil
}

// discard reads what is left of a small answer so that its connection can be
// used again.
func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// blobPath and the like keep the layout of the API in one place.
func (a *access) blobPath(dgst string) string {
	return a.repo.RepositoryStr() + "/blobs/" + dgst
}

func (a *access) manifestPath(id string) string {
	return a.repo.RepositoryStr() + "/manifests/" + id
}

func (a *access) uploadPath() string {
	return a.repo.RepositoryStr() + "/blobs/uploads/"
}

// contentDigest returns what the registry says the digest is, or "".
func contentDigest(resp *http.Response) string {
	return strings.TrimSpace(resp.Header.Get("Docker-Content-Digest"))
}
