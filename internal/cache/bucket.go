// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/layer"
)

// Objects is a bucket of an object store. Its errors say what the server answered,
// in one line that holds no secrets. It is safe for concurrent use.
type Objects interface {
	// Open returns an object from offset on, with its version. Its error satisfies
	// fs.ErrNotExist if there is no such object.
	Open(ctx context.Context, key string, offset int64) (body io.ReadCloser, version string, err error)
	// Stat returns an object's size, and when it was written. Its error satisfies
	// fs.ErrNotExist if there is no such object.
	Stat(ctx context.Context, key string) (size int64, written time.Time, err error)
	// Put writes an object with exactly the bytes that desc describes.
	Put(ctx context.Context, key string, desc ocispecs.Descriptor, open func(ctx context.Context, offset int64) (io.ReadCloser, error)) error
	// Replace writes a small object in the place of the version that Open returned,
	// "" for none. Its error satisfies fs.ErrExist if another one is there meanwhile.
	Replace(ctx context.Context, key, mediaType string, content []byte, version string) error
	// Touch makes an object as young as a new one.
	Touch(ctx context.Context, key, mediaType string) error
	// Close ends its use.
	Close() error
}

// A Bucket says where in an object store a cache is.
type Bucket struct {
	Objects Objects
	Name    string // for messages: "s3://bucket/prefix"
	// Blobs and Documents begin the objects' names.
	Blobs, Documents string
	// Tag is that of the document, instead of the cache's own.
	Tag string
	// Uploads is how many blobs are written at the same time; 0 is 4.
	Uploads int
	// Refresh is the age from which objects that were of use are touched: what is
	// in a bucket goes when it has the age that a rule of the bucket says. 0 is a day.
	Refresh time.Duration
	// Rewrite writes blobs that are there already: some turned out to be broken.
	Rewrite bool
}

// maxTouched is the size up to which S3 copies an object at once.
const maxTouched = 5 << 30

// A bucketBackend is a bucket. Nothing is ever deleted in it: what no document
// speaks of any more is not touched either.
type bucketBackend struct {
	Bucket
	slots chan struct{}

	mu   sync.Mutex
	sent map[digest.Digest]*sending
}

// A sending is a blob that this build has written, or found there.
type sending struct {
	mu   sync.Mutex
	done bool
}

// InBucket returns the backend that is a bucket.
func InBucket(x Bucket) Backend {
	x.Refresh = cmp.Or(x.Refresh, refreshAfter)
	return &bucketBackend{Bucket: x, slots: make(chan struct{}, cmp.Or(max(x.Uploads, 0), 4)), sent: map[digest.Digest]*sending{}}
}

// bucketPrefix keeps the names of documents apart from those of other builders'.
const bucketPrefix = "hako-"

func (b *bucketBackend) Name() string   { return b.Bucket.Name }
func (b *bucketBackend) Origin() string { return "" }
func (b *bucketBackend) Close() error   { return b.Objects.Close() }

func (b *bucketBackend) document(tag string) string {
	if b.Tag != "" {
		return b.Documents + bucketPrefix + b.Tag
	}
	return b.Documents + tag
}

func (b *bucketBackend) blob(d digest.Digest) string { return b.Blobs + d.String() }

// Load implements Backend.
func (b *bucketBackend) Load(ctx context.Context, tag string) ([]byte, error) {
	doc, _, err := b.load(ctx, tag)
	return doc, err
}

func (b *bucketBackend) load(ctx context.Context, tag string) (doc []byte, version string, err error) {
	body, version, err := b.Objects.Open(ctx, b.document(tag), 0)
	if err != nil {
		return nil, "", err
	}
	defer body.Close()
	doc, err = io.ReadAll(io.LimitReader(body, 2*maxPacked+1))
	if err == nil && len(doc) > 2*maxPacked {
		doc, err = nil, fmt.Errorf("%w: it is too big", errDocument)
	}
	return doc, version, err
}

// maxReplaced is how often a document is merged anew because somebody else was
// faster. They cannot be faster for ever: each of them was done then.
const maxReplaced = 8

// Update implements Backend. Where the server knows conditions, nothing goes lost.
func (b *bucketBackend) Update(ctx context.Context, tag string, change func([]byte) ([]byte, []ocispecs.Descriptor, error)) error {
	for n := 0; ; n++ {
		old, version, err := b.load(ctx, tag)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errDocument) {
			return err
		}
		doc, _, err := change(old)
		if err != nil {
			return err
		}
		err = b.Objects.Replace(ctx, b.document(tag), mediaTypeDoc, doc, version)
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		if n == maxReplaced {
			return errors.New("others wrote its document each time that this build did")
		}
		select {
		case <-time.After(time.Duration(rand.Int64N(int64(20*time.Millisecond) << n))):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// once does what is to be done for a blob, unless it was done.
func (b *bucketBackend) once(ctx context.Context, d digest.Digest, do func() error) error {
	b.mu.Lock()
	s := b.sent[d]
	if s == nil {
		s = &sending{}
		b.sent[d] = s
	}
	b.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return nil
	}
	select {
	case b.slots <- struct{}{}:
		defer func() { <-b.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := do()
	s.done = err == nil
	return err
}

// Put implements Backend.
func (b *bucketBackend) Put(ctx context.Context, desc ocispecs.Descriptor, open func(context.Context, int64) (io.ReadCloser, error), _ string) error {
	return b.once(ctx, desc.Digest, func() error {
		key := b.blob(desc.Digest)
		if !b.Rewrite {
			size, written, err := b.Objects.Stat(ctx, key)
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				return err
			case size == desc.Size && time.Since(written) <= b.Refresh:
				return nil
			case size == desc.Size:
				if err := b.touch(ctx, desc); err == nil {
					return nil
				}
			}
		}
		return b.Objects.Put(ctx, key, desc, open)
	})
}

func (b *bucketBackend) refreshAfter() time.Duration { return b.Refresh }

// refresh makes a blob that is of use young.
func (b *bucketBackend) refresh(ctx context.Context, desc ocispecs.Descriptor) error {
	return b.once(ctx, desc.Digest, func() error {
		err := b.touch(ctx, desc)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // whoever needs it will see
		}
		return err
	})
}

func (b *bucketBackend) touch(ctx context.Context, desc ocispecs.Descriptor) error {
	if desc.Size > maxTouched {
		return nil
	}
	return b.Objects.Touch(ctx, b.blob(desc.Digest), desc.MediaType)
}

// Blob implements Backend.
func (b *bucketBackend) Blob(desc ocispecs.Descriptor) layer.Source { return objectBlob{b, desc} }

type objectBlob struct {
	b    *bucketBackend
	desc ocispecs.Descriptor
}

// Open implements layer.Source.
func (x objectBlob) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if offset < 0 || offset > x.desc.Size {
		return nil, fmt.Errorf("offset %d is outside of the blob %s of %d bytes", offset, x.desc.Digest, x.desc.Size)
	}
	r := &objectReader{objectBlob: x, ctx: ctx, offset: offset}
	if offset < x.desc.Size {
		if err := r.connect(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// An objectReader reads a blob, over a second connection if the first breaks off.
type objectReader struct {
	objectBlob
	ctx     context.Context //nolint:containedctx // the caller's, as for any reader
	body    io.ReadCloser
	offset  int64
	resumed bool
}

func (r *objectReader) connect() (err error) {
	r.body, _, err = r.b.Objects.Open(r.ctx, r.b.blob(r.desc.Digest), r.offset)
	return err
}

// Read implements io.Reader. What comes after the blob's size is not read.
func (r *objectReader) Read(p []byte) (int, error) {
	left := r.desc.Size - r.offset
	if left == 0 {
		return 0, io.EOF
	}
	n, err := r.body.Read(p[:min(int64(len(p)), left)])
	r.offset += int64(n)
	if err == nil || r.offset == r.desc.Size {
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if r.resumed || r.offset == 0 || r.ctx.Err() != nil {
		return n, err
	}
	r.resumed = true
	_ = r.body.Close()
	if r.connect() != nil {
		r.body = io.NopCloser(failing{err})
	}
	return n, nil
}

// Close implements io.Closer.
func (r *objectReader) Close() error {
	if r.body == nil {
		return nil
	}
	return r.body.Close()
}

// failing is a reader that has failed.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
