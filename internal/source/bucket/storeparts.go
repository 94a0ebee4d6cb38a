// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// abortWait bounds what is done to take back an upload that did not succeed.
const abortWait = 2 * time.Second

// putParts sends an object that is too big for one request, an eighth of what one
// takes at a time.
func (s *Store) putParts(ctx context.Context, key string, desc ocispecs.Descriptor, open func(context.Context, int64) (io.ReadCloser, error)) (err error) {
	var id *string
	if err := s.do(ctx, func(c *s3.Client) error {
		out, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &s.opt.Bucket, Key: &key, ContentType: &desc.MediaType})
		if err == nil {
			id = out.UploadId
		}
		return err
	}); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortWait)
		defer cancel()
		// What stays is for the bucket's own rules.
		_, _ = s.client().AbortMultipartUpload(bounded, &s3.AbortMultipartUploadInput{Bucket: &s.opt.Bucket, Key: &key, UploadId: id})
	}()
	var parts []types.CompletedPart
	whole := digest.SHA256.Digester()
	size := cmp.Or(s.opt.MaxPut, 4<<30) / 8
	for from := int64(0); from < desc.Size; from += size {
		number := int32(len(parts) + 1) //nolint:gosec // a blob has less than 2^31 parts
		p := &part{
			open: open, from: from, size: min(size, desc.Size-from), whole: whole,
			in: s3.UploadPartInput{Bucket: &s.opt.Bucket, Key: &key, UploadId: id, PartNumber: &number},
		}
		etag, err := s.putPart(ctx, p)
		if err != nil {
			return err
		}
		parts = append(parts, types.CompletedPart{ETag: etag, PartNumber: &number})
	}
	if whole.Digest() != desc.Digest {
		return fmt.Errorf("blob %s: its bytes are others", desc.Digest)
	}
	return s.do(ctx, func(c *s3.Client) error {
		_, err := c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: &s.opt.Bucket, Key: &key, UploadId: id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		})
		return err
	})
}

// A part is one of an object that is sent in several.
type part struct {
	open       func(context.Context, int64) (io.ReadCloser, error)
	from, size int64
	whole      digest.Digester
	in         s3.UploadPartInput
}

// putPart reads a part twice: its digest is signed before it is sent.
func (s *Store) putPart(ctx context.Context, p *part) (etag *string, err error) {
	sum := digest.SHA256.Digester()
	rc, err := p.open(ctx, p.from)
	if err != nil {
		return nil, err
	}
	_, err = io.CopyN(io.MultiWriter(sum.Hash(), p.whole.Hash()), rc, p.size)
	if cerr := rc.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	err = s.do(ctx, func(c *s3.Client) error {
		rc, err := p.open(ctx, p.from)
		if err != nil {
			return &sourceError{err}
		}
		defer rc.Close()
		in := p.in
		in.ContentLength = aws.Int64(p.size)
		in.Body = &countedBody{struct {
			io.Reader
			io.Closer
		}{io.LimitReader(rc, p.size), rc}, s.opt.Sent}
		out, err := c.UploadPart(ctx, &in, signed(sum.Digest()))
		if err == nil {
			etag = out.ETag
		}
		return err
	})
	return etag, err
}
