// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Command attest adds to images of hako, in OCI layouts, what they are made of
// (SPDX) and how (SLSA provenance): in the form in which BuildKit does, an
// attestation manifest in the index for each platform's image, which is where
// docker buildx imagetools and scanners look for it.
//
// The same images give the same bytes. A layout that has attestations gets new
// ones instead.
package main

import (
	_ "crypto/sha256" // the algorithm of all digests
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	var about facts
	flag.StringVar(&about.version, "version", "", "version of hako")
	flag.StringVar(&about.busybox, "busybox", "", "version of Debian's package busybox-static, for images that have it")
	flag.StringVar(&about.revision, "revision", "", "git commit that was built")
	epoch := flag.Int64("epoch", 0, "seconds since 1970 that documents are dated")
	flag.Parse()
	about.created = time.Unix(*epoch, 0).UTC().Format(time.RFC3339)
	for _, dir := range flag.Args() {
		if err := attest(dir, about); err != nil {
			fmt.Fprintf(os.Stderr, "attest: %s: %v\n", dir, err)
			os.Exit(1)
		}
	}
}

// facts are what cannot be read from the image.
type facts struct{ version, busybox, revision, created string }

// attest replaces the image of a layout by an index of it and its attestations.
func attest(dir string, about facts) error {
	l := layoutDir(dir)
	var top, index ocispecs.Index
	if err := readJSON(filepath.Join(dir, ocispecs.ImageIndexFile), &top); err != nil {
		return err
	}
	if len(top.Manifests) != 1 {
		return fmt.Errorf("it has %d images, want one", len(top.Manifests))
	}
	root := &top.Manifests[0]
	if root.MediaType == ocispecs.MediaTypeImageIndex {
		if err := l.read(root.Digest, &index); err != nil {
			return err
		}
	} else {
		desc := *root
		desc.Annotations = nil
		index.Manifests = []ocispecs.Descriptor{desc}
	}
	var images, attestations []ocispecs.Descriptor
	for _, desc := range index.Manifests {
		if desc.Annotations["vnd.docker.reference.type"] != "" {
			continue
		}
		if desc.Platform == nil {
			return fmt.Errorf("image %s has no platform", desc.Digest)
		}
		a, err := l.attestation(desc, about)
		if err != nil {
			return fmt.Errorf("image %s: %w", desc.Digest, err)
		}
		images, attestations = append(images, desc), append(attestations, a)
	}
	index.Versioned, index.MediaType = specs.Versioned{SchemaVersion: 2}, ocispecs.MediaTypeImageIndex
	index.Manifests = append(images, attestations...)
	data, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	old := *root
	if root.Digest, err = l.write(data); err != nil {
		return err
	}
	root.MediaType, root.Size, root.Platform = index.MediaType, int64(len(data)), nil
	if data, err = json.Marshal(top); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, ocispecs.ImageIndexFile), data, 0o644); err != nil {
		return err
	}
	if old.MediaType == ocispecs.MediaTypeImageIndex && old.Digest != root.Digest {
		return os.Remove(l.path(old.Digest))
	}
	return nil
}

// attestation writes the manifest with what there is to say about an image.
func (l layoutDir) attestation(image ocispecs.Descriptor, about facts) (ocispecs.Descriptor, error) {
	content, err := l.content(image.Digest)
	if err != nil {
		return image, err
	}
	config := ocispecs.Image{Platform: ocispecs.Platform{OS: "unknown", Architecture: "unknown"}, RootFS: ocispecs.RootFS{Type: "layers"}}
	m := ocispecs.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageManifest}
	for _, s := range []statement{about.sbom(image, content), about.provenance(image, content)} {
		data, err := json.Marshal(s)
		if err != nil {
			return image, err
		}
		d, err := l.write(data)
		if err != nil {
			return image, err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d)
		m.Layers = append(m.Layers, ocispecs.Descriptor{
			MediaType: "application/vnd.in-toto+json", Digest: d, Size: int64(len(data)),
			Annotations: map[string]string{"in-toto.io/predicate-type": s.PredicateType},
		})
	}
	data, err := json.Marshal(config)
	if err != nil {
		return image, err
	}
	m.Config = ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageConfig, Size: int64(len(data))}
	if m.Config.Digest, err = l.write(data); err != nil {
		return image, err
	}
	if data, err = json.MarshalIndent(m, "", "  "); err != nil {
		return image, err
	}
	d, err := l.write(data)
	return ocispecs.Descriptor{
		MediaType: m.MediaType, Digest: d, Size: int64(len(data)), Platform: &config.Platform,
		Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image.Digest.String()},
	}, err
}

// A layoutDir is an OCI layout.
type layoutDir string

func (l layoutDir) path(d digest.Digest) string {
	return filepath.Join(string(l), ocispecs.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func (l layoutDir) read(d digest.Digest, v any) error { return readJSON(l.path(d), v) }

func (l layoutDir) write(data []byte) (digest.Digest, error) {
	d := digest.FromBytes(data)
	return d, os.WriteFile(l.path(d), data, 0o644)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
