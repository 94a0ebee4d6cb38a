// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestResolve(t *testing.T) {
	f := newFront(t, nil)
	c, _ := newClient(t, Options{})
	repo := f.repo(t, "team/app")
	amd := pushImage(t, c, repo, "single", "amd64", "")
	v6 := pushImage(t, c, repo, "", "arm", "v6")
	v7 := pushImage(t, c, repo, "", "arm", "v7")
	attestation := amd
	attestation.Platform = &ocispecs.Platform{OS: "unknown", Architecture: "unknown"}
	bare := pushImage(t, c, repo, "", "s390x", "")
	bare.Platform = nil
	idx := pushIndex(t, c, repo, "multi", attestation, v6, v7, amd)
	bareIdx := pushIndex(t, c, repo, "bare", bare)
	nested := pushIndex(t, c, repo, "nested", idx)
	lying := amd
	lying.Size++
	pushIndex(t, c, repo, "lying", lying)

	tests := []struct {
		name, tag        string
		arch, variant    string
		digest, manifest ocispecs.Descriptor
		wantErr          string
	}{
		{name: "single manifest", tag: "single", arch: "amd64", digest: amd, manifest: amd},
		{name: "single manifest of another platform", tag: "single", arch: "arm64", digest: amd, manifest: amd},
		{name: "index", tag: "multi", arch: "amd64", digest: idx, manifest: amd},
		{name: "best variant", tag: "multi", arch: "arm", variant: "v7", digest: idx, manifest: v7},
		{name: "lower variant", tag: "multi", arch: "arm", variant: "v6", digest: idx, manifest: v6},
		{name: "nested", tag: "nested", arch: "amd64", digest: nested, manifest: amd},
		{name: "platform in config", tag: "bare", arch: "s390x", digest: bareIdx, manifest: bare},
		{name: "other platform in config", tag: "bare", arch: "amd64", wantErr: "no match for platform"},
		{name: "absent platform", tag: "multi", arch: "riscv64", wantErr: "has linux/arm/v6, linux/arm/v7, linux/amd64"},
		{name: "size of the index wrong", tag: "lying", arch: "amd64", wantErr: "wrong content"},
		{name: "absent tag", tag: "absent", arch: "amd64", wantErr: "not found (404)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			img, err := c.Resolve(t.Context(), repo.Tag(tt.tag), &ocispecs.Platform{OS: "linux", Architecture: tt.arch, Variant: tt.variant})
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("err = %v, want %q", err, tt.wantErr)
				}
				var e *Error
				if !errors.As(err, &e) || e.Op != "pull" || !strings.HasSuffix(e.Ref, "/team/app:"+tt.tag) {
					t.Errorf("not a whole *Error: %#v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if img.Digest != tt.digest.Digest || img.ManifestDigest != tt.manifest.Digest || len(img.Manifest.Layers) != 1 || len(img.Config) == 0 {
				t.Errorf("got %s, %s", img.Digest, img.ManifestDigest)
			}
		})
	}
}

func TestResolveAsksOnce(t *testing.T) {
	f := newFront(t, nil)
	w, _ := newClient(t, Options{})
	repo := f.repo(t, "team/app")
	pushImage(t, w, repo, "latest", "amd64", "")
	c, _ := newClient(t, Options{})
	before := f.count("GET /v2/team/app/manifests/")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.Resolve(t.Context(), repo.Tag("latest"), &ocispecs.Platform{OS: "linux", Architecture: "amd64"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := f.count("GET /v2/team/app/manifests/") - before; n != 1 {
		t.Errorf("%d requests for the manifest", n)
	}
}

func TestResolveRefuses(t *testing.T) {
	good := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"sha256:` + strings.Repeat("0", 64) + `","size":2},"layers":[]}`
	tests := []struct{ name, contentType, body, want string }{
		{"schema 1", dockerSchema1Signed, `{"schemaVersion":1,"fsLayers":[]}`, "schema 1"},
		{"schema 1 unnamed", "application/json", `{"schemaVersion":1,"name":"x"}`, "schema 1"},
		{"not JSON", "text/html", `<html>`, "not valid JSON"},
		{"ambiguous", ocispecs.MediaTypeImageIndex, `{"manifests":[],"layers":[]}`, "ambiguous"},
		{"index with config", ocispecs.MediaTypeImageIndex, `{"mediaType":"application/vnd.oci.image.index.v1+json","config":{}}`, "has layers"},
		{"other type", "", `{"mediaType":"application/x-thing","layers":[]}`, "not an image's"},
		{"no manifest", "application/json", `{}`, "is not a manifest"},
		{"bad digest", ocispecs.MediaTypeImageManifest, strings.Replace(good, "sha256:0000", "sha256:../..", 1), "invalid"},
		{"negative size", ocispecs.MediaTypeImageManifest, strings.Replace(good, `"size":2`, `"size":-2`, 1), "negative size"},
		{"too long", ocispecs.MediaTypeImageManifest, `{"x":"` + strings.Repeat("a", int(maxManifest)) + `"}`, "longer than the limit"},
		{"too many", ocispecs.MediaTypeImageIndex, `{"manifests":[{}` + strings.Repeat(",null", maxCommas+1) + `]}`, "too many entries"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFront(t, func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				w.Header().Set("Content-Type", tt.contentType)
				_, _ = w.Write([]byte(tt.body))
				return true
			})
			c, slept := newClient(t, Options{})
			_, err := c.Resolve(t.Context(), f.repo(t, "team/app").Tag("x"), nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("err = %v, want %q", err, tt.want)
			}
			if len(slept.d) > 0 {
				t.Errorf("retried what cannot change")
			}
		})
	}
}

func TestResolveWrongBytes(t *testing.T) {
	f := newFront(t, nil)
	c, _ := newClient(t, Options{})
	repo := f.repo(t, "team/app")
	d := pushImage(t, c, repo, "latest", "amd64", "")
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			_, _ = w.Write([]byte(`{"schemaVersion":2,"config":{},"layers":[]}`))
			return true
		}
		return false
	})
	_, err := c.Resolve(t.Context(), repo.Digest(d.Digest.String()), nil)
	if !errors.Is(err, ErrWrongContent) {
		t.Errorf("manifest by digest: err = %v", err)
	}
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			// The right length, the wrong content.
			_, _ = w.Write([]byte(`{"Architecture":"amd64","os":"linux"}XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX`)[:mustSize(t, c, repo, d)])
			return true
		}
		return false
	})
	_, err = c.Resolve(t.Context(), repo.Digest(d.Digest.String()), nil)
	if !errors.Is(err, ErrWrongContent) {
		t.Errorf("config: err = %v", err)
	}
}

func mustSize(t *testing.T, c *Client, repo name.Repository, d ocispecs.Descriptor) int64 {
	t.Helper()
	m, err := c.FetchManifest(t.Context(), repo.Digest(d.Digest.String()))
	if err != nil {
		t.Error(err)
		return 0
	}
	man, err := parseManifest(m.Raw)
	if err != nil {
		t.Error(err)
	}
	return man.Config.Size
}

func TestParseReference(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	tests := []struct{ in, want string }{
		{"ubuntu", "index.docker.io/library/ubuntu:latest"},
		{"docker.io/ubuntu:22.04", "index.docker.io/library/ubuntu:22.04"},
		{"team/app", "index.docker.io/team/app:latest"},
		{"localhost:5000/app", "localhost:5000/app:latest"},
		{"r.example.com/a/b/c:v1@" + d, "r.example.com/a/b/c@" + d},
		{"UPPER/case", ""},
		{"a b", ""},
		{"app@sha256:12", ""},
		{"app@md5:12", ""},
		{"", ""},
	}
	for _, tt := range tests {
		ref, err := ParseReference(tt.in)
		got := ""
		if err == nil {
			got = ref.Name()
		}
		if got != tt.want {
			t.Errorf("ParseReference(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
}
