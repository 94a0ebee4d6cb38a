// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types, from before OCI had its own.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	DockerConfig       = "application/vnd.docker.container.image.v1+json"
	DockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	DockerLayerGzip    = DockerLayer + ".gzip"
	DockerLayerZstd    = DockerLayer + ".zstd"

	dockerForeign = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	ociForeign    = "application/vnd.oci.image.layer.nondistributable.v1.tar"
)

// A Document is a piece of JSON that an image is made of, with its descriptor.
type Document struct {
	Desc ocispecs.Descriptor
	Data []byte
}

func newDocument(mediaType string, data []byte) Document {
	return Document{
		Desc: ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))},
		Data: data,
	}
}

// NewConfig returns the document of a finished config.
func NewConfig(data []byte, docker bool) Document {
	if docker {
		return newDocument(DockerConfig, data)
	}
	return newDocument(ocispecs.MediaTypeImageConfig, data)
}

// NewManifest returns the manifest of an image with layers, bottom first, in
// OCI's media types or in Docker's, and in the form that BuildKit gives it.
// Layers are described without what is nobody else's business (LayerDescriptor).
func NewManifest(config Document, layers []ocispecs.Descriptor, annotations map[string]string, docker bool) (Document, error) {
	m := ocispecs.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispecs.MediaTypeImageManifest,
		Config:      config.Desc,
		Annotations: annotations,
	}
	if docker {
		m.MediaType = DockerManifest
	}
	for _, l := range layers {
		d, err := LayerDescriptor(l, docker)
		if err != nil {
			return Document{}, fmt.Errorf("make manifest: %w", err)
		}
		m.Layers = append(m.Layers, d)
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return Document{}, fmt.Errorf("make manifest: %w", err)
	}
	return newDocument(m.MediaType, data), nil
}

// NewIndex returns the index of manifests.
func NewIndex(manifests []ocispecs.Descriptor, annotations map[string]string, docker bool) (Document, error) {
	x := ocispecs.Index{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispecs.MediaTypeImageIndex,
		Manifests:   manifests,
		Annotations: annotations,
	}
	if docker {
		x.MediaType = DockerManifestList
	}
	data, err := json.MarshalIndent(x, "", "  ")
	if err != nil {
		return Document{}, fmt.Errorf("make index: %w", err)
	}
	return newDocument(x.MediaType, data), nil
}

// LayerDescriptor returns a layer's descriptor as a manifest has it: in one
// family of media types, whatever the layer came with, and only with the
// annotations that BuildKit passes on, those of lazy-pulling formats.
func LayerDescriptor(d ocispecs.Descriptor, docker bool) (ocispecs.Descriptor, error) {
	mt, err := LayerMediaType(d.MediaType, docker)
	if err != nil {
		return d, err
	}
	out := ocispecs.Descriptor{MediaType: mt, Digest: d.Digest, Size: d.Size}
	for k, v := range d.Annotations {
		if docker || !isPassedOn(k) {
			continue
		}
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[k] = v
	}
	return out, nil
}

// RewrittenTimestamp is the annotation of a layer whose files' times were limited
// to the epoch that is its value (BuildKit util/converter).
const RewrittenTimestamp = "buildkit/rewritten-timestamp"

// isPassedOn tells whether an annotation describes the bytes of a blob, so that
// it is true in any image (BuildKit cache/refs.go, additionalAnnotations).
func isPassedOn(key string) bool {
	switch key {
	case "containerd.io/snapshot/stargz/toc.digest", "io.containers.estargz.uncompressed-size", RewrittenTimestamp:
		return true
	}
	return strings.HasPrefix(key, "containerd.io/snapshot/overlaybd/")
}

// LayerMediaType translates a layer's media type into OCI's or Docker's. Layers
// that were not to be distributed become ordinary ones, since their bytes are
// pushed like the others'.
func LayerMediaType(mediaType string, docker bool) (string, error) {
	t := mediaType
	for _, base := range []string{DockerLayer, dockerForeign, ociForeign} {
		if rest, ok := strings.CutPrefix(t, base); ok {
			t = ocispecs.MediaTypeImageLayer + strings.Replace(rest, ".", "+", 1)
		}
	}
	switch t {
	case ocispecs.MediaTypeImageLayer, ocispecs.MediaTypeImageLayerGzip, ocispecs.MediaTypeImageLayerZstd:
	default:
		return "", fmt.Errorf("layer has the media type %q, which is not known", mediaType)
	}
	if docker {
		return DockerLayer + strings.Replace(strings.TrimPrefix(t, ocispecs.MediaTypeImageLayer), "+", ".", 1), nil
	}
	return t, nil
}

// The places an annotation can be put, with the names that docker build has
// for them.
const (
	OnManifest           = "manifest"
	OnManifestDescriptor = "manifest-descriptor"
	OnIndex              = "index"
	OnIndexDescriptor    = "index-descriptor"
)

// An Annotation is put on one of the documents of an image or what points at it.
type Annotation struct {
	Level    string             // one of the places above
	Platform *ocispecs.Platform // manifests of this platform only; nil means all
	Key      string
	Value    string
}

// AnnotationsFor returns what list says for a place and a platform; those for
// the platform by name win over those for all. It is nil if there are none.
func AnnotationsFor(list []Annotation, level string, p *ocispecs.Platform) map[string]string {
	var out map[string]string
	for _, named := range []bool{false, true} {
		for _, a := range list {
			if a.Level != level || (a.Platform != nil) != named {
				continue
			}
			if named && (p == nil || platforms.FormatAll(platforms.Normalize(*a.Platform)) != platforms.FormatAll(platforms.Normalize(*p))) {
				continue
			}
			if out == nil {
				out = map[string]string{}
			}
			out[a.Key] = a.Value
		}
	}
	return out
}

// CheckAnnotations refuses annotations that would have no place in an image for
// the given platforms.
func CheckAnnotations(list []Annotation, ps []ocispecs.Platform, isIndex, docker bool) error {
	for _, a := range list {
		switch a.Level {
		case OnManifest:
		case OnIndex, OnIndexDescriptor:
			if !isIndex {
				return fmt.Errorf("annotation %q is for an %s, and an image of one platform has no index", a.Key, a.Level)
			}
			fallthrough
		case OnManifestDescriptor:
			if docker {
				return errors.New("annotations need OCI media types, and Docker's were asked for")
			}
		default:
			return fmt.Errorf("annotation %q is for %q, which does not exist", a.Key, a.Level)
		}
		if a.Platform != nil && !hasPlatform(ps, *a.Platform) {
			return fmt.Errorf("annotation %q is for %s, which is not built", a.Key, platforms.FormatAll(*a.Platform))
		}
	}
	return nil
}

func hasPlatform(ps []ocispecs.Platform, want ocispecs.Platform) bool {
	for _, p := range ps {
		if platforms.FormatAll(platforms.Normalize(p)) == platforms.FormatAll(platforms.Normalize(want)) {
			return true
		}
	}
	return false
}
