// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// StoreOptions say which bucket of Amazon S3, or of what speaks its protocol, is
// opened to keep objects in. What is not set here is looked for where the SDK
// looks for it, and in S3_ENDPOINT and S3_FORCE_PATH_STYLE.
type StoreOptions struct {
	Options
	Bucket, Region string
	Endpoint       string // URL of a server other than Amazon's
	PathStyle      *bool  // the bucket is in the path, not in the host's name
	AccessKeyID    string
	SecretKey      string
	SessionToken   string
	// Wait bounds the search for credentials.
	Wait time.Duration
	// Stall ends an exchange on which nothing moves for so long.
	Stall time.Duration
	// OpenFile opens a file whose content may be renewed while the store is used;
	// its path may lead elsewhere then.
	OpenFile func(path string) (read func() ([]byte, error), err error)
	// MaxPut is the size up to which an object is sent in one request; 0 is 4 GiB.
	// S3 takes 5.
	MaxPut int64
	// Received and Sent are told how many bytes of objects moved.
	Received, Sent func(n int64)
}

// A Store is a bucket that objects are kept in. It is safe for concurrent use.
type Store struct {
	opt         StoreOptions
	isAnonymous bool
	http        *http.Client

	mu            sync.Mutex
	cfg           aws.Config
	s3            *s3.Client
	unconditional bool // the server knows no conditions
}

// OpenStore finds the credentials. Nothing is asked of the bucket yet.
func OpenStore(ctx context.Context, opt StoreOptions) (*Store, error) {
	s := &Store{opt: opt}
	if err := s.findKeys(ctx); err != nil {
		return nil, err
	}
	s.http = &http.Client{
		Transport:     watchedTransport{s.transport(), opt.Stall},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return s, nil
}

// transport returns the SDK's, which knows AWS_CA_BUNDLE, on our connections.
func (s *Store) transport() http.RoundTripper {
	c, ok := s.cfg.HTTPClient.(*awshttp.BuildableClient)
	if !ok {
		return s.opt.HTTP.Transport
	}
	t := c.GetTransport() // a copy
	t.MaxIdleConnsPerHost, t.ExpectContinueTimeout, t.ForceAttemptHTTP2 = 16, time.Second, false
	return t
}

// Close ends what is open to the server.
func (s *Store) Close() error {
	s.http.CloseIdleConnections()
	if t, ok := s.http.Transport.(watchedTransport); ok {
		if inner, ok := t.RoundTripper.(*http.Transport); ok {
			inner.CloseIdleConnections()
		}
	}
	return nil
}

// client returns the client for the bucket's region. It learns the server's time.
func (s *Store) client() *s3.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.s3 == nil {
		s.s3 = s.newClient()
	}
	return s.s3
}

func (s *Store) newClient() *s3.Client {
	pathStyle, _ := strconv.ParseBool(s.opt.Getenv("S3_FORCE_PATH_STYLE"))
	if s.opt.PathStyle != nil {
		pathStyle = *s.opt.PathStyle
	}
	endpoint := cmp.Or(endpointURL(s.opt.Endpoint), s.opt.s3Endpoint())
	return s3.NewFromConfig(s.cfg, func(o *s3.Options) {
		o.UsePathStyle, o.HTTPClient, o.Retryer = pathStyle, s.http, aws.NopRetryer{}
		if endpoint != "" {
			o.BaseEndpoint = &endpoint
		}
		// What is sent has its SHA-256 signed, and what comes is compared by the reader.
		// Servers of other makers do not know newer checksums.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})
}

// do asks the server. What failed for a while is asked once more, and a bucket of
// another region there.
func (s *Store) do(ctx context.Context, ask func(*s3.Client) error) error {
	moved := false
	for try := 0; ; try++ {
		err := ask(s.client())
		if region := otherRegion(err); region != "" && !moved && s.move(region) {
			moved, try = true, -1
			continue
		}
		if err == nil || try > 0 || ctx.Err() != nil || !isPassing(err) {
			return s.explain(err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return s.explain(err)
		}
	}
}

// move tells whether the region is another one than so far, which it is then.
func (s *Store) move(region string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.Region == region {
		return false
	}
	s.cfg.Region, s.s3 = region, nil
	return true
}

// Open returns an object from offset on, with its version. An error satisfies
// fs.ErrNotExist if there is no such object.
func (s *Store) Open(ctx context.Context, key string, offset int64) (body io.ReadCloser, version string, err error) {
	in := &s3.GetObjectInput{Bucket: &s.opt.Bucket, Key: &key}
	if offset > 0 {
		in.Range = aws.String("bytes=" + strconv.FormatInt(offset, 10) + "-")
	}
	var out *s3.GetObjectOutput
	err = s.do(ctx, func(c *s3.Client) (err error) {
		out, err = c.GetObject(ctx, in)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	body = &countedBody{out.Body, s.opt.Received}
	switch from := aws.ToString(out.ContentRange); {
	case offset == 0:
	case from == "": // servers may ignore a range
		_, err = io.CopyN(io.Discard, body, offset)
	case !strings.HasPrefix(from, "bytes "+strconv.FormatInt(offset, 10)+"-"):
		err = errors.New("the server sent another part of the object than it was asked for")
	}
	if err != nil {
		return nil, "", errors.Join(err, body.Close())
	}
	return body, aws.ToString(out.ETag), nil
}

// Stat returns an object's size, and when it was written. An error satisfies
// fs.ErrNotExist if there is no such object.
func (s *Store) Stat(ctx context.Context, key string) (size int64, written time.Time, err error) {
	err = s.do(ctx, func(c *s3.Client) error {
		out, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.opt.Bucket, Key: &key})
		if err == nil {
			size, written = aws.ToInt64(out.ContentLength), aws.ToTime(out.LastModified)
		}
		return err
	})
	return size, written, err
}

// Put writes an object with exactly the bytes that desc describes. open gives
// them, perhaps more than once.
func (s *Store) Put(ctx context.Context, key string, desc ocispecs.Descriptor, open func(context.Context, int64) (io.ReadCloser, error)) error {
	if desc.Size > cmp.Or(s.opt.MaxPut, 4<<30) {
		return s.putParts(ctx, key, desc, open)
	}
	return s.do(ctx, func(c *s3.Client) error {
		body, err := open(ctx, 0)
		if err != nil {
			return &sourceError{err}
		}
		defer body.Close()
		_, err = c.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &s.opt.Bucket, Key: &key, Body: &countedBody{body, s.opt.Sent}, ContentLength: &desc.Size, ContentType: &desc.MediaType,
		}, signed(desc.Digest))
		return err
	})
}

// signed has the server compare what it gets with a digest.
func signed(d digest.Digest) func(*s3.Options) {
	return s3.WithAPIOptions(func(stack *middleware.Stack) error {
		return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("SignedDigest", func(
			ctx context.Context, in middleware.InitializeInput, next middleware.InitializeHandler,
		) (middleware.InitializeOutput, middleware.Metadata, error) {
			return next.HandleInitialize(v4.SetPayloadHash(ctx, d.Encoded()), in)
		}), middleware.Before)
	})
}

// Replace writes a small object in the place of the version that Open returned; ""
// is none. An error satisfies fs.ErrExist if another one is there meanwhile. A
// server that knows no conditions lets the last one win.
func (s *Store) Replace(ctx context.Context, key, mediaType string, content []byte, version string) error {
	return s.do(ctx, func(c *s3.Client) error {
		err := s.replace(ctx, c, key, mediaType, content, version)
		if !s.isUnconditional() && knowsNoConditions(err) {
			s.mu.Lock()
			s.unconditional = true
			s.mu.Unlock()
			err = s.replace(ctx, c, key, mediaType, content, version)
		}
		if version != "" && isMissing(err) {
			return fs.ErrExist
		}
		return err
	})
}

func (s *Store) replace(ctx context.Context, c *s3.Client, key, mediaType string, content []byte, version string) error {
	in := &s3.PutObjectInput{
		Bucket: &s.opt.Bucket, Key: &key, Body: &countedBody{newBytesReader(content), s.opt.Sent},
		ContentLength: aws.Int64(int64(len(content))), ContentType: &mediaType,
	}
	switch {
	case s.isUnconditional():
	case version == "":
		in.IfNoneMatch = aws.String("*")
	default:
		in.IfMatch = &version
	}
	_, err := c.PutObject(ctx, in, signed(digest.FromBytes(content)))
	return err
}

func (s *Store) isUnconditional() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unconditional
}

// Touch makes an object as young as a new one.
func (s *Store) Touch(ctx context.Context, key, mediaType string) error {
	return s.do(ctx, func(c *s3.Client) error {
		_, err := c.CopyObject(ctx, &s3.CopyObjectInput{
			Bucket: &s.opt.Bucket, Key: &key, CopySource: aws.String(copySource(s.opt.Bucket, key)),
			ContentType: &mediaType, MetadataDirective: types.MetadataDirectiveReplace,
		})
		return err
	})
}

// A countedBody tells how many bytes were read.
type countedBody struct {
	io.ReadCloser
	count func(int64)
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.count != nil {
		b.count(int64(n))
	}
	return n, err
}
