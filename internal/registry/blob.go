// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A BlobSource opens one blob of a repository: it is a layer.Source.
type BlobSource struct {
	Client     *Client
	Repo       name.Repository
	Descriptor ocispecs.Descriptor
	// Mirrored lets mirrors of the registry serve it.
	Mirrored bool
}

// Open returns the blob's bytes from offset on; see Client.OpenBlob.
func (s BlobSource) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	return s.Client.openBlob(ctx, s.Repo, s.Descriptor, offset, s.Mirrored)
}

// Origin returns "registry/repository", as layer.Layer's Origin wants it.
func (s BlobSource) Origin() string { return s.Repo.Name() }

// FetchBlob returns a blob of at most 8 MiB, compared with its digest.
func (c *Client) FetchBlob(ctx context.Context, repo name.Repository, desc ocispecs.Descriptor) ([]byte, error) {
	a := c.access(repo, displayRepo(repo)+"@"+desc.Digest.String(), false)
	b, err := a.smallBlob(ctx, desc)
	return b, a.fail("blob", err)
}

func (a *access) smallBlob(ctx context.Context, desc ocispecs.Descriptor) ([]byte, error) {
	if desc.Size > maxConfig {
		return nil, fmt.Errorf("blob %s has %d bytes, more than the limit of %d", desc.Digest, desc.Size, maxConfig)
	}
	if len(desc.Data) > 0 && int64(len(desc.Data)) == desc.Size && desc.Digest == digest.FromBytes(desc.Data) {
		return desc.Data, nil
	}
	r, err := a.openBlob(ctx, desc, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if got := desc.Digest.Algorithm().FromBytes(b); got != desc.Digest {
		return nil, fmt.Errorf("%w: the registry sent %s for blob %s", ErrWrongContent, got, desc.Digest)
	}
	return b, nil
}

// OpenBlob returns the blob's bytes from offset on. When the connection
// breaks or ends early, reading goes on where it was, over a new one, within
// bounds. Exactly desc.Size-offset bytes are read or there is an error; their
// digest is for the caller to check, who may read from the middle. The reader
// is for one goroutine; it ends with ctx.
func (c *Client) OpenBlob(ctx context.Context, repo name.Repository, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	return c.openBlob(ctx, repo, desc, offset, false)
}

func (c *Client) openBlob(ctx context.Context, repo name.Repository, desc ocispecs.Descriptor, offset int64, isMirrored bool) (io.ReadCloser, error) {
	a := c.access(repo, displayRepo(repo)+"@"+desc.Digest.String(), false)
	a.isMirrored = isMirrored
	r, err := a.openBlob(ctx, desc, offset)
	if err != nil {
		return nil, a.fail("blob", err)
	}
	return r, nil
}

func (a *access) openBlob(ctx context.Context, desc ocispecs.Descriptor, offset int64) (*blobReader, error) {
	if err := validDescriptor(desc); err != nil {
		return nil, permanentError{err}
	}
	if offset < 0 || offset > desc.Size {
		return nil, permanentError{fmt.Errorf("offset %d is outside of the blob %s of %d bytes", offset, desc.Digest, desc.Size)}
	}
	b := &blobReader{a: a, ctx: ctx, desc: desc, off: offset}
	if offset == desc.Size {
		return b, nil
	}
	list := a.candidates(false)
	for {
		b.a, b.others = list[0], list[1:]
		err := b.a.retry(ctx, func() error { return b.a.fail(b.what(), b.connect()) })
		if err == nil {
			b.a.tellServed()
			b.moving = a.begin(desc.Size, desc.Digest, false)
		}
		if err == nil || len(b.others) == 0 || ctx.Err() != nil {
			return b, err
		}
		b.a.moveOn(err, b.others[0])
		list = b.others
	}
}

// A blobReader reads a blob over as many connections as it takes.
type blobReader struct {
	a   *access
	ctx context.Context //nolint:containedctx // the caller's, as for the body of any HTTP answer

	others []*access // places to go to when this one fails

	desc ocispecs.Descriptor
	off  int64

	moving   Moving        // nil if nothing moves
	body     io.ReadCloser // nil between connections
	failures int           // since mark
	mark     int64         // offset up to which progress was counted
	err      error
}

// progressUnit is how much must be read before a failure is forgotten: a
// registry that gives a byte per connection shall not keep us for ever.
const progressUnit = 1 << 20

func (b *blobReader) what() string { return "blob " + b.desc.Digest.String() }

// Read implements io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	for b.err == nil && len(p) > 0 {
		if b.off == b.desc.Size {
			b.err = b.finish()
			break
		}
		if b.body == nil {
			if b.err = b.connect(); b.err != nil {
				b.recover(b.err)
				continue
			}
		}
		n, err := b.body.Read(p[:min(int64(len(p)), b.desc.Size-b.off)])
		b.off += int64(n)
		b.a.c.received(int64(n))
		b.moving.At(b.off)
		if b.off-b.mark >= progressUnit {
			b.mark, b.failures = b.off, 0
		}
		if err != nil && b.off < b.desc.Size {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			b.disconnect()
			b.recover(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	return 0, b.err
}

// recover decides after a failure at the present offset whether to go on.
func (b *blobReader) recover(err error) {
	b.err = nil
	if b.ctx.Err() != nil {
		b.err = context.Cause(b.ctx)
		return
	}
	b.failures++
	wrapped := b.a.fail(b.what(), err)
	if len(b.others) > 0 && (b.failures > 1 || !isTemporary(wrapped)) {
		// It broke off, and going on there failed too.
		b.a.moveOn(wrapped, b.others[0])
		b.a, b.others, b.failures = b.others[0], b.others[1:], 0
		return
	}
	if b.failures > max(b.a.c.opt.StreamRetries, b.a.c.opt.Retries) || !isTemporary(wrapped) {
		b.err = wrapped
		return
	}
	if b.a.c.sleep(b.ctx, b.a.c.delay(b.failures-1, wrapped)) != nil {
		b.err = wrapped
	}
}

// connect opens the blob at the present offset.
func (b *blobReader) connect() error {
	r := request{method: http.MethodGet, path: b.a.blobPath(b.desc.Digest.String()), header: map[string]string{}}
	if b.off > 0 {
		r.header["Range"] = fmt.Sprintf("bytes=%d-%d", b.off, b.desc.Size-1)
	}
	resp, err := b.a.do(b.ctx, r)
	if err != nil {
		return err
	}
	skip, err := b.check(resp)
	if err == nil {
		_, err = io.CopyN(io.Discard, resp.Body, skip)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
	}
	if err != nil {
		resp.Body.Close()
		return err
	}
	b.body = resp.Body
	return nil
}

// check looks whether an answer is what was asked for, and returns how many
// of its bytes precede the offset: servers may ignore a Range.
func (b *blobReader) check(resp *http.Response) (skip int64, err error) {
	switch resp.StatusCode {
	case http.StatusOK:
		if n := resp.ContentLength; n >= 0 && n != b.desc.Size {
			return 0, fmt.Errorf("%w: the registry has %d bytes, the manifest says %d", ErrWrongContent, n, b.desc.Size)
		}
		return b.off, nil
	case http.StatusPartialContent:
		first, size, err := parseContentRange(resp.Header.Get("Content-Range"))
		if err != nil {
			return 0, permanentError{err}
		}
		if size >= 0 && size != b.desc.Size {
			return 0, fmt.Errorf("%w: the registry has %d bytes, the manifest says %d", ErrWrongContent, size, b.desc.Size)
		}
		if first > b.off {
			return 0, permanentError{fmt.Errorf("the registry sent bytes from %d on, asked for %d", first, b.off)}
		}
		return b.off - first, nil
	}
	return 0, b.a.failStatus(b.what(), resp)
}

// finish makes sure that nothing follows, and ends the transfer.
func (b *blobReader) finish() error {
	if b.body == nil {
		return io.EOF
	}
	var one [1]byte
	n, _ := io.ReadFull(b.body, one[:])
	b.disconnect()
	b.moving.End()
	if n > 0 {
		return b.a.fail(b.what(), fmt.Errorf("%w: the registry sent more than the %d bytes of the manifest", ErrWrongContent, b.desc.Size))
	}
	return io.EOF
}

func (b *blobReader) disconnect() {
	if b.body == nil {
		return
	}
	b.body.Close()
	b.body = nil
}

// Close implements io.Closer.
func (b *blobReader) Close() error {
	b.disconnect()
	if b.moving != nil {
		b.moving.End()
	}
	if b.err == nil {
		b.err = errors.New("read of a closed blob")
	}
	return nil
}

// parseContentRange reads "bytes first-last/size" (RFC 9110, 14.4); size is -1
// if it is "*".
func parseContentRange(s string) (first, size int64, err error) {
	bad := fmt.Errorf("the registry sent part of the blob with the invalid Content-Range %q", clip(s))
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), "bytes ")
	if !ok {
		return 0, 0, bad
	}
	span, total, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, bad
	}
	from, to, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, bad
	}
	first, err1 := strconv.ParseInt(strings.TrimSpace(from), 10, 64)
	last, err2 := strconv.ParseInt(strings.TrimSpace(to), 10, 64)
	size = -1
	var err3 error
	if total = strings.TrimSpace(total); total != "*" {
		size, err3 = strconv.ParseInt(total, 10, 64)
		if size < 0 {
			err3 = bad
		}
	}
	if err1 != nil || err2 != nil || err3 != nil || first < 0 || last < first || size >= 0 && last >= size {
		return 0, 0, bad
	}
	return first, size, nil
}
