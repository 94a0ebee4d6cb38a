// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package diff_test

import (
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/diff"
	"hako/internal/export"
	"hako/internal/layer"
	"hako/internal/registry"
	"hako/internal/store"
	"hako/internal/tree"
)

// bundle returns an image for each architecture, with the content in a file.
func bundle(t *testing.T, content string, archs ...string) *export.Bundle {
	t.Helper()
	st := must[*store.Store](t)(store.Open(t.TempDir()))
	var images []export.Image
	for _, arch := range archs {
		seq := func(yield func(tree.Change, error) bool) { yield(file("f", content+arch), nil) }
		l := must[*layer.Layer](t)(layer.Write(t.Context(), st, seq, layer.WriteOptions{}))
		images = append(images, export.Image{
			Platform: ocispecs.Platform{OS: "linux", Architecture: arch},
			Ref:      &layer.Ref{Layers: []*layer.Layer{l}},
			Config:   []byte(`{"os":"linux","architecture":"` + arch + `","history":[{"created_by":"x"}]}`),
		})
	}
	return must[*export.Bundle](t)(export.Finish(images, export.Options{}))
}

func openDir(t *testing.T, dir string) *os.Root {
	t.Helper()
	root := must[*os.Root](t)(os.OpenRoot(dir))
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func archive(t *testing.T, b []byte, ref string) diff.Blobs {
	t.Helper()
	return must[diff.Blobs](t)(diff.OpenArchive(bytes.NewReader(b), int64(len(b)), ref))
}

// TestOpen writes one image in every form: all are equal, and differ from another.
func TestOpen(t *testing.T) {
	t.Parallel()
	b := bundle(t, "one", "amd64")
	forms := map[string]diff.Blobs{}

	dir := t.TempDir()
	if err := b.WriteLayout(t.Context(), openDir(t, dir), export.LayoutOptions{}); err != nil {
		t.Fatal(err)
	}
	forms["layout"] = diff.OpenLayout(openDir(t, dir), "")

	named := t.TempDir()
	for content, n := range map[string]string{"one": "app:1", "two": "app:2"} {
		err := bundle(t, content, "amd64").WriteLayout(t.Context(), openDir(t, named), export.LayoutOptions{Names: []string{n}, Keep: true})
		if err != nil {
			t.Fatal(err)
		}
	}
	forms["layout by tag"] = diff.OpenLayout(openDir(t, named), "1")
	forms["layout by name"] = diff.OpenLayout(openDir(t, named), "docker.io/library/app:1")

	var oci, docker, old bytes.Buffer
	names := export.LayoutOptions{Names: []string{"app:1", "app:latest"}}
	if err := b.WriteLayoutTar(t.Context(), &oci, names); err != nil {
		t.Fatal(err)
	}
	if err := b.WriteDocker(t.Context(), &docker, names); err != nil {
		t.Fatal(err)
	}
	forms["oci archive"] = archive(t, oci.Bytes(), "")
	forms["docker archive"] = archive(t, docker.Bytes(), "")

	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	c := must[*registry.Client](t)(registry.New(registry.Options{}))
	tag := must[name.Tag](t)(name.NewTag(strings.TrimPrefix(srv.URL, "http://") + "/app:1"))
	if _, err := b.Push(t.Context(), c, []name.Tag{tag}); err != nil {
		t.Fatal(err)
	}
	forms["registry"] = diff.OpenRegistry(c, tag)

	for form, blobs := range forms {
		if got := compare(t, forms["layout"], blobs, diff.Options{Digests: true}); len(got) > 0 {
			t.Errorf("%s: %v", form, lines(got))
		}
		if got := compare(t, blobs, diff.OpenLayout(openDir(t, named), "2"), diff.Options{}); len(got) != 1 || got[0].Field != "content" {
			t.Errorf("%s and another image: %v", form, lines(got))
		}
	}

	// docker save of old has no manifest and other media types, but the same content.
	p := filepath.Join(t.TempDir(), "docker.tar")
	if err := os.WriteFile(p, docker.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	app := name.MustParseReference("app:1").(name.Tag)
	img, err := tarball.ImageFromPath(p, &app)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.Write(app, img, &old); err != nil {
		t.Fatal(err)
	}
	for _, d := range compare(t, forms["layout"], archive(t, old.Bytes(), ""), diff.Options{}) {
		if !strings.HasSuffix(d.Field, "ediaType") {
			t.Errorf("docker save of old: %s", d)
		}
	}
}

func TestPlatforms(t *testing.T) {
	t.Parallel()
	open := func(b *export.Bundle) diff.Blobs {
		var buf bytes.Buffer
		if err := b.WriteLayoutTar(t.Context(), &buf, export.LayoutOptions{}); err != nil {
			t.Fatal(err)
		}
		return archive(t, buf.Bytes(), "")
	}
	a, b := open(bundle(t, "one", "amd64", "arm64")), open(bundle(t, "two", "arm64", "s390x"))
	got := lines(compare(t, a, b, diff.Options{}))
	for i, l := range got {
		got[i], _, _ = strings.Cut(l, ": sha256")
	}
	want := []string{"image platform: linux/amd64 | (none)", "linux/arm64 tree /f content", "image platform: (none) | linux/s390x"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("differences differ (-want +got):\n%s", d)
	}
	arm := &ocispecs.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	if got := compare(t, a, b, diff.Options{Platform: arm}); len(got) != 1 || got[0].Field != "content" {
		t.Errorf("arm64 alone: %v", lines(got))
	}
	if r, err := tryCompare(t, a, b, diff.Options{Platform: &ocispecs.Platform{OS: "linux", Architecture: "s390x"}}); err == nil {
		t.Errorf("a platform that one image lacks: %v", lines(r))
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	var tar bytes.Buffer
	if err := bundle(t, "one", "amd64").WriteDocker(t.Context(), &tar, export.LayoutOptions{}); err != nil {
		t.Fatal(err)
	}
	whole := tar.Bytes()
	cut := whole[:len(whole)/2]
	for what, b := range map[string][]byte{"cut": cut, "empty": nil, "no tar": []byte(strings.Repeat("x", 2000))} {
		if blobs, err := diff.OpenArchive(bytes.NewReader(b), int64(len(b)), ""); err == nil {
			if _, err := diff.Load(t.Context(), what, blobs, t.TempDir()); err == nil {
				t.Errorf("%s: no error", what)
			}
		}
	}
	if _, err := diff.Load(t.Context(), "x", archive(t, whole, "other"), t.TempDir()); err == nil {
		t.Error("a name that is not there is no error")
	}
	broken := bytes.Replace(slices.Clone(whole), []byte(`"architecture"`), []byte(`"Architecture"`), 1)
	if _, err := diff.Load(t.Context(), "x", archive(t, broken, ""), t.TempDir()); err == nil {
		t.Error("a changed config is no error")
	}
}

func FuzzOpenArchive(f *testing.F) {
	f.Add([]byte("manifest.json"))
	f.Fuzz(func(t *testing.T, b []byte) {
		blobs, err := diff.OpenArchive(bytes.NewReader(b), int64(len(b)), "")
		if err != nil {
			return
		}
		_, _ = diff.Load(t.Context(), "x", blobs, t.TempDir())
	})
}
