// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"

	"hako/internal/layer"
)

// A pulse beats whenever bytes move.
type pulse struct {
	mu   sync.Mutex
	last time.Time
}

func newPulse() *pulse { return &pulse{last: time.Now()} }

func (p *pulse) beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now()
}

func (p *pulse) age() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.last)
}

// wait returns when done is closed, or nothing moved for so long.
func (p *pulse) wait(done <-chan struct{}, limit time.Duration) {
	p.beat()
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for p.age() < limit {
		select {
		case <-done:
			return
		case <-t.C:
		}
	}
}

// watch makes the pulse beat with what is read.
func (p *pulse) watch(rc io.ReadCloser, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	return &beatReader{ReadCloser: rc, pulse: p}, nil
}

type beatReader struct {
	io.ReadCloser
	pulse *pulse
}

func (r *beatReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	r.pulse.beat()
	return n, err
}

func humanSize(n int64) string { return units.HumanSize(float64(n)) }

// openVerified opens a small blob whose bytes are compared with its digest.
func openVerified(ctx context.Context, src layer.Source, b docBlob) (io.ReadCloser, error) {
	rc, err := src.Open(ctx, 0)
	if err != nil {
		return nil, err
	}
	return &verified{ReadCloser: rc, left: b.Size, want: b.Digest, hash: sha256.New()}, nil
}

type verified struct {
	io.ReadCloser
	left int64
	want digest.Digest
	hash hash.Hash
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.ReadCloser.Read(p)
	v.hash.Write(p[:n])
	v.left -= int64(n)
	if v.left < 0 || errors.Is(err, io.EOF) && (v.left != 0 || digest.NewDigest(digest.SHA256, v.hash) != v.want) {
		return n, fmt.Errorf("blob %s: %w", v.want, layer.ErrDigestMismatch)
	}
	return n, err
}
