// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/export"
	"hako/internal/image"
	"hako/internal/registry"
	"hako/internal/source"
	"hako/internal/tree"
)

// A shelf is a registry with images in it, and notes what is asked of it.
type shelf struct {
	host   string
	client *registry.Client

	mu   sync.Mutex
	seen []string // "PUT /v2/…"
	gone string   // requests whose line has this in it are answered with 404
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	s := &shelf{}
	real := ggcr.New(ggcr.Logger(quietLog()))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Method+" "+r.URL.RequestURI())
		gone := s.gone != "" && strings.Contains(r.Method+" "+r.URL.Path, s.gone)
		s.mu.Unlock()
		if gone {
			http.NotFound(w, r)
			return
		}
		real.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.host = strings.TrimPrefix(srv.URL, "http://")
	s.client = newClient(t)
	return s
}

func newClient(t *testing.T) *registry.Client {
	t.Helper()
	c, err := registry.New(registry.Options{Retries: -1})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// push pushes an image and returns its digest. It does so as another program
// than the one that joins, which remembers what it pushed.
func (s *shelf) push(t *testing.T, b *export.Bundle, ref string) digest.Digest {
	t.Helper()
	if _, err := b.Push(t.Context(), newClient(t), tags(t, s.host+"/"+ref)); err != nil {
		t.Fatal(err)
	}
	return b.Root().Desc.Digest
}

func (s *shelf) repository(t *testing.T, repo string) export.Repository {
	t.Helper()
	r, err := name.NewRepository(s.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	return export.Repository{Client: s.client, Repo: r}
}

func (s *shelf) members(t *testing.T, repo string, d digest.Digest) []export.Member {
	t.Helper()
	list, err := export.Members(t.Context(), s.repository(t, repo), d)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// valid lets another library read the index at ref and all that it points to.
func (s *shelf) valid(t *testing.T, ref string, want digest.Digest) {
	t.Helper()
	tag := tags(t, s.host+"/"+ref)[0]
	idx, err := remote.Index(tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(idx); err != nil {
		t.Error(err)
	}
	if d, _ := idx.Digest(); d.String() != want.String() {
		t.Errorf("%s has the digest %s, want %s", ref, d, want)
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	s, other := newShelf(t), newShelf(t)
	amd := s.push(t, newBundle(t, export.Options{}, amd64), "app:amd")
	arm := s.push(t, newBundle(t, export.Options{}, arm64), "parts:arm")
	ppc := other.push(t, newBundle(t, export.Options{}, ocispecs.Platform{OS: "linux", Architecture: "ppc64le"}), "far:ppc")
	members := slices.Concat(other.members(t, "far", ppc), s.members(t, "parts", arm), s.members(t, "app", amd))

	// This registry has one store for all its repositories, and must not say so.
	s.seen, s.gone = nil, "HEAD /v2/app/blobs/"
	j, err := export.Join(members, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Push(t.Context(), s.client, tags(t, s.host+"/app:all")[0]); err != nil {
		t.Fatal(err)
	}
	s.gone = ""
	s.valid(t, "app:all", j.Index.Desc.Digest)
	if !slices.ContainsFunc(s.seen, func(r string) bool { return strings.Contains(r, "from=parts") }) {
		t.Errorf("nothing was mounted from the other repository:\n%s", strings.Join(s.seen, "\n"))
	}

	// The order of what is given changes nothing.
	slices.Reverse(members)
	again, err := export.Join(append(members, members[0]), nil)
	if err != nil || again.Index.Desc.Digest != j.Index.Desc.Digest {
		t.Errorf("joined in another order: %v, %v, want %s", again.Index.Desc.Digest, err, j.Index.Desc.Digest)
	}
	// Nor does it if the images come from an index.
	taken, err := export.Join(s.members(t, "app", j.Index.Desc.Digest), nil)
	if err != nil || taken.Index.Desc.Digest != j.Index.Desc.Digest {
		t.Errorf("joined again: %v, %v, want %s", taken.Index.Desc.Digest, err, j.Index.Desc.Digest)
	}
	var x ocispecs.Index
	if err := json.Unmarshal(j.Index.Data, &x); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range x.Manifests {
		got = append(got, m.Platform.Architecture+m.Platform.Variant)
	}
	if want := []string{"amd64", "arm64", "ppc64le"}; !slices.Equal(got, want) {
		t.Errorf("platforms %q, want %q", got, want)
	}
}

func TestJoinLayout(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	amd := s.push(t, newBundle(t, export.Options{}, amd64), "app:amd")
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := newBundle(t, export.Options{}, arm64).WriteLayout(t.Context(), root, export.LayoutOptions{}); err != nil {
		t.Fatal(err)
	}
	fsys, err := tree.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := source.OpenLayout(fsys)
	if err != nil {
		t.Fatal(err)
	}
	found, err := l.Find("")
	if err != nil || len(found) != 1 {
		t.Fatalf("Find = %v, %v", found, err)
	}
	arm, err := export.Members(t.Context(), l, found[0])
	if err != nil {
		t.Fatal(err)
	}
	j, err := export.Join(append(s.members(t, "app", amd), arm...), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Push(t.Context(), s.client, tags(t, s.host+"/app:all")[0]); err != nil {
		t.Fatal(err)
	}
	s.valid(t, "app:all", j.Index.Desc.Digest)
	if _, err := l.Find("no-such-tag"); err == nil || !strings.Contains(err.Error(), "index.json has") {
		t.Errorf("Find of no tag = %v", err)
	}
}

func TestJoinDocuments(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	member := func(docker bool, p ocispecs.Platform) export.Member {
		return s.members(t, "app", s.push(t, newBundle(t, export.Options{Docker: docker}, p), "app:x"))[0]
	}
	arm := []image.Annotation{{Level: image.OnManifestDescriptor, Platform: &arm64, Key: "k", Value: "v"}}
	for _, tt := range []struct {
		name        string
		members     []export.Member
		annotations []image.Annotation
		mediaType   string
		contains    string
	}{
		{"oci", []export.Member{member(false, amd64)}, nil, ocispecs.MediaTypeImageIndex, ""},
		{"docker", []export.Member{member(true, amd64), member(true, arm64)}, nil, image.DockerManifestList, ""},
		{"mixed", []export.Member{member(true, amd64), member(false, arm64)}, nil, ocispecs.MediaTypeImageIndex, ""},
		{"index annotation", []export.Member{member(true, amd64)}, []image.Annotation{{Level: image.OnIndex, Key: "k", Value: "v"}}, ocispecs.MediaTypeImageIndex, `"k": "v"`},
		{"entry annotation", []export.Member{member(true, amd64), member(true, arm64)}, arm, ocispecs.MediaTypeImageIndex, `"k": "v"`},
	} {
		j, err := export.Join(tt.members, tt.annotations)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if j.Index.Desc.MediaType != tt.mediaType || !strings.Contains(string(j.Index.Data), tt.contains) {
			t.Errorf("%s: index\n%s\nwant %s with %q", tt.name, j.Index.Data, tt.mediaType, tt.contains)
		}
	}
	if _, err := export.Join([]export.Member{member(false, amd64), member(true, amd64)}, nil); err == nil || !strings.Contains(err.Error(), "two images are for linux/amd64: sha256:") {
		t.Errorf("two images for one platform: %v", err)
	}
	if _, err := export.Join([]export.Member{member(false, amd64)}, arm); err == nil || !strings.Contains(err.Error(), "not built") {
		t.Errorf("annotation for a platform that is not there: %v", err)
	}
}

// TestJoinMissing takes parts of an image away: an index must not point at what
// nobody can pull.
func TestJoinMissing(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	b := newBundle(t, export.Options{}, amd64)
	d := s.push(t, b, "app:amd")
	members := s.members(t, "app", d)
	j, err := export.Join(members, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.gone = b.Images[0].Layers[0].Digest.String()
	err = j.Push(t.Context(), s.client, tags(t, s.host+"/app:all")[0])
	if err == nil || !strings.Contains(err.Error(), s.gone) {
		t.Errorf("a layer is missing: %v", err)
	}
	if _, err := s.client.FetchManifest(t.Context(), tags(t, s.host+"/app:all")[0]); err == nil {
		t.Error("the tag was set")
	}
	s.gone = d.String()
	if _, err := export.Members(t.Context(), s.repository(t, "app"), d); err == nil {
		t.Error("a manifest is missing, and no error")
	}
}
