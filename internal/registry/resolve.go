// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// An Image is what a reference means for a platform. It is shared: what it
// points to must not be changed.
type Image struct {
	Repo           name.Repository
	Digest         digest.Digest // what the reference resolved to; an index's if it is one
	MediaType      string        // of what has Digest
	Raw            []byte        // what has Digest: the index or the manifest
	ManifestDigest digest.Digest
	ManifestType   string
	RawManifest    []byte
	Manifest       ocispecs.Manifest
	Config         []byte
	Account        Account // who was signed in
	// Origin is the repository that served the manifest: Repo, or a mirror's.
	Origin name.Repository
}

// ErrNoPlatform is an index that has nothing for the platform asked for.
var ErrNoPlatform = errors.New("no match for platform")

// maxIndexDepth limits indexes within indexes.
const maxIndexDepth = 4

// Resolve finds the image that ref means for platform (nil is this machine's)
// and gets its manifest and config, verified. It asks the registry once for
// each reference, and of images it has Kept, for their tags only. An index leads to the manifest that
// containerd would choose; a reference to a single manifest is taken whatever
// its platform, as BuildKit does. Mirrors are asked first.
func (c *Client) Resolve(ctx context.Context, ref name.Reference, platform *ocispecs.Platform) (*Image, error) {
	p := platforms.DefaultSpec()
	if platform != nil {
		p = platforms.Normalize(*platform)
	}
	key := ref.Name() + " " + platforms.FormatAll(p) + " " + strings.Join(p.OSFeatures, ",")
	return c.images.do(ctx, key, func(ctx context.Context) (*Image, error) {
		a := c.access(ref.Context(), displayRef(ref), false)
		a.isMirrored = true
		img, err := a.resolve(ctx, ref, p)
		if err != nil {
			return nil, a.fail("", err)
		}
		img.Origin = a.repo
		if a.served == nil {
			return img, nil // nobody was asked
		}
		img.Account = a.served.account()
		if p := a.served.place; p != nil && p.Path == "" {
			img.Origin = a.served.repo
		}
		return img, nil
	})
}

func (a *access) resolve(ctx context.Context, ref name.Reference, p ocispecs.Platform) (*Image, error) {
	m, err := a.manifestFor(ctx, ref.Identifier())
	if err != nil {
		return nil, err
	}
	img := &Image{Repo: a.repo, Digest: m.Digest, MediaType: m.MediaType, Raw: m.Raw}
	match := platforms.Only(p)
	for depth := 0; m.IsIndex(); depth++ {
		if depth == maxIndexDepth {
			return nil, fmt.Errorf("index %s: more than %d indexes within each other", img.Digest, maxIndexDepth)
		}
		idx, err := parseIndex(m.Raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.Digest, err)
		}
		d, err := choose(idx, match)
		if err != nil {
			return nil, fmt.Errorf("%w %s: the index %s has %s", err, platforms.FormatAll(p), m.Digest, listPlatforms(idx))
		}
		m, err = a.child(ctx, d)
		if err != nil {
			return nil, err
		}
		if err := a.checkPlatform(ctx, d, m, match); err != nil {
			return nil, err
		}
	}
	img.ManifestDigest, img.ManifestType, img.RawManifest = m.Digest, m.MediaType, m.Raw
	if img.Manifest, err = parseManifest(m.Raw); err != nil {
		return nil, fmt.Errorf("%s: %w", m.Digest, err)
	}
	img.Config, err = a.config(ctx, img.Manifest.Config)
	return img, err
}

// child gets a manifest that an index lists, and holds it to its descriptor.
func (a *access) child(ctx context.Context, d ocispecs.Descriptor) (*Manifest, error) {
	m, err := a.manifestFor(ctx, d.Digest.String())
	if err != nil {
		return nil, err
	}
	if d.Size != int64(len(m.Raw)) {
		return nil, fmt.Errorf("%w: manifest %s has %d bytes, the index says %d", ErrWrongContent, d.Digest, len(m.Raw), d.Size)
	}
	if isIndexType(d.MediaType) != m.IsIndex() && d.MediaType != "" {
		return nil, fmt.Errorf("%w: manifest %s is not the %s that the index says", ErrWrongContent, d.Digest, clip(d.MediaType))
	}
	return m, nil
}

// checkPlatform looks into the config where an index does not tell a
// manifest's platform.
func (a *access) checkPlatform(ctx context.Context, d ocispecs.Descriptor, m *Manifest, match platforms.Matcher) error {
	if d.Platform != nil || m.IsIndex() {
		return nil
	}
	man, err := parseManifest(m.Raw)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Digest, err)
	}
	config, err := a.config(ctx, man.Config)
	if err != nil {
		return err
	}
	var p ocispecs.Platform
	if err := json.Unmarshal(config, &p); err != nil {
		return fmt.Errorf("read config %s: not valid", man.Config.Digest)
	}
	if p = platforms.Normalize(p); !match.Match(p) {
		return fmt.Errorf("%w: manifest %s is for %s", ErrNoPlatform, m.Digest, clip(platforms.FormatAll(p)))
	}
	return nil
}

// choose picks as containerd does: the best match, and what has no platform
// only if nothing matches.
func choose(idx ocispecs.Index, match platforms.MatchComparer) (ocispecs.Descriptor, error) {
	var fit []ocispecs.Descriptor
	for _, d := range idx.Manifests {
		known := isIndexType(d.MediaType) || isManifestType(d.MediaType)
		if known && (d.Platform == nil || match.Match(*d.Platform)) {
			fit = append(fit, d)
		}
	}
	if len(fit) == 0 {
		return ocispecs.Descriptor{}, ErrNoPlatform
	}
	slices.SortStableFunc(fit, func(x, y ocispecs.Descriptor) int {
		switch {
		case x.Platform == nil && y.Platform == nil:
			return 0
		case x.Platform == nil:
			return 1
		case y.Platform == nil:
			return -1
		case match.Less(*x.Platform, *y.Platform):
			return -1
		case match.Less(*y.Platform, *x.Platform):
			return 1
		}
		return 0
	})
	return fit[0], nil
}

// listPlatforms names what an index offers, for an error.
func listPlatforms(idx ocispecs.Index) string {
	var names []string
	for _, d := range idx.Manifests {
		if d.Platform == nil || d.Platform.OS == "unknown" {
			continue // attestations
		}
		if n := clip(platforms.FormatAll(*d.Platform)); !slices.Contains(names, n) {
			names = append(names, n)
		}
		if len(names) == 20 {
			names = append(names, "…")
			break
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
