// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"hako/internal/image"
	"hako/internal/layer"
	"hako/internal/registry"
)

// maxPushes is how many blobs travel to one registry at once.
const maxPushes = 4

// A Pusher stores blobs and manifests in registries, as [registry.Client] does.
// It has to remember what it pushed: a layer may be pushed early and again.
type Pusher interface {
	PushBlob(ctx context.Context, dst name.Repository, desc ocispecs.Descriptor, open registry.Opener, from []name.Repository) (registry.PushResult, error)
	PushManifest(ctx context.Context, ref name.Reference, mediaType string, raw []byte) error
	// StreamBlob sends a blob that is still being made, to where PushBlob finds it.
	StreamBlob(ctx context.Context, dst name.Repository, blob registry.Growing)
}

// Push sends the image to all destinations: first every blob to every
// repository, then the manifests by digest, and only when all that is there the
// tags. It returns the tags that were set, which on failure are none, unless
// setting a tag itself is what failed.
func (b *Bundle) Push(ctx context.Context, p Pusher, tags []name.Tag) ([]name.Tag, error) {
	if err := b.PushParts(ctx, p, tags); err != nil {
		return nil, err
	}
	return b.PushTags(ctx, p, tags)
}

// PushParts sends all that has to be there before the tags are set.
func (b *Bundle) PushParts(ctx context.Context, p Pusher, tags []name.Tag) error {
	repos := repositories(tags)
	blobs := b.blobs()
	g, gctx := errgroup.WithContext(ctx)
	for _, same := range byRegistry(repos) {
		g.Go(func() error { return pushBlobs(gctx, p, same, blobs) })
	}
	if err := g.Wait(); err != nil || b.Index == nil {
		return err
	}
	return b.pushManifests(ctx, p, repos)
}

// PushTags sets the tags, once PushParts has sent what they stand for. It
// returns those that were set.
func (b *Bundle) PushTags(ctx context.Context, p Pusher, tags []name.Tag) ([]name.Tag, error) {
	return pushTags(ctx, p, b.Root(), tags)
}

func pushTags(ctx context.Context, p Pusher, root image.Document, tags []name.Tag) ([]name.Tag, error) {
	var done []name.Tag
	for _, tag := range tags {
		if slices.Contains(done, tag) {
			continue
		}
		if err := p.PushManifest(ctx, tag, root.Desc.MediaType, root.Data); err != nil {
			return done, fmt.Errorf("push %s: %w", tag.Name(), err)
		}
		done = append(done, tag)
	}
	return done, nil
}

func (b *Bundle) pushManifests(ctx context.Context, p Pusher, repos []name.Repository) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxPushes)
	for _, repo := range repos {
		for _, m := range b.Images {
			g.Go(func() error { return pushManifest(gctx, p, repo, m.Document) })
		}
	}
	return g.Wait()
}

func pushManifest(ctx context.Context, p Pusher, repo name.Repository, d image.Document) error {
	ref := repo.Digest(d.Desc.Digest.String())
	if err := p.PushManifest(ctx, ref, d.Desc.MediaType, d.Data); err != nil {
		return fmt.Errorf("push %s: %w", ref.Name(), err)
	}
	return nil
}

// pushBlobs sends blobs to repositories of one registry. A blob goes to one
// repository after the other, so that all but the first can mount it.
func pushBlobs(ctx context.Context, p Pusher, repos []name.Repository, blobs []blob) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxPushes)
	for _, x := range blobs {
		g.Go(func() error { return pushBlob(gctx, p, repos, x) })
	}
	return g.Wait()
}

func pushBlob(ctx context.Context, p Pusher, repos []name.Repository, x blob) error {
	var from []name.Repository
	if x.origin != "" {
		// An origin that cannot be read costs an upload, nothing else.
		if r, err := name.NewRepository(x.origin); err == nil {
			from = append(from, r)
		}
	}
	for _, repo := range repos {
		if _, err := p.PushBlob(ctx, repo, x.desc, x.open, from); err != nil {
			return fmt.Errorf("push to %s: %w", repo.Name(), err)
		}
		from = append([]name.Repository{repo}, from...)
	}
	return nil
}

// repositories returns the repositories of tags, once each.
func repositories(tags []name.Tag) []name.Repository {
	var repos []name.Repository
	for _, t := range tags {
		same := func(r name.Repository) bool { return r.Name() == t.Context().Name() }
		if !slices.ContainsFunc(repos, same) {
			repos = append(repos, t.Context())
		}
	}
	return repos
}

func byRegistry(repos []name.Repository) [][]name.Repository {
	var groups [][]name.Repository
next:
	for _, r := range repos {
		for i := range groups {
			if groups[i][0].RegistryStr() == r.RegistryStr() {
				groups[i] = append(groups[i], r)
				continue next
			}
		}
		groups = append(groups, []name.Repository{r})
	}
	return groups
}

// An Early pushes layers while the build goes on. It is only a head start:
// [Bundle.Push] pushes them again, which the Pusher answers from memory, and
// reports what an early push could not do. It is safe for concurrent use.
type Early struct {
	push   func(l *layer.Layer) error
	stream func(repo name.Repository, blob registry.Growing)
	groups [][]name.Repository // by registry
	cancel context.CancelFunc

	mu      sync.Mutex
	wg      sync.WaitGroup
	started map[digest.Digest]chan struct{} // closed when the push has ended
	err     error
}

// NewEarly returns a pusher of layers to the repositories of tags. Its pushes
// end with ctx, and no later than Wait or Stop, one of which must be called.
func NewEarly(ctx context.Context, p Pusher, tags []name.Tag) *Early {
	ctx, cancel := context.WithCancel(ctx)
	groups := byRegistry(repositories(tags))
	slots := make(chan struct{}, maxPushes)
	push := func(l *layer.Layer) error {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for _, same := range groups {
			if err := pushBlob(ctx, p, same, layerBlob(l)); err != nil {
				return err
			}
		}
		return nil
	}
	stream := func(repo name.Repository, blob registry.Growing) { p.StreamBlob(ctx, repo, blob) }
	return &Early{push: push, stream: stream, groups: groups, cancel: cancel, started: map[digest.Digest]chan struct{}{}}
}

// Follow begins to send a layer that is still being written to one repository of
// each registry; the others mount it when it is finished and Start is called. It
// passes over repositories that are sent to already, and adds its own to them. It
// must only be called where Start may be, and like it.
func (e *Early) Follow(g *layer.Growing, sentTo map[string]bool) {
	for _, same := range e.groups {
		repo := same[0]
		if sentTo[repo.Name()] {
			continue
		}
		f, err := g.Follow()
		if err != nil {
			return // it is sent when it is finished
		}
		sentTo[repo.Name()] = true
		e.wg.Go(func() {
			defer func() { _ = f.Close() }() // it was only read
			e.stream(repo, f)
		})
	}
}

// Start begins to push l, once. It must only be given layers that are sure to
// be in the image, and never after Wait or Stop.
func (e *Early) Start(l *layer.Layer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d := l.Descriptor().Digest; e.started[d] == nil {
		done := make(chan struct{})
		e.started[d] = done
		e.wg.Go(func() {
			defer close(done)
			if err := e.push(l); err != nil {
				e.mu.Lock()
				defer e.mu.Unlock()
				if e.err == nil {
					e.err = err
				}
			}
		})
	}
}

// Settle waits until the push of l has ended, and tells whether there was one.
func (e *Early) Settle(ctx context.Context, l *layer.Layer) bool {
	e.mu.Lock()
	done := e.started[l.Descriptor().Digest]
	e.mu.Unlock()
	if done == nil {
		return false
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	return true
}

// Wait waits for the pushes that were started and returns the first error.
func (e *Early) Wait() error {
	e.wg.Wait()
	e.cancel()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}

// Stop ends the pushes under way and waits for their end.
func (e *Early) Stop() {
	e.cancel()
	e.wg.Wait()
}
