// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of docker's schema 2, which is OCI's under other names, and of
// schema 1, which is refused.
const (
	dockerManifest      = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex         = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
)

// What is read of a registry at once: a manifest may take 4 MiB (what the OCI
// distribution-spec asks registries to accept, and most refuse more). Commas
// limit what decoding can make of it: ",null" costs a descriptor.
const (
	maxManifest int64 = 4 << 20
	maxCommas         = 50_000
	maxConfig   int64 = 8 << 20
)

var errSchema1 = errors.New("the image has a manifest of docker's schema 1, which is not supported: push it again with a current tool")

func isIndexType(mt string) bool { return mt == ocispecs.MediaTypeImageIndex || mt == dockerIndex }
func isManifestType(mt string) bool {
	return mt == ocispecs.MediaTypeImageManifest || mt == dockerManifest
}

// A Manifest is a manifest or an index as it is stored.
type Manifest struct {
	Digest    digest.Digest // of Raw, computed
	MediaType string
	Raw       []byte
}

// IsIndex reports whether the manifest is an index of others.
func (m *Manifest) IsIndex() bool { return isIndexType(m.MediaType) }

// FetchManifest gets what ref names and compares it with its digest: ref's, or
// else the one that the registry states. Its size is limited to 4 MiB.
func (c *Client) FetchManifest(ctx context.Context, ref name.Reference) (*Manifest, error) {
	a := c.access(ref.Context(), displayRef(ref), false)
	return a.manifest(ctx, ref.Identifier())
}

// manifest gets a manifest by tag or digest.
func (a *access) manifest(ctx context.Context, id string) (*Manifest, error) {
	var m *Manifest
	err := a.eachPlace(ctx, isTag(id), func(at *access) error {
		return at.retry(ctx, func() (err error) {
			m, err = at.manifestOnce(ctx, id)
			if err == nil {
				a.setServed(at)
			}
			return at.fail("manifest", err)
		})
	})
	return m, err
}

// setServed notes where the first manifest came from.
func (a *access) setServed(at *access) {
	if a.served == nil {
		a.served = at
	}
}

func (a *access) manifestOnce(ctx context.Context, id string) (*Manifest, error) {
	resp, err := a.do(ctx, request{method: http.MethodGet, path: a.manifestPath(id), header: map[string]string{
		"Accept": strings.Join([]string{
			ocispecs.MediaTypeImageIndex, dockerIndex, ocispecs.MediaTypeImageManifest, dockerManifest, "*/*;q=0.1",
		}, ", "),
	}})
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, a.failStatus("manifest", resp)
	}
	defer resp.Body.Close()
	raw, err := readLimited(resp.Body, resp.ContentLength, maxManifest)
	if err != nil {
		return nil, err
	}
	a.c.received(int64(len(raw)))
	m := &Manifest{Digest: digest.FromBytes(raw), Raw: raw}
	want := contentDigest(resp)
	if d, err := digest.Parse(id); err == nil {
		want = d.String()
	}
	m.MediaType, err = mediaTypeOf(resp.Header.Get("Content-Type"), raw)
	if errors.Is(err, errSchema1) {
		return nil, permanentError{err} // whose digest is of something else
	}
	if want != "" && want != m.Digest.String() {
		return nil, fmt.Errorf("%w: the registry sent %s for %s", ErrWrongContent, m.Digest, clip(want))
	}
	if err != nil {
		return nil, permanentError{err}
	}
	return m, nil
}

// clip shortens a foreign text.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

// readLimited reads a whole answer of at most limit bytes. A connection that
// ends early is an error even where the length was not announced.
func readLimited(r io.Reader, length, limit int64) ([]byte, error) {
	if length > limit {
		return nil, permanentError{fmt.Errorf("the answer has %d bytes, more than the limit of %d", length, limit)}
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, permanentError{fmt.Errorf("the answer is longer than the limit of %d bytes", limit)}
	}
	return b, nil
}

// shape are the fields that tell the kinds of manifests apart.
type shape struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        json.RawMessage `json:"config"`
	Layers        json.RawMessage `json:"layers"`
	Manifests     json.RawMessage `json:"manifests"`
	FSLayers      json.RawMessage `json:"fsLayers"`
}

// mediaTypeOf decides what a document is by what it says itself, then by the
// header. Documents that could be read as two kinds are refused, so that
// their digest cannot mean two things (CVE-2021-41190).
func mediaTypeOf(contentType string, raw []byte) (string, error) {
	header, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		header = ""
	}
	if bytes.Count(raw, []byte(",")) > maxCommas {
		return "", errors.New("manifest has too many entries")
	}
	var s shape
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", errors.New("manifest is not valid JSON")
	}
	if header == dockerSchema1 || header == dockerSchema1Signed || s.SchemaVersion == 1 || s.FSLayers != nil {
		return "", errSchema1
	}
	asIndex, asManifest := s.Manifests != nil, s.Config != nil || s.Layers != nil
	if asIndex && asManifest {
		return "", errors.New("manifest is ambiguous: it lists manifests and also layers")
	}
	mt := s.MediaType
	if mt == "" {
		mt = header
	}
	switch {
	case isIndexType(mt):
		if asManifest {
			return "", fmt.Errorf("manifest says that it is %s, but has layers", clip(mt))
		}
	case isManifestType(mt):
		if asIndex {
			return "", fmt.Errorf("manifest says that it is %s, but lists manifests", clip(mt))
		}
	case s.MediaType != "":
		return "", fmt.Errorf("manifest has media type %q, which is not an image's", clip(s.MediaType))
	case asIndex:
		mt = ocispecs.MediaTypeImageIndex
	case asManifest:
		mt = ocispecs.MediaTypeImageManifest
	default:
		return "", fmt.Errorf("answer with media type %q is not a manifest", clip(header))
	}
	return mt, nil
}

// validDescriptor checks what the rest of the program relies on.
func validDescriptor(d ocispecs.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", clip(string(d.Digest)), err)
	}
	if d.Size < 0 {
		return fmt.Errorf("digest %s: negative size %d", d.Digest, d.Size)
	}
	return nil
}

// parseManifest reads an image manifest.
func parseManifest(raw []byte) (ocispecs.Manifest, error) {
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, errors.New("read manifest: not valid")
	}
	if err := validDescriptor(m.Config); err != nil {
		return m, fmt.Errorf("read manifest: config: %w", err)
	}
	for i, l := range m.Layers {
		if err := validDescriptor(l); err != nil {
			return m, fmt.Errorf("read manifest: layer %d: %w", i, err)
		}
	}
	return m, nil
}

// parseIndex reads an index.
func parseIndex(raw []byte) (ocispecs.Index, error) {
	var x ocispecs.Index
	if err := json.Unmarshal(raw, &x); err != nil {
		return x, errors.New("read index: not valid")
	}
	for i, d := range x.Manifests {
		if err := validDescriptor(d); err != nil {
			return x, fmt.Errorf("read index: manifest %d: %w", i, err)
		}
	}
	return x, nil
}
