// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A content is what an image holds, as far as documents tell of it.
type content struct {
	program *buildinfo.BuildInfo
	busybox bool
}

// content reads the layers of an image.
func (l layoutDir) content(d digest.Digest) (*content, error) {
	var m ocispecs.Manifest
	if err := l.read(d, &m); err != nil {
		return nil, err
	}
	c := &content{}
	for _, desc := range m.Layers {
		if err := c.layer(l.path(desc.Digest)); err != nil {
			return nil, fmt.Errorf("layer %s: %w", desc.Digest, err)
		}
	}
	if c.program == nil {
		return nil, errors.New("it has no /kaniko/executor")
	}
	return c, nil
}

func (c *content) layer(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	zr, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for tr := tar.NewReader(zr); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch h.Name {
		case "busybox/busybox":
			c.busybox = true
		case "kaniko/executor":
			data, err := io.ReadAll(tr)
			if err != nil {
				return err
			}
			if c.program, err = buildinfo.Read(bytes.NewReader(data)); err != nil {
				return err
			}
		}
	}
}

func (c *content) setting(key string) string {
	for _, s := range c.program.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// A statement is one of in-toto: https://in-toto.io/Statement/v1.
type statement struct {
	Type          string    `json:"_type"`
	PredicateType string    `json:"predicateType"`
	Subject       []subject `json:"subject"`
	Predicate     any       `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

func (f facts) statement(kind string, image ocispecs.Descriptor, predicate any) statement {
	name := fmt.Sprintf("pkg:docker/hako@%s?platform=%s%%2F%s", f.version, image.Platform.OS, image.Platform.Architecture)
	return statement{
		Type: "https://in-toto.io/Statement/v1", PredicateType: kind, Predicate: predicate,
		Subject: []subject{{Name: name, Digest: map[string]string{image.Digest.Algorithm().String(): image.Digest.Encoded()}}},
	}
}

// An spdxPackage is one thing that is in the image.
type spdxPackage struct {
	ID       string    `json:"SPDXID"`
	Name     string    `json:"name"`
	Version  string    `json:"versionInfo,omitempty"`
	Location string    `json:"downloadLocation"`
	Analyzed bool      `json:"filesAnalyzed"`
	Refs     []spdxRef `json:"externalRefs,omitempty"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelation struct {
	From string `json:"spdxElementId"`
	Kind string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// sbom says what the program was linked from, and what else is in the image.
func (f facts) sbom(image ocispecs.Descriptor, c *content) statement {
	var packages []spdxPackage
	var relations []spdxRelation
	add := func(name, version, purl, kind, from string) string {
		id := fmt.Sprintf("SPDXRef-Package-%d", len(packages))
		packages = append(packages, spdxPackage{
			ID: id, Name: name, Version: version, Location: "NOASSERTION",
			Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", purl}},
		})
		relations = append(relations, spdxRelation{from, kind, id})
		return id
	}
	const document = "SPDXRef-DOCUMENT"
	hako := add("hako", f.version, "pkg:golang/hako@"+f.version, "DESCRIBES", document)
	release := strings.TrimPrefix(c.program.GoVersion, "go")
	add("stdlib", release, "pkg:golang/stdlib@"+release, "CONTAINS", hako)
	for _, m := range c.program.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		add(m.Path, m.Version, "pkg:golang/"+m.Path+"@"+m.Version, "CONTAINS", hako)
	}
	if c.busybox {
		purl := fmt.Sprintf("pkg:deb/debian/busybox-static@%s?arch=%s", f.busybox, image.Platform.Architecture)
		add("busybox-static", f.busybox, purl, "DESCRIBES", document)
	}
	return f.statement("https://spdx.dev/Document", image, map[string]any{
		"SPDXID": document, "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "name": "hako " + f.version,
		"documentNamespace": f.namespace(image.Digest),
		"creationInfo":      map[string]any{"created": f.created, "creators": []string{"Tool: hako-attest"}},
		"packages":          packages, "relationships": relations,
	})
}

// namespace returns the URI of an image's SPDX document: a UUID (RFC 9562, version
// 8) made of what the document is about, so that the same has the same.
func (f facts) namespace(image digest.Digest) string {
	id := sha256.Sum256(fmt.Appendf(nil, "spdx %s %s %s %s", image, f.version, f.busybox, f.created))
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:16])
}

// sourceURL is this module, as package URLs write it; behind # stands a file of it.
// A module without a place on the web has no other URI that would be true.
const sourceURL = "pkg:golang/hako"

// provenance says from what source and how the image was made: SLSA v1.
func (f facts) provenance(image ocispecs.Descriptor, c *content) statement {
	source := map[string]any{"uri": sourceURL + "@" + f.version, "digest": map[string]string{"gitCommit": f.revision}}
	return f.statement("https://slsa.dev/provenance/v1", image, map[string]any{
		"buildDefinition": map[string]any{
			"buildType": sourceURL + "#images/build",
			"externalParameters": map[string]any{
				"configSource": map[string]any{"uri": source["uri"], "digest": source["digest"], "path": "images/Dockerfile"},
				"version":      f.version,
			},
			"internalParameters": map[string]any{
				"go": c.program.GoVersion, "platform": image.Platform.OS + "/" + image.Platform.Architecture,
				"ldflags": c.setting("-ldflags"), "trimpath": c.setting("-trimpath") == "true", "cgo": c.setting("CGO_ENABLED") == "1",
			},
			"resolvedDependencies": []any{source},
		},
		"runDetails": map[string]any{
			"builder":  map[string]any{"id": sourceURL + "#Makefile"},
			"metadata": map[string]any{"startedOn": f.created, "finishedOn": f.created},
		},
	})
}
