// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/docker/go-units"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/export"
	"hako/internal/progress"
	"hako/internal/registry"
)

// A tally is a pusher that remembers how each blob got where it is. It is safe
// for concurrent use.
type tally struct {
	export.Pusher
	// ignoreImmutable makes the refusal to set a tag again no error.
	ignoreImmutable bool

	mu   sync.Mutex
	seen map[string]sent
	kept []name.Tag // that keep the image they had
}

// PushManifest implements export.Pusher. Where a tag may not be set again, and
// that is to be no error, the image is pushed by its digest alone, so that what
// result files name is there.
func (t *tally) PushManifest(ctx context.Context, ref name.Reference, mediaType string, raw []byte) error {
	err := t.Pusher.PushManifest(ctx, ref, mediaType, raw)
	tag, ok := ref.(name.Tag)
	if !ok || !t.ignoreImmutable || !registry.IsImmutableTag(err) {
		return err
	}
	if derr := t.Pusher.PushManifest(ctx, tag.Digest(digest.FromBytes(raw).String()), mediaType, raw); derr != nil && ctx.Err() != nil {
		return derr
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, tag)
	return nil
}

// set divides tags into those that were set and those that keep the image they
// had, which it tells.
func (t *tally) set(task *progress.Task, tags []name.Tag) (set []name.Tag) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tag := range tags {
		if slices.Contains(t.kept, tag) {
			task.Logf("%s keeps the image it has: the registry does not set it again (--push-ignore-immutable-tag-errors)", displayTag(tag))
			continue
		}
		set = append(set, tag)
	}
	return set
}

type sent struct {
	how  registry.PushResult
	size int64
}

// PushBlob implements export.Pusher. A blob that was pushed early comes again,
// and is there already then: the first answer counts.
func (t *tally) PushBlob(ctx context.Context, dst name.Repository, desc ocispecs.Descriptor, open registry.Opener, from []name.Repository) (registry.PushResult, error) {
	how, err := t.Pusher.PushBlob(ctx, dst, desc, open, from)
	if err != nil {
		return how, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	key := dst.Name() + "@" + desc.Digest.String()
	if _, ok := t.seen[key]; !ok {
		if t.seen == nil {
			t.seen = make(map[string]sent)
		}
		t.seen[key] = sent{how, desc.Size}
	}
	return how, nil
}

// report says for each repository of tags how much had to be sent.
func (t *tally) report(task *progress.Task, tags []name.Tag, layers []digest.Digest) {
	told := make(map[string]bool)
	for _, tag := range tags {
		if repo := tag.Context(); !told[repo.Name()] {
			told[repo.Name()] = true
			task.Logf("%s: %s", repo.Name(), t.summary(repo, layers))
		}
	}
}

// summary says how the layers of an image got to a repository.
func (t *tally) summary(repo name.Repository, layers []digest.Digest) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var there, mounted, uploaded int
	var bytes int64
	for _, d := range layers {
		s := t.seen[repo.Name()+"@"+d.String()]
		switch s.how {
		case registry.Mounted:
			mounted++
		case registry.Uploaded:
			uploaded++
			bytes += s.size
		default:
			there++
		}
	}
	return fmt.Sprintf("%d layers: %d there already, %d mounted, %d sent (%s)", len(layers), there, mounted, uploaded, units.HumanSize(float64(bytes)))
}
