// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"hako/internal/store"
)

func keptIn(t *testing.T, dir string) *store.Depot {
	t.Helper()
	d, err := store.OpenDepot(dir, store.DepotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// What was resolved once costs a request for a tag, and none for a digest: not
// even one to find out whether the registry is there.
func TestResolveKept(t *testing.T) {
	f := newFront(t, nil)
	w, _ := newClient(t, Options{})
	repo := f.repo(t, "team/app")
	amd, arm := pushImage(t, w, repo, "", "amd64", ""), pushImage(t, w, repo, "", "arm64", "")
	idx := pushIndex(t, w, repo, "latest", amd, arm)
	dir := t.TempDir()
	platform := &ocispecs.Platform{OS: "linux", Architecture: "arm64"}
	resolve := func(c *Client, id string) *Image {
		t.Helper()
		ref := repo.Tag(id)
		img, err := c.Resolve(t.Context(), ref, platform)
		if id[:1] == "s" {
			img, err = c.Resolve(t.Context(), repo.Digest(id), platform)
		}
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	first, _ := newClient(t, Options{Kept: keptIn(t, dir)})
	want := resolve(first, "latest")

	for _, tt := range []struct {
		id       string
		requests int
	}{{"latest", 2}, {idx.Digest.String(), 0}, {arm.Digest.String(), 0}} { // a ping and a GET; nothing
		c, _ := newClient(t, Options{Kept: keptIn(t, dir)})
		before := f.count("")
		got := resolve(c, tt.id)
		if n := f.count("") - before; n != tt.requests {
			t.Errorf("%s: %d requests, want %d", tt.id, n, tt.requests)
		}
		if got.ManifestDigest != want.ManifestDigest || got.ManifestType != want.ManifestType || string(got.Config) != string(want.Config) {
			t.Errorf("%s: got %s (%s), want %s (%s)", tt.id, got.ManifestDigest, got.ManifestType, want.ManifestDigest, want.ManifestType)
		}
		if got.Origin.Name() != repo.Name() {
			t.Errorf("%s: origin %q", tt.id, got.Origin.Name())
		}
	}
}

// A tag is asked for once, for however many platforms and images that share
// manifest and config.
func TestResolveOncePerReference(t *testing.T) {
	f := newFront(t, nil)
	w, _ := newClient(t, Options{})
	repo := f.repo(t, "team/app")
	amd, arm := pushImage(t, w, repo, "", "amd64", ""), pushImage(t, w, repo, "", "arm64", "")
	pushIndex(t, w, repo, "one", amd, arm)
	pushIndex(t, w, repo, "two", arm, amd)
	c, _ := newClient(t, Options{})
	blobs, manifests := f.count("GET /v2/team/app/blobs/"), f.count("GET /v2/team/app/manifests/")
	g, ctx := errgroup.WithContext(t.Context())
	for _, arch := range []string{"amd64", "arm64"} {
		for _, tag := range []string{"one", "two", "one"} {
			g.Go(func() error {
				_, err := c.Resolve(ctx, repo.Tag(tag), &ocispecs.Platform{OS: "linux", Architecture: arch})
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := f.count("GET /v2/team/app/manifests/") - manifests; n != 4 {
		t.Errorf("%d requests for 2 indexes and 2 manifests", n)
	}
	if n := f.count("GET /v2/team/app/blobs/") - blobs; n != 2 {
		t.Errorf("%d requests for 2 configs", n)
	}
}
