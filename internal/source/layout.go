// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
)

const (
	// maxLayoutJSON bounds what is read into memory: indexes, manifests, configs.
	maxLayoutJSON = 8 << 20
	// maxIndexDepth limits indexes within indexes.
	maxIndexDepth = 4

	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	// containerdName is where containerd and BuildKit put an image's full name.
	containerdName = "io.containerd.image.name"
)

// ErrNoPlatform is in the error for an index that has nothing for a platform.
var ErrNoPlatform = errors.New("no match for platform")

// A Layout is an OCI image layout (OCI image-spec image-layout.md). It is safe
// for concurrent use.
type Layout struct {
	dir   tree.FS
	index ocispecs.Index
}

// A LayoutImage is what a reference means in a layout for a platform.
type LayoutImage struct {
	Digest         digest.Digest // what the reference resolved to; an index's if it is one
	MediaType      string        // of what has Digest
	Raw            []byte        // what has Digest: the index or the manifest
	ManifestDigest digest.Digest
	ManifestType   string
	RawManifest    []byte
	Manifest       ocispecs.Manifest
	Config         []byte

	layout *Layout
}

// OpenLayout opens the layout in dir, a directory with the files oci-layout and
// index.json.
func OpenLayout(dir tree.FS) (*Layout, error) {
	l := &Layout{dir: dir}
	var version ocispecs.ImageLayout
	if err := l.readJSON(ocispecs.ImageLayoutFile, &version); err != nil {
		return nil, fmt.Errorf("open OCI layout: %w", err)
	}
	if !strings.HasPrefix(version.Version, "1.") {
		return nil, fmt.Errorf("open OCI layout: version %q is not known", version.Version)
	}
	if err := l.readJSON(ocispecs.ImageIndexFile, &l.index); err != nil {
		return nil, fmt.Errorf("open OCI layout: %w", err)
	}
	return l, nil
}

func (l *Layout) readJSON(p string, v any) error {
	b, err := l.read(p, maxLayoutJSON)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", p, err)
	}
	return nil
}

func (l *Layout) read(p string, limit int64) ([]byte, error) {
	r, err := l.dir.Open(p)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("read %s: larger than %d bytes", p, limit)
	}
	return b, nil
}

// blob reads a blob into memory and verifies it.
func (l *Layout) blob(desc ocispecs.Descriptor) ([]byte, error) {
	p, err := blobPath(desc.Digest)
	if err != nil {
		return nil, err
	}
	b, err := l.read(p, maxLayoutJSON)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the layout has no blob %s: %w", desc.Digest, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	if got := desc.Digest.Algorithm().FromBytes(b); got != desc.Digest {
		return nil, fmt.Errorf("%s has the digest %s", p, got)
	}
	if desc.Size > 0 && desc.Size != int64(len(b)) {
		return nil, fmt.Errorf("%s has %d bytes, its descriptor says %d", p, len(b), desc.Size)
	}
	return b, nil
}

func blobPath(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %q: %w", d, err)
	}
	return ocispecs.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded(), nil
}

// Resolve finds the image that ref means for platform (nil is this machine's).
// A reference is a digest of something in the layout, a tag or full name in
// an annotation of its index, or "" if the index names one thing only.
//
// An index leads to the manifest that containerd would choose; a reference
// to a single manifest is taken whatever its platform, as BuildKit does.
func (l *Layout) Resolve(ref string, platform *ocispecs.Platform) (*LayoutImage, error) {
	p := platforms.DefaultSpec()
	if platform != nil {
		p = platforms.Normalize(*platform)
	}
	img, err := l.resolve(ref, p)
	if err != nil {
		return nil, fmt.Errorf("resolve %q in OCI layout: %w", ref, err)
	}
	return img, nil
}

func (l *Layout) resolve(ref string, p ocispecs.Platform) (*LayoutImage, error) {
	desc, err := l.find(ref, p)
	if err != nil {
		return nil, err
	}
	img := &LayoutImage{layout: l, Digest: desc.Digest}
	for depth := 0; ; depth++ {
		raw, err := l.blob(desc)
		if err != nil {
			return nil, err
		}
		kind, err := mediaType(raw, desc.MediaType)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", desc.Digest, err)
		}
		if depth == 0 {
			img.MediaType, img.Raw = kind, raw
		}
		if kind == ocispecs.MediaTypeImageManifest || kind == dockerManifest {
			img.ManifestDigest, img.ManifestType, img.RawManifest = desc.Digest, kind, raw
			return img, img.readManifest()
		}
		if depth >= maxIndexDepth {
			return nil, errors.New("too many indexes within indexes")
		}
		next, err := l.choose(raw, p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", desc.Digest, err)
		}
		desc = next
	}
}

// find returns the descriptor for a reference. An index.json may hold the
// platforms of one image side by side: then p decides.
func (l *Layout) find(ref string, p ocispecs.Platform) (ocispecs.Descriptor, error) {
	if d, err := digest.Parse(ref); err == nil {
		for _, m := range l.index.Manifests {
			if m.Digest == d {
				return m, nil
			}
		}
		return ocispecs.Descriptor{Digest: d}, nil // in an index, or in none
	}
	found := l.named(ref)
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && ref == "":
		return ocispecs.Descriptor{}, fmt.Errorf("index.json names no image: %w", fs.ErrNotExist)
	case len(found) == 0:
		return ocispecs.Descriptor{}, fmt.Errorf("not in index.json, which has %s: %w", l.names(), fs.ErrNotExist)
	}
	if !slices.ContainsFunc(found, func(m ocispecs.Descriptor) bool { return m.Platform == nil }) {
		return l.best(found, p)
	}
	return ocispecs.Descriptor{}, fmt.Errorf("index.json has %d images for it (%s): name one, or its digest", len(found), l.names())
}

// named returns what of index.json ref names; "" names all but attestations.
func (l *Layout) named(ref string) []ocispecs.Descriptor {
	var found []ocispecs.Descriptor
	for _, m := range l.index.Manifests {
		if ref == "" && !isAttestation(m) || ref != "" && isNamed(m, ref) {
			found = append(found, m)
		}
	}
	return slices.CompactFunc(found, func(a, b ocispecs.Descriptor) bool { return a.Digest == b.Digest })
}

// Find returns what ref names in index.json, whatever its platform: a digest, a
// tag or full name, or "" for all that is there.
func (l *Layout) Find(ref string) ([]digest.Digest, error) {
	if d, err := digest.Parse(ref); err == nil {
		return []digest.Digest{d}, nil
	}
	var found []digest.Digest
	for _, m := range l.named(ref) {
		found = append(found, m.Digest)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("find %q in OCI layout: index.json has %s: %w", ref, l.names(), fs.ErrNotExist)
	}
	return found, nil
}

// Manifest returns a manifest or an index of the layout, verified.
func (l *Layout) Manifest(_ context.Context, d digest.Digest) (kind string, raw []byte, err error) {
	if raw, err = l.blob(ocispecs.Descriptor{Digest: d}); err != nil {
		return "", nil, err
	}
	if kind, err = mediaType(raw, ""); err != nil {
		return "", nil, fmt.Errorf("%s: %w", d, err)
	}
	return kind, raw, nil
}

// OpenBlob opens a blob of the layout from offset on. Its bytes are not verified.
func (l *Layout) OpenBlob(ctx context.Context, desc ocispecs.Descriptor, offset int64) (io.ReadCloser, error) {
	p, err := blobPath(desc.Digest)
	if err != nil {
		return nil, err
	}
	return layoutBlob{dir: l.dir, path: p}.Open(ctx, offset)
}

func isNamed(m ocispecs.Descriptor, ref string) bool {
	return m.Annotations[ocispecs.AnnotationRefName] == ref || m.Annotations[containerdName] == ref
}

func (l *Layout) names() string {
	var names []string
	for _, m := range l.index.Manifests {
		if n := m.Annotations[ocispecs.AnnotationRefName]; n != "" {
			names = append(names, fmt.Sprintf("%q", n))
		} else {
			names = append(names, m.Digest.String())
		}
	}
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// isAttestation reports what BuildKit puts beside an image without being one.
func isAttestation(m ocispecs.Descriptor) bool {
	return m.Annotations["vnd.docker.reference.type"] != "" ||
		m.Platform != nil && m.Platform.OS == "unknown" && m.Platform.Architecture == "unknown"
}

// choose returns the manifest of an index that suits p best.
func (l *Layout) choose(raw []byte, p ocispecs.Platform) (ocispecs.Descriptor, error) {
	var index ocispecs.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return ocispecs.Descriptor{}, err
	}
	return l.best(index.Manifests, p)
}

func (l *Layout) best(manifests []ocispecs.Descriptor, p ocispecs.Platform) (ocispecs.Descriptor, error) {
	match := platforms.Only(p)
	var (
		best   ocispecs.Descriptor
		bestOf *ocispecs.Platform
		offers []string
	)
	for _, m := range manifests {
		if isAttestation(m) {
			continue
		}
		of, err := l.platformOf(m)
		if err != nil {
			return ocispecs.Descriptor{}, fmt.Errorf("%s: %w", m.Digest, err)
		}
		offers = append(offers, platforms.FormatAll(*of))
		if match.Match(*of) && (bestOf == nil || match.Less(*of, *bestOf)) {
			best, bestOf = m, of
		}
	}
	if bestOf == nil {
		return best, fmt.Errorf("%w %s, there is %s", ErrNoPlatform, platforms.FormatAll(p), strings.Join(offers, ", "))
	}
	return best, nil
}

// platformOf returns a descriptor's platform; without one, its config's.
func (l *Layout) platformOf(m ocispecs.Descriptor) (*ocispecs.Platform, error) {
	if m.Platform != nil {
		p := platforms.Normalize(*m.Platform)
		return &p, nil
	}
	img := &LayoutImage{layout: l}
	var err error
	if img.RawManifest, err = l.blob(m); err != nil {
		return nil, err
	}
	if err := img.readManifest(); err != nil {
		return nil, err
	}
	var p ocispecs.Platform
	if err := json.Unmarshal(img.Config, &p); err != nil {
		return nil, fmt.Errorf("config %s: %w", img.Manifest.Config.Digest, err)
	}
	p = platforms.Normalize(p)
	return &p, nil
}

// mediaType returns what a document is: by itself, or else by its descriptor, or
// else by its content. One that says to be both is refused, since
// readers would disagree about it (CVE-2021-41190).
func mediaType(raw []byte, described string) (string, error) {
	var doc struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
		Config    json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return "", err
	}
	isIndex, isManifest := doc.Manifests != nil, doc.Layers != nil || doc.Config != nil
	if isIndex && isManifest {
		return "", errors.New("neither a manifest nor an index: it has parts of both")
	}
	kind := doc.MediaType
	if kind == "" {
		kind = described
	}
	switch {
	case kind == "" && isIndex:
		return ocispecs.MediaTypeImageIndex, nil
	case kind == "" && isManifest:
		return ocispecs.MediaTypeImageManifest, nil
	case isIndex && (kind == ocispecs.MediaTypeImageIndex || kind == dockerManifestList):
		return kind, nil
	case isManifest && (kind == ocispecs.MediaTypeImageManifest || kind == dockerManifest):
		return kind, nil
	}
	return "", fmt.Errorf("media type %q is not an image's", kind)
}

func (i *LayoutImage) readManifest() error {
	if err := json.Unmarshal(i.RawManifest, &i.Manifest); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	var err error
	if i.Config, err = i.layout.blob(i.Manifest.Config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	return nil
}

// Layers returns the image's layers, bottom first. Their blobs stay in the
// layout until they are needed, and are verified then.
func (i *LayoutImage) Layers(st *store.Store) ([]*layer.Layer, error) {
	var config ocispecs.Image
	if err := json.Unmarshal(i.Config, &config); err != nil {
		return nil, fmt.Errorf("config %s: %w", i.Manifest.Config.Digest, err)
	}
	diffIDs := config.RootFS.DiffIDs
	if len(diffIDs) != len(i.Manifest.Layers) {
		return nil, fmt.Errorf("image %s has %d layers, its config %d", i.ManifestDigest, len(i.Manifest.Layers), len(diffIDs))
	}
	layers := make([]*layer.Layer, len(diffIDs))
	for n, desc := range i.Manifest.Layers {
		p, err := blobPath(desc.Digest)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", n, err)
		}
		if err := diffIDs[n].Validate(); err != nil {
			return nil, fmt.Errorf("layer %d: diffID %q: %w", n, diffIDs[n], err)
		}
		layers[n] = layer.New(st, image.DiffID(diffIDs[n]), desc, layoutBlob{dir: i.layout.dir, path: p})
	}
	return layers, nil
}

// A layoutBlob is the [layer.Source] of a blob in a layout.
type layoutBlob struct {
	dir  tree.FS
	path string
}

// Open implements [layer.Source].
func (b layoutBlob) Open(ctx context.Context, offset int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := b.dir.Open(b.path)
	if err != nil || offset == 0 {
		return r, err
	}
	if s, ok := r.(io.Seeker); ok {
		_, err = s.Seek(offset, io.SeekStart)
	} else {
		_, err = io.CopyN(io.Discard, r, offset)
	}
	if err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("read %s from byte %d: %w", b.path, offset, err)
	}
	return r, nil
}
