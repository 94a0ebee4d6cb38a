// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/layer"
	"hako/internal/registry"
	"hako/internal/source"
	"hako/internal/store"
)

// images resolves references for the frontend and gives layers to the ops. A
// layer that several images share is one Layer, so it is fetched once.
type images struct {
	client  *registry.Client
	store   *store.Store
	layouts map[string]*source.Layout // by the name of the store
	depot   *store.Depot              // of base images; nil: none

	mu     sync.Mutex
	layers map[digest.Digest]*layer.Layer
	at     map[image.DiffID]registry.BlobSource // layers of the images that were resolved
}

// Resolve implements frontend.ImageResolver.
func (im *images) Resolve(ctx context.Context, ref string, platform ocispecs.Platform) (digest.Digest, []byte, error) {
	r, err := registry.ParseReference(ref)
	if err != nil {
		return "", nil, err
	}
	img, err := im.client.Resolve(ctx, r, &platform)
	if err != nil {
		return "", nil, err
	}
	ids, err := diffIDs(img.Config, img.Manifest)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", ref, err)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.at == nil {
		im.at = make(map[image.DiffID]registry.BlobSource)
	}
	for i, d := range img.Manifest.Layers {
		im.at[ids[i]] = registry.BlobSource{Client: im.client, Repo: img.Repo, Descriptor: d}
	}
	return img.Digest, img.Config, nil
}

// ResolveLayout implements frontend.ImageResolver.
func (im *images) ResolveLayout(_ context.Context, st, ref string, platform ocispecs.Platform) (digest.Digest, []byte, error) {
	img, err := im.layout(st, ref, &platform)
	if err != nil {
		return "", nil, err
	}
	return img.Digest, img.Config, nil
}

func (im *images) layout(st, ref string, platform *ocispecs.Platform) (*source.LayoutImage, error) {
	l, ok := im.layouts[st]
	if !ok {
		return nil, fmt.Errorf("there is no OCI layout %q: name one with --build-context NAME=oci-layout://DIR", st)
	}
	return l.Resolve(refDigest(ref), platform)
}

// refDigest returns the digest of "name@digest", or the whole if there is none.
func refDigest(ref string) string {
	for i := len(ref) - 1; i >= 0; i-- {
		if ref[i] == '@' {
			return ref[i+1:]
		}
	}
	return ref
}

// Layers implements ops.Images.
func (im *images) Layers(ctx context.Context, ref string, platform *ocispecs.Platform) ([]*layer.Layer, error) {
	r, err := registry.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	img, err := im.client.Resolve(ctx, r, platform)
	if err != nil {
		return nil, err
	}
	ids, err := diffIDs(img.Config, img.Manifest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	out := make([]*layer.Layer, len(ids))
	for i, d := range img.Manifest.Layers {
		src := registry.BlobSource{Client: im.client, Repo: img.Repo, Descriptor: d, Mirrored: true}
		l := layer.New(im.store, ids[i], d, src)
		l.Origin = img.Origin.Name() // a mirror's layers can be mounted there
		out[i] = im.pulled(l)
	}
	return out, nil
}

// pulled returns the layer l of an image in a registry.
func (im *images) pulled(l *layer.Layer) *layer.Layer {
	if im.depot != nil {
		l = layer.NewKept(l, im.depot)
	}
	return im.shared(l)
}

// keepIndexes stores the indexes of layers that this build has come to know.
func (im *images) keepIndexes(ctx context.Context) {
	if im.depot == nil {
		return
	}
	im.mu.Lock()
	layers := slices.Collect(maps.Values(im.layers))
	im.mu.Unlock()
	for _, l := range layers {
		if ctx.Err() != nil || l.KeepIndex(ctx, im.depot) != nil {
			return // the next build makes it again
		}
	}
}

// LayoutLayers implements ops.Images.
func (im *images) LayoutLayers(_ context.Context, st, ref string, platform *ocispecs.Platform) ([]*layer.Layer, error) {
	img, err := im.layout(st, ref, platform)
	if err != nil {
		return nil, err
	}
	layers, err := img.Layers(im.store)
	if err != nil {
		return nil, err
	}
	for i := range layers {
		layers[i] = im.shared(layers[i])
	}
	return layers, nil
}

func (im *images) shared(l *layer.Layer) *layer.Layer {
	im.mu.Lock()
	defer im.mu.Unlock()
	if old, ok := im.layers[l.Descriptor().Digest]; ok && old.DiffID() == l.DiffID() {
		return old
	}
	if im.layers == nil {
		im.layers = make(map[digest.Digest]*layer.Layer)
	}
	im.layers[l.Descriptor().Digest] = l
	return l
}

// diffIDs returns the identities of an image's layers. A config that does not
// match its manifest must not get through: the frontend takes an image without
// diffIDs for an empty one.
func diffIDs(config []byte, m ocispecs.Manifest) ([]image.DiffID, error) {
	var c ocispecs.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("read the image's config: %w", err)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("the image's config lists %d layers, its manifest %d", len(c.RootFS.DiffIDs), len(m.Layers))
	}
	out := make([]image.DiffID, len(m.Layers))
	for i, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("the image's config: diffID %q: %w", d, err)
		}
		out[i] = image.DiffID(d)
	}
	return out, nil
}
