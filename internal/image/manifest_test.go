// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
)

func TestNewManifest(t *testing.T) {
	t.Parallel()
	layer := ocispecs.Descriptor{
		MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: id1.Digest(), Size: 3,
		Annotations: map[string]string{"containerd.io/uncompressed": "x", "containerd.io/snapshot/stargz/toc.digest": "y"},
	}
	m, err := image.NewManifest(image.NewConfig([]byte(`{}`), false), []ocispecs.Descriptor{layer}, map[string]string{"k": "v"}, false)
	if err != nil {
		t.Fatal(err)
	}
	want := `{
  "schemaVersion": 2,
  "mediaType": "application/vnd.oci.image.manifest.v1+json",
  "config": {
    "mediaType": "application/vnd.oci.image.config.v1+json",
    "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    "size": 2
  },
  "layers": [
    {
      "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
      "digest": "` + string(id1) + `",
      "size": 3,
      "annotations": {
        "containerd.io/snapshot/stargz/toc.digest": "y"
      }
    }
  ],
  "annotations": {
    "k": "v"
  }
}`
	if d := cmp.Diff(want, string(m.Data)); d != "" {
		t.Errorf("manifest differs (-want +got):\n%s", d)
	}
	if m.Desc.Size != int64(len(want)) || m.Desc.Digest.Algorithm().FromString(want) != m.Desc.Digest {
		t.Errorf("descriptor %v does not describe the manifest", m.Desc)
	}
}

func TestLayerMediaType(t *testing.T) {
	t.Parallel()
	const oci, docker = "application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"
	for _, tt := range [][3]string{
		{oci, oci, docker},
		{oci + "+gzip", oci + "+gzip", docker + ".gzip"},
		{oci + "+zstd", oci + "+zstd", docker + ".zstd"},
		{docker, oci, docker},
		{docker + ".gzip", oci + "+gzip", docker + ".gzip"},
		{docker + ".zstd", oci + "+zstd", docker + ".zstd"},
		{"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", oci + "+gzip", docker + ".gzip"},
		{"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", oci + "+zstd", docker + ".zstd"},
	} {
		for i, isDocker := range []bool{false, true} {
			got, err := image.LayerMediaType(tt[0], isDocker)
			if err != nil || got != tt[i+1] {
				t.Errorf("LayerMediaType(%q, %v) = %q, %v, want %q", tt[0], isDocker, got, err, tt[i+1])
			}
		}
	}
	if got, err := image.LayerMediaType("application/octet-stream", false); err == nil {
		t.Errorf("LayerMediaType of no layer = %q, want an error", got)
	}
}

func TestAnnotations(t *testing.T) {
	t.Parallel()
	amd, arm := ocispecs.Platform{OS: "linux", Architecture: "amd64"}, ocispecs.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	list := []image.Annotation{
		{Level: image.OnManifest, Platform: &amd, Key: "a", Value: "amd"},
		{Level: image.OnManifest, Key: "a", Value: "all"},
		{Level: image.OnIndex, Key: "i", Value: "x"},
	}
	for want, p := range map[string]*ocispecs.Platform{"amd": &amd, "all": &arm} {
		if got := image.AnnotationsFor(list, image.OnManifest, p)["a"]; got != want {
			t.Errorf("annotation for %v = %q, want %q", p, got, want)
		}
	}
	if got := image.AnnotationsFor(list, image.OnManifestDescriptor, &amd); got != nil {
		t.Errorf("annotations of another level = %v", got)
	}
	both := []ocispecs.Platform{amd, {OS: "linux", Architecture: "arm64"}}
	if err := image.CheckAnnotations(list, both, true, false); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct {
		want            string
		ps              []ocispecs.Platform
		isIndex, docker bool
	}{
		{"has no index", both, false, false},
		{"OCI media types", both, true, true},
		{"not built", both[1:], true, false},
	} {
		if err := image.CheckAnnotations(list, tt.ps, tt.isIndex, tt.docker); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("CheckAnnotations = %v, want %q", err, tt.want)
		}
	}
}
