// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hako/internal/export"
	"hako/internal/image"
)

func TestResultFiles(t *testing.T) {
	t.Parallel()
	dst := tags(t, "app:1", "r.example:5000/x/y")
	for _, tt := range []struct{ name, got, want string }{
		{"digest", string(export.DigestFile("sha256:1")), "sha256:1"},
		{"name", string(export.NameDigestFile(dst, "sha256:1")), "index.docker.io/library/app@sha256:1\nr.example:5000/x/y@sha256:1\n"},
		{"name and tag", string(export.NameTagDigestFile(dst, "sha256:1")), "index.docker.io/library/app:1@sha256:1\nr.example:5000/x/y:latest@sha256:1\n"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}

func TestMetadataFile(t *testing.T) {
	t.Parallel()
	b := newBundle(t, export.Options{}, amd64)
	got, err := b.MetadataFile([]string{"app:1", "r.example/x"})
	if err != nil {
		t.Fatal(err)
	}
	d := b.Root().Desc
	want := `{
  "containerimage.config.digest": "` + b.Images[0].Config.Desc.Digest.String() + `",
  "containerimage.descriptor": {
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "digest": "` + d.Digest.String() + `",
    "size": ` + jsonOf(t, d.Size) + `,
    "platform": {
      "architecture": "amd64",
      "os": "linux"
    }
  },
  "containerimage.digest": "` + d.Digest.String() + `",
  "image.name": "docker.io/library/app:1,r.example/x:latest"
}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("metadata differs (-want +got):\n%s", diff)
	}
}

func TestWriteInPlace(t *testing.T) {
	t.Parallel()
	p := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(p, []byte("something longer"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, s := range []string{"first", "two"} {
		if err := export.WriteInPlace(f, []byte(s)); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(p); string(got) != s {
			t.Errorf("file is %q, want %q", got, s)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := export.WriteInPlace(w, []byte("x")); err != nil {
		t.Errorf("pipe: %v", err)
	}
}

func TestFinishRefuses(t *testing.T) {
	t.Parallel()
	if _, err := export.Finish(nil, export.Options{}); err == nil {
		t.Error("no image is no error")
	}
	opt := export.Options{Annotations: []image.Annotation{{Level: image.OnIndex, Key: "k", Value: "v"}}}
	if _, err := export.Finish(newImages(t, amd64), opt); err == nil || !strings.Contains(err.Error(), "no index") {
		t.Errorf("index annotation without an index: %v", err)
	}
	b, err := export.Finish(newImages(t, amd64, arm64), opt)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b.Root().Data), `"k": "v"`) {
		t.Errorf("the index lacks its annotation: %s", b.Root().Data)
	}
}
