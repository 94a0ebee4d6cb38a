// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/google/go-containerregistry/pkg/name"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"hako/internal/image"
)

// A Joined is an index of images that exist already.
type Joined struct {
	Index   image.Document
	Members []Member // in the order of the index
}

// Join makes the index of members. It depends on them and the annotations
// alone, not on the order in which they are given: equal images give an index
// with the same digest, whoever makes it. Annotations are for the index
// ([image.OnIndex]) or for its entries ([image.OnManifestDescriptor]).
//
// Two images for one platform are an error; the same image twice is not.
func Join(members []Member, annotations []image.Annotation) (*Joined, error) {
	j := &Joined{}
	seen := map[string]Member{}
	var ps []ocispecs.Platform
	for _, m := range members {
		key := platformKey(m)
		if other, ok := seen[key]; ok {
			if other.Desc.Digest == m.Desc.Digest {
				continue
			}
			return nil, fmt.Errorf("two images are for %s: %s and %s", platforms.FormatAll(*m.Desc.Platform), other.Desc.Digest, m.Desc.Digest)
		}
		seen[key] = m
		ps = append(ps, *m.Desc.Platform)
		j.Members = append(j.Members, m)
	}
	if err := image.CheckAnnotations(annotations, ps, true, false); err != nil {
		return nil, err
	}
	slices.SortFunc(j.Members, func(a, b Member) int {
		return cmp.Or(
			compareBools(isAttestation(a.Desc), isAttestation(b.Desc)),
			cmp.Compare(platformKey(a), platformKey(b)),
		)
	})
	// An index in Docker's media type may list Docker's manifests only and has
	// no annotations.
	docker := image.AnnotationsFor(annotations, image.OnIndex, nil) == nil
	var descs []ocispecs.Descriptor
	for i := range j.Members {
		d := &j.Members[i].Desc
		docker = docker && d.MediaType == image.DockerManifest
		for k, v := range image.AnnotationsFor(annotations, image.OnManifestDescriptor, d.Platform) {
			d.Annotations = withAnnotation(d.Annotations, k, v)
			docker = false
		}
		descs = append(descs, *d)
	}
	x, err := image.NewIndex(descs, image.AnnotationsFor(annotations, image.OnIndex, nil), docker)
	j.Index = x
	return j, err
}

// platformKey is equal for what cannot stand beside each other in an index.
// Attestations are told apart by the image they are about and by themselves.
func platformKey(m Member) string {
	if isAttestation(m.Desc) {
		return m.Desc.Annotations["vnd.docker.reference.digest"] + " " + m.Desc.Digest.String()
	}
	p := platforms.Normalize(*m.Desc.Platform)
	return platforms.FormatAll(p) + " " + strings.Join(p.OSFeatures, ",")
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// withAnnotation returns a copy of m with one more: the map may be shared.
func withAnnotation(m map[string]string, key, value string) map[string]string {
	out := map[string]string{key: value}
	for k, v := range m {
		if k != key {
			out[k] = v
		}
	}
	return out
}

// Push brings to tag's repository what of the images is not there, by mounting
// it where they lie in the same registry, and sets the tag last. A blob that an
// image points at and that is nowhere to be had is an error.
func (j *Joined) Push(ctx context.Context, p Pusher, tag name.Tag) error {
	repo := tag.Context()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxPushes)
	seen := map[string]bool{}
	for _, m := range j.Members {
		for _, b := range m.blobs {
			if !seen[b.Digest.String()] {
				seen[b.Digest.String()] = true
				g.Go(func() error { return pushBlob(gctx, p, []name.Repository{repo}, m.blob(b)) })
			}
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, m := range j.Members {
		if l, ok := m.from.(Repository); ok && l.Repo.Name() == repo.Name() {
			continue
		}
		if err := pushManifest(ctx, p, repo, image.Document{Desc: m.Desc, Data: m.raw}); err != nil {
			return err
		}
	}
	if err := p.PushManifest(ctx, tag, j.Index.Desc.MediaType, j.Index.Data); err != nil {
		return fmt.Errorf("push %s: %w", tag.Name(), err)
	}
	return nil
}

func (m Member) blob(desc ocispecs.Descriptor) blob {
	b := blob{desc: desc}
	if l, ok := m.from.(Repository); ok {
		b.origin = l.Repo.Name()
	}
	b.open = func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return m.from.OpenBlob(ctx, desc, offset)
	}
	return b
}
