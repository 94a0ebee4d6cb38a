// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"cmp"
	"context"
	"time"

	"hako/internal/cache"
	"hako/internal/source/bucket"
)

// An S3Place is where in a bucket a cache is, and how the bucket is reached. What
// is "" is looked for where Amazon's SDK looks for it, and in S3_ENDPOINT and
// S3_FORCE_PATH_STYLE.
type S3Place struct {
	Bucket, Region string
	Endpoint       string // URL of a server other than Amazon's
	PathStyle      string // "true", "false" or ""
	AccessKeyID    Hidden
	SecretKey      Hidden
	SessionToken   Hidden

	// Prefix, Blobs and Manifests begin the objects' names, as buildx has them.
	Prefix, Blobs, Manifests string
	Name                     string // of the document, instead of one for each Dockerfile
	Uploads                  int    // blobs written at the same time; 0 is the default
	Refresh                  time.Duration
}

// Hidden is text that is not to be seen, however it is printed.
type Hidden string

// String implements fmt.Stringer.
func (Hidden) String() string { return "xxxxx" }

// GoString implements fmt.GoStringer.
func (Hidden) GoString() string { return "xxxxx" }

// MarshalText implements encoding.TextMarshaler.
func (h Hidden) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// where returns the place without what only tells how it is written.
func (p S3Place) where() S3Place {
	p.Uploads, p.Refresh = 0, 0
	return p
}

func (p S3Place) String() string {
	s := "s3://" + p.Bucket
	if p.Prefix != "" {
		s += "/" + p.Prefix
	}
	return s
}

// keysWait bounds the search for the credentials of a build's caches: without a
// cache the build would be under way.
const keysWait = 2 * time.Second

// inBucket opens a bucket; nil is one that cannot be used. Its credentials are
// found now: the files that have them are out of reach later.
func (x *cacheOpener) inBucket(ctx context.Context, p S3Place) (cache.Backend, error) {
	if r, ok := x.sink.(interface{ Redact(values ...[]byte) }); ok {
		r.Redact([]byte(p.SecretKey), []byte(p.SessionToken))
	}
	if x.keysBy.IsZero() {
		x.keysBy = time.Now().Add(keysWait)
	}
	o := bucket.StoreOptions{
		Options: bucket.Options{HTTP: x.network.client(), Getenv: x.opt.Env.Get},
		Bucket:  p.Bucket, Region: p.Region, Endpoint: p.Endpoint,
		AccessKeyID: string(p.AccessKeyID), SecretKey: string(p.SecretKey), SessionToken: string(p.SessionToken),
		Wait: max(time.Until(x.keysBy), time.Millisecond), Stall: cacheStall, OpenFile: x.openToken,
		Received: x.meter.down, Sent: x.meter.up,
	}
	if p.PathStyle != "" {
		inPath := p.PathStyle == "true"
		o.PathStyle = &inPath
	}
	objects, err := bucket.OpenStore(ctx, o)
	if err != nil && ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		x.note("cache %s: nothing of it is used: %v", p, err)
		return nil, nil
	}
	x.uploads = max(x.uploads, p.Uploads)
	return cache.InBucket(cache.Bucket{
		Objects: objects, Name: p.String(), Tag: p.Name, Uploads: p.Uploads, Refresh: p.Refresh, Rewrite: x.distrust[p.String()],
		Blobs: p.Prefix + cmp.Or(p.Blobs, "blobs/"), Documents: p.Prefix + cmp.Or(p.Manifests, "manifests/"),
	}), nil
}

// openToken opens a file that is renewed while the build goes on.
func (b *build) openToken(path string) (func() ([]byte, error), error) {
	f, err := openTokenFile(path)
	if err != nil {
		return nil, err
	}
	b.tokens = append(b.tokens, f)
	return f.read, nil
}
