// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A PushResult tells how a blob came to be in a repository.
type PushResult int

// The ways, cheapest first.
const (
	Exists   PushResult = iota + 1 // it was there already, or this client had put it there
	Mounted                        // the registry took it from another repository
	Uploaded                       // its bytes were sent
)

// String returns the result as a word.
func (r PushResult) String() string {
	switch r {
	case Exists:
		return "exists"
	case Mounted:
		return "mounted"
	case Uploaded:
		return "uploaded"
	}
	return "unknown"
}

// An Opener opens a blob's bytes from offset on.
type Opener func(ctx context.Context, offset int64) (io.ReadCloser, error)

// maxMounts is how many repositories are tried as the source of a mount.
const maxMounts = 3

// PushBlob sees to it that dst has the blob: it looks for it, asks the
// registry to mount it from one of the repositories from (others' registries
// are passed over), or uploads it. An upload that breaks off goes on where
// the registry says that it got, or else starts again. If StreamBlob is at it,
// that is waited for. Calls for one blob and repository share one push, and its
// success is remembered.
func (c *Client) PushBlob(ctx context.Context, dst name.Repository, desc ocispecs.Descriptor, open Opener, from []name.Repository) (PushResult, error) {
	a := c.access(dst, "", true)
	what := "blob " + desc.Digest.String()
	if err := validDescriptor(desc); err != nil {
		return 0, a.fail("", err)
	}
	ran := false
	res, err := c.uploads.do(ctx, dst.Name()+" "+desc.Digest.String(), func(ctx context.Context) (res PushResult, err error) {
		ran = true
		up := &upload{desc: desc, open: open, moving: a.begin(desc.Size, desc.Digest, true)}
		defer up.moving.End()
		if isSent, err := c.streamed(ctx, dst, up); isSent || err != nil {
			return Uploaded, err
		}
		err = a.retry(ctx, func() (err error) {
			res, err = a.pushBlob(ctx, up, from)
			return a.fail(what, err)
		})
		return res, err
	})
	if err != nil {
		return 0, a.fail(what, err)
	}
	if !ran {
		res = Exists
	}
	return res, nil
}

func (a *access) pushBlob(ctx context.Context, up *upload, from []name.Repository) (PushResult, error) {
	if isDone, err := a.resume(ctx, up); isDone || err != nil {
		return Uploaded, err
	}
	there, err := a.hasBlob(ctx, up.desc)
	if err != nil {
		return 0, err
	}
	switch {
	case there && up.isSent:
		return Uploaded, nil
	case there:
		return Exists, nil
	}
	u, err := a.mount(ctx, up.desc, from)
	if err != nil {
		return 0, err
	}
	if u == nil {
		return Mounted, nil
	}
	return Uploaded, a.sendWhole(ctx, u, up)
}

// hasBlob asks whether the blob is there. Only what may pass is an error: a
// registry that refuses the question may still take the upload.
func (a *access) hasBlob(ctx context.Context, desc ocispecs.Descriptor) (bool, error) {
	resp, err := a.do(ctx, request{method: http.MethodHead, path: a.blobPath(desc.Digest.String())})
	if err != nil {
		return false, err
	}
	if isTemporaryStatus(resp.StatusCode) {
		return false, a.failStatus("blob "+desc.Digest.String(), resp)
	}
	discard(resp)
	if resp.StatusCode != http.StatusOK {
		return false, nil
	}
	d := contentDigest(resp)
	return (d == "" || d == desc.Digest.String()) && (resp.ContentLength < 0 || resp.ContentLength == desc.Size), nil
}

// mount tries to have the blob mounted. Where that did not work it returns
// the URL of an upload that has been started.
func (a *access) mount(ctx context.Context, desc ocispecs.Descriptor, from []name.Repository) (*url.URL, error) {
	tried := 0
	for _, f := range from {
		if tried == maxMounts || f.RegistryStr() != a.repo.RegistryStr() || f.RepositoryStr() == a.repo.RepositoryStr() {
			continue
		}
		tried++
		// With a grant of its own: not everybody who may push may read there.
		m := a.c.access(a.repo, a.ref, true, f)
		u, mounted, err := m.startUpload(ctx, url.Values{"mount": {desc.Digest.String()}, "from": {f.RepositoryStr()}})
		switch {
		case mounted:
			return nil, nil
		case err == nil && u != nil:
			// The upload that the registry offers instead is as good as any,
			// but belongs to this grant.
			m.cancelUpload(ctx, u)
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		}
	}
	u, _, err := a.startUpload(ctx, nil)
	return u, err
}

// startUpload asks for an upload. The answer to a mount may be that it is
// done.
func (a *access) startUpload(ctx context.Context, query url.Values) (u *url.URL, mounted bool, err error) {
	resp, err := a.do(ctx, request{method: http.MethodPost, path: a.uploadPath(), query: query, body: emptyBody})
	if err != nil {
		return nil, false, err
	}
	switch {
	case resp.StatusCode == http.StatusAccepted:
		defer discard(resp)
		e, err := a.endpoint(ctx)
		if err != nil {
			return nil, false, err
		}
		u, err = a.location(e, resp)
		return u, false, err
	case resp.StatusCode == http.StatusCreated && query != nil:
		discard(resp)
		d := contentDigest(resp)
		return nil, d == "" || d == query.Get("mount"), nil
	}
	return nil, false, a.failStatus("", resp)
}

func emptyBody() (io.ReadCloser, error) { return http.NoBody, nil }

// cancelUpload lets the registry forget an upload; it would in time anyway.
func (a *access) cancelUpload(ctx context.Context, u *url.URL) {
	if resp, err := a.do(ctx, request{method: http.MethodDelete, url: u}); err == nil {
		discard(resp)
	}
}

// stored checks the answer to a PUT, and closes it.
func (a *access) stored(what string, resp *http.Response, want digest.Digest) error {
	switch resp.StatusCode {
	case http.StatusCreated, http.StatusOK, http.StatusAccepted, http.StatusNoContent:
	default:
		return a.failStatus(what, resp)
	}
	discard(resp)
	if d := contentDigest(resp); d != "" && d != want.String() {
		return fmt.Errorf("%w: the registry stored %s as %s", ErrWrongContent, want, clip(d))
	}
	return nil
}

// A sizedReader reads exactly so many bytes, or fails and tells so.
type sizedReader struct {
	r    io.ReadCloser
	left int64
	sent func(int64)
	fail func(error)

	closed atomic.Bool // by net/http: later errors are not the blob's
}

func (s *sizedReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if int64(n) > s.left {
		err = fmt.Errorf("%w: the blob is longer than its descriptor says", ErrWrongContent)
		s.fail(err)
		return 0, err
	}
	s.left -= int64(n)
	s.sent(int64(n))
	switch {
	case errors.Is(err, io.EOF) && s.left > 0:
		err = fmt.Errorf("%w: the blob is %d bytes shorter than its descriptor says", ErrWrongContent, s.left)
		s.fail(err)
	case err != nil && !errors.Is(err, io.EOF) && !s.closed.Load():
		s.fail(err)
	}
	return n, err
}

func (s *sizedReader) Close() error {
	s.closed.Store(true)
	return s.r.Close()
}

// PushManifest stores raw under ref, a tag or its digest. Everything that it
// points to must have been pushed. A tag that may not be set again is no error
// if it already has this content.
func (c *Client) PushManifest(ctx context.Context, ref name.Reference, mediaType string, raw []byte) error {
	a := c.access(ref.Context(), displayRef(ref), true)
	want := digest.FromBytes(raw)
	if d, ok := ref.(name.Digest); ok && d.DigestStr() != want.String() {
		return a.fail("manifest", fmt.Errorf("%w: the manifest's digest is %s", ErrWrongContent, want))
	}
	err := a.retry(ctx, func() error {
		resp, err := a.do(ctx, request{ //nolint:bodyclose // stored closes it
			method: http.MethodPut, path: a.manifestPath(ref.Identifier()),
			header: map[string]string{"Content-Type": mediaType},
			size:   int64(len(raw)),
			body:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
		})
		if err == nil {
			err = a.stored("", resp, want)
		}
		return a.fail("", err)
	})
	if err == nil {
		c.sent(int64(len(raw)))
		return nil
	}
	var e *Error
	if errors.As(err, &e) && isImmutableTag(e) && a.hasManifest(ctx, ref.Identifier(), want) {
		return nil
	}
	// The registry may have lost what it had: ask it anew the next time.
	c.uploads.drop(func(key string) bool { return strings.HasPrefix(key, a.repo.Name()+" ") })
	return err
}

func (a *access) hasManifest(ctx context.Context, id string, want digest.Digest) bool {
	m, err := a.manifest(ctx, id)
	return err == nil && m.Digest == want
}

// CheckPushPermission starts an upload to repo and drops it again: the
// registry then tells whether one may push.
func (c *Client) CheckPushPermission(ctx context.Context, repo name.Repository) error {
	a := c.access(repo, "", true)
	return a.retry(ctx, func() error {
		u, _, err := a.startUpload(ctx, nil)
		var e *Error
		if errors.As(err, &e) && (e.Status == http.StatusMethodNotAllowed || e.Status == http.StatusNotImplemented) {
			return nil // what does not answer the question may still take the push
		}
		if err != nil {
			return a.fail("check push permission", err)
		}
		a.cancelUpload(ctx, u)
		return nil
	})
}
