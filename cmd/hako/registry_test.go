// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// startRegistry serves registry.test to programs that have its URL as their HTTP
// proxy, so that no script's output depends on a port. It has the images base:1,
// for two platforms, tools:1 and triggers:1. It serves read-only.test and gone.test too. Their layers are no tars: reading
// one fails.
func startRegistry(t *testing.T) (url string) {
	t.Helper()
	srv := httptest.NewServer(byHost(registry.New(registry.Logger(log.New(io.Discard, "", 0)))))
	t.Cleanup(srv.Close)
	both := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"amd64", "arm64"} {
		both = mutate.AppendManifests(both, mutate.IndexAddendum{
			Add:        newImage(t, arch, nil, 2_000_000, 500_000),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	at := func(n string) name.Reference {
		ref, err := name.ParseReference(srv.Listener.Addr().String() + "/" + n)
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	if err := remote.WriteIndex(at("base:1"), both); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(at("tools:1"), newImage(t, "amd64", nil, 300_000)); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(at("triggers:1"), newImage(t, "amd64", []string{"COPY conf /etc/conf", "RUN reload"}, 1000)); err != nil {
		t.Fatal(err)
	}
	return srv.URL
}

// newImage returns an image with layers of the given sizes.
func newImage(t *testing.T, arch string, onBuild []string, sizes ...int) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{OS: "linux", Architecture: arch, Config: v1.Config{Env: []string{"PATH=/bin"}, OnBuild: onBuild}})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range sizes {
		fill := fmt.Appendf(nil, "%s %d\n", arch, n)
		blob := bytes.Repeat(fill, n/len(fill)+1)[:n]
		if img, err = mutate.AppendLayers(img, static.NewLayer(blob, types.OCILayer)); err != nil {
			t.Fatal(err)
		}
	}
	return img
}
