// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/source"
)

func TestLayoutFlatPlatforms(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	var want digest.Digest
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := random.Image(10, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: arch})); err != nil {
			t.Fatal(err)
		}
		want = digestOf(t, img)
	}
	open, err := source.OpenLayout(openDir(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	img, err := open.Resolve("", &ocispecs.Platform{OS: "linux", Architecture: "arm64"})
	if err != nil || img.Digest != want {
		t.Errorf("got %+v, %v, want %s", img, err, want)
	}
}

// newLayout has the image "one" and the index "many" of two platforms, the
// second of which is returned.
func newLayout(t *testing.T) (dir string, one, arm v1.Image, many v1.ImageIndex) {
	t.Helper()
	img := func(layers int64) v1.Image {
		i, err := random.Image(300, layers)
		if err != nil {
			t.Fatal(err)
		}
		return i
	}
	dir = t.TempDir()
	one, arm = img(3), img(2)
	many = mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: img(1), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}}},
		mutate.IndexAddendum{Add: img(1), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	name := func(s string) layout.Option {
		return layout.WithAnnotations(map[string]string{ocispecs.AnnotationRefName: s})
	}
	if err := errors.Join(l.AppendImage(one, name("one")), l.AppendIndex(many, name("many"))); err != nil {
		t.Fatal(err)
	}
	return dir, one, arm, many
}

func digestOf(t *testing.T, x interface{ Digest() (v1.Hash, error) }) digest.Digest {
	t.Helper()
	h, err := x.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.Digest(h.String())
}

func TestLayoutResolve(t *testing.T) {
	t.Parallel()
	dir, one, arm, many := newLayout(t)
	l, err := source.OpenLayout(openDir(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	arm64 := &ocispecs.Platform{OS: "linux", Architecture: "arm64"}
	for _, c := range []struct {
		ref              string
		digest, manifest digest.Digest
	}{
		{"one", digestOf(t, one), digestOf(t, one)},
		{digestOf(t, one).String(), digestOf(t, one), digestOf(t, one)},
		{"many", digestOf(t, many), digestOf(t, arm)},
		{digestOf(t, many).String(), digestOf(t, many), digestOf(t, arm)},
		{digestOf(t, arm).String(), digestOf(t, arm), digestOf(t, arm)},
	} {
		img, err := l.Resolve(c.ref, arm64)
		if err != nil || img.Digest != c.digest || img.ManifestDigest != c.manifest {
			t.Errorf("Resolve(%q) = %+v, %v, want %s, %s", c.ref, img, err, c.digest, c.manifest)
			continue
		}
		if digest.FromBytes(img.Raw) != c.digest || digest.FromBytes(img.RawManifest) != c.manifest ||
			digest.FromBytes(img.Config) != img.Manifest.Config.Digest {
			t.Errorf("Resolve(%q): bytes and digests differ", c.ref)
		}
	}
	_, err = l.Resolve("many", &ocispecs.Platform{OS: "linux", Architecture: "s390x"})
	if !errors.Is(err, source.ErrNoPlatform) || !strings.Contains(err.Error(), "linux/s390x, there is linux/amd64, linux/arm64") ||
		!strings.Contains(err.Error(), digestOf(t, many).String()) {
		t.Errorf("no platform: %v", err)
	}
	if _, err = l.Resolve("none", nil); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), `"one", "many"`) {
		t.Errorf("no such name: %v", err)
	}
	if _, err = l.Resolve("", nil); err == nil {
		t.Error("no name for a layout of two: no error")
	}
	if _, err = l.Resolve(digest.FromString("x").String(), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such digest: %v", err)
	}
}

func TestLayoutLayers(t *testing.T) {
	t.Parallel()
	dir, one, _, _ := newLayout(t)
	l, err := source.OpenLayout(openDir(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	img, err := l.Resolve("one", nil)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers(openStore(t))
	if err != nil {
		t.Fatal(err)
	}
	want, _ := one.Layers()
	if len(layers) != len(want) {
		t.Fatalf("%d layers, want %d", len(layers), len(want))
	}
	for i, got := range layers {
		id, _ := want[i].DiffID()
		r, err := got.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		_ = r.Close()
		if err != nil || digest.FromBytes(b) != digestOf(t, want[i]) || got.DiffID().String() != id.String() {
			t.Errorf("layer %d is %s of %d bytes, %v", i, got.DiffID(), len(b), err)
		}
		r, err = got.OpenAt(t.Context(), 5)
		if err != nil {
			t.Fatal(err)
		}
		tail, err := io.ReadAll(r)
		_ = r.Close()
		if err != nil || string(tail) != string(b[5:]) {
			t.Errorf("layer %d from byte 5: %d bytes, %v", i, len(tail), err)
		}
	}
	// A blob that changed is found out while it is read.
	d := layers[0].Descriptor().Digest
	p := filepath.Join(dir, "blobs/sha256", d.Encoded())
	b, _ := os.ReadFile(p)
	b[len(b)-1] ^= 1
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := layers[0].Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadAll(r); err == nil {
		t.Error("a layer with other bytes was read without an error")
	}
}

func TestLayoutHostile(t *testing.T) {
	t.Parallel()
	manifest := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"sha256:../../../x","size":1},"layers":[]}`
	both := `{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`
	entry := func(s string) string {
		return `{"schemaVersion":2,"manifests":[{"digest":"` + digest.FromString(s).String() + `","size":0}]}`
	}
	for name, c := range map[string]struct{ version, index, blob, want string }{
		"no layout":     {"", "", "", "oci-layout"},
		"version":       {`{"imageLayoutVersion":"2.0.0"}`, `{}`, "", `version "2.0.0" is not known`},
		"bad index":     {`{"imageLayoutVersion":"1.0.0"}`, `{`, "", "index.json"},
		"bad path":      {`{"imageLayoutVersion":"1.0.0"}`, entry(manifest), manifest, `config: digest "sha256:../../../x"`},
		"both":          {`{"imageLayoutVersion":"1.0.0"}`, entry(both), both, "parts of both"},
		"empty":         {`{"imageLayoutVersion":"1.0.0"}`, `{"manifests":[]}`, "", "names no image"},
		"blob is lost":  {`{"imageLayoutVersion":"1.0.0"}`, entry("x"), "", "has no blob"},
		"not an image":  {`{"imageLayoutVersion":"1.0.0"}`, entry(`{}`), `{}`, "is not an image's"},
		"digest is bad": {`{"imageLayoutVersion":"1.0.0"}`, `{"manifests":[{"digest":"../../etc/passwd"}]}`, "", "invalid checksum digest"},
	} {
		dir := t.TempDir()
		files := []string{"blobs/sha256/" + digest.FromString(c.blob).Encoded() + " " + c.blob}
		if c.blob == "" {
			files = []string{"x x"}
		}
		if c.version != "" {
			files = append(files, "oci-layout "+c.version, "index.json "+c.index)
		}
		build(t, dir, files...)
		l, err := source.OpenLayout(openDir(t, dir))
		if err == nil {
			_, err = l.Resolve("", nil)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
}
