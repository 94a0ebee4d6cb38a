// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Kept has blobs of earlier pulls.
type Kept interface {
	// ReadAll returns a blob of at most limit bytes, verified.
	ReadAll(d digest.Digest, limit int64) ([]byte, error)
	// Put keeps a blob, if it can.
	Put(d digest.Digest, b []byte)
}

// A root is a manifest or index, and where it came from.
type root struct {
	manifest *Manifest
	served   *access // nil: it was kept
}

// manifestFor gets what id, a tag or a digest, names, once for all who ask: so
// that all platforms are of one image, even if the tag moves.
func (a *access) manifestFor(ctx context.Context, id string) (*Manifest, error) {
	r, err := a.c.roots.do(ctx, a.repo.Name()+" "+id, func(ctx context.Context) (*root, error) {
		b := a.again()
		m, err := b.keptManifest(ctx, id)
		return &root{m, b.served}, err
	})
	if err != nil {
		return nil, err
	}
	a.setServed(r.served)
	return r.manifest, nil
}

// again returns an access like a that was not used yet.
func (a *access) again() *access {
	return &access{c: a.c, repo: a.repo, ref: a.ref, rt: a.rt, from: a.from, isMirrored: a.isMirrored}
}

// keptManifest is manifest, but one that is known by its digest may be kept.
func (a *access) keptManifest(ctx context.Context, id string) (*Manifest, error) {
	kept := a.c.opt.Kept
	if kept == nil {
		return a.manifest(ctx, id)
	}
	if d, err := digest.Parse(id); err == nil {
		if raw, err := kept.ReadAll(d, maxManifest); err == nil {
			if mt, err := mediaTypeOf("", raw); err == nil {
				return &Manifest{Digest: d, MediaType: mt, Raw: raw}, nil
			}
		}
	}
	m, err := a.manifest(ctx, id)
	if err != nil {
		return nil, err
	}
	// The registry's header goes lost: the manifest must tell its type itself.
	if mt, err := mediaTypeOf("", m.Raw); err == nil && mt == m.MediaType {
		kept.Put(m.Digest, m.Raw)
	}
	return m, nil
}

// config gets the config of an image, once for all who ask.
func (a *access) config(ctx context.Context, d ocispecs.Descriptor) ([]byte, error) {
	key := fmt.Sprintf("%s %s %d", a.repo.Name(), d.Digest, d.Size)
	return a.c.configs.do(ctx, key, func(ctx context.Context) ([]byte, error) {
		kept := a.c.opt.Kept
		if kept != nil {
			if b, err := kept.ReadAll(d.Digest, maxConfig); err == nil && int64(len(b)) == d.Size {
				return b, nil
			}
		}
		b, err := a.smallBlob(ctx, d)
		if err == nil && kept != nil {
			kept.Put(d.Digest, b)
		}
		return b, err
	})
}
