// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/export"
)

func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }

func openRoot(t *testing.T) (string, *os.Root) {
	t.Helper()
	d := t.TempDir()
	r, err := os.OpenRoot(d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return d, r
}

func readIndex(t *testing.T, raw []byte) ocispecs.Index {
	t.Helper()
	var x ocispecs.Index
	if err := json.Unmarshal(raw, &x); err != nil {
		t.Fatal(err)
	}
	return x
}

func TestWriteLayout(t *testing.T) {
	t.Parallel()
	d, root := openRoot(t)
	b := newBundle(t, export.Options{}, amd64, arm64)
	if err := b.WriteLayout(t.Context(), root, export.LayoutOptions{}); err != nil {
		t.Fatal(err)
	}
	idx, err := layout.ImageIndexFromPath(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(idx); err != nil {
		t.Error(err)
	}
	raw, err := root.ReadFile("index.json")
	if err != nil {
		t.Fatal(err)
	}
	x := readIndex(t, raw)
	if len(x.Manifests) != 1 || x.Manifests[0].Digest != b.Root().Desc.Digest || len(x.Manifests[0].Annotations) != 0 {
		t.Errorf("index.json is %s", raw)
	}

	// A blob that was cut off is written anew; nothing else is left behind.
	broken := filepath.Join(d, "blobs", "sha256", b.Images[0].Layers[0].Digest.Encoded())
	if err := os.Truncate(broken, 3); err != nil {
		t.Fatal(err)
	}
	one := newBundle(t, export.Options{}, amd64)
	for _, opt := range []export.LayoutOptions{{Names: []string{"app", "app:latest", "r.example/x:2"}, Keep: true}, {Names: []string{"app"}, Keep: true}} {
		if err := one.WriteLayout(t.Context(), root, opt); err != nil {
			t.Fatal(err)
		}
	}
	if idx, err = layout.ImageIndexFromPath(d); err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(idx); err != nil {
		t.Error(err)
	}
	raw, _ = root.ReadFile("index.json")
	var got []string
	for _, m := range readIndex(t, raw).Manifests {
		got = append(got, m.Annotations["io.containerd.image.name"]+" "+m.Annotations[ocispecs.AnnotationRefName])
	}
	slices.Sort(got)
	if d := cmp.Diff([]string{" ", "docker.io/library/app:latest latest", "r.example/x:2 2"}, got); d != "" {
		t.Errorf("names differ (-want +got):\n%s", d)
	}
	left, err := filepath.Glob(filepath.Join(d, "blobs", "sha256", ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestWriteArchives(t *testing.T) {
	t.Parallel()
	b := newBundle(t, export.Options{}, amd64)
	opt := export.LayoutOptions{Names: []string{"app:1", "r.example/x"}, Created: time.Unix(5, 0)}
	var oci, docker bytes.Buffer
	if err := b.WriteLayoutTar(t.Context(), &oci, opt); err != nil {
		t.Fatal(err)
	}
	if err := b.WriteDocker(t.Context(), &docker, opt); err != nil {
		t.Fatal(err)
	}
	ociFiles, dockerFiles := untar(t, &oci), untar(t, bytes.NewBuffer(docker.Bytes()))
	manifest := dockerFiles["manifest.json"]
	delete(dockerFiles, "manifest.json")
	if d := cmp.Diff(ociFiles, dockerFiles); d != "" {
		t.Errorf("the archives differ in more than manifest.json:\n%s", d)
	}
	blob := func(d ocispecs.Descriptor) string { return `"blobs/sha256/` + d.Digest.Encoded() + `"` }
	want := `[{"Config":` + blob(b.Images[0].Config.Desc) + `,"RepoTags":["app:1","r.example/x:latest"],"Layers":[` +
		blob(b.Images[0].Layers[0]) + `,` + blob(b.Images[0].Layers[1]) + `]}]`
	if d := cmp.Diff(want, manifest); d != "" {
		t.Errorf("manifest.json differs (-want +got):\n%s", d)
	}
	root := b.Root().Desc
	entry := func(full, tag string) string {
		return `{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + string(root.Digest) + `","size":` +
			jsonOf(t, root.Size) + `,"annotations":{"io.containerd.image.name":"` + full + `","org.opencontainers.image.created":"1970-01-01T00:00:05Z",` +
			`"org.opencontainers.image.ref.name":"` + tag + `"},"platform":{"architecture":"amd64","os":"linux"}}`
	}
	want = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` +
		entry("docker.io/library/app:1", "1") + `,` + entry("r.example/x:latest", "latest") + `]}`
	if d := cmp.Diff(want, ociFiles["index.json"]); d != "" {
		t.Errorf("index.json differs (-want +got):\n%s", d)
	}
	if got := ociFiles["oci-layout"]; got != `{"imageLayoutVersion":"1.0.0"}` {
		t.Errorf("oci-layout is %s", got)
	}

	tag := name.MustParseReference("app:1").(name.Tag)
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(docker.Bytes())), nil }, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}

	err = newBundle(t, export.Options{}, amd64, arm64).WriteDocker(t.Context(), io.Discard, opt)
	if err == nil || !strings.Contains(err.Error(), "several platforms") {
		t.Errorf("docker archive of two platforms: %v", err)
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func untar(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	files := map[string]string{}
	last := ""
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name <= last {
			t.Errorf("%q follows %q", h.Name, last)
		}
		last = h.Name
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(b)
	}
}
