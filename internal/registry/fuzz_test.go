// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzManifest reads hostile manifests and indexes as Resolve does.
func FuzzManifest(f *testing.F) {
	f.Add(ocispecs.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:`+strings.Repeat("0", 64)+`","size":3,"platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add(dockerManifest, manifestBytes("x"))
	f.Add("", []byte(`{"manifests":[null]}`))
	f.Add("text/html", []byte(`[[[[`))
	match := platforms.Only(ocispecs.Platform{OS: "linux", Architecture: "amd64"})
	f.Fuzz(func(t *testing.T, contentType string, raw []byte) {
		mt, err := mediaTypeOf(contentType, raw)
		if err != nil {
			return
		}
		if !isIndexType(mt) && !isManifestType(mt) {
			t.Fatalf("media type %q", mt)
		}
		if isIndexType(mt) {
			idx, err := parseIndex(raw)
			if err != nil {
				return
			}
			if n := len(listPlatforms(idx)); n > 21*120 {
				t.Errorf("error text of %d bytes", n)
			}
			if d, err := choose(idx, match); err == nil && validDescriptor(d) != nil {
				t.Errorf("chose %v", d)
			}
			return
		}
		m, err := parseManifest(raw)
		if err != nil {
			return
		}
		for _, d := range append(m.Layers, m.Config) {
			if validDescriptor(d) != nil {
				t.Errorf("accepted %v", d)
			}
		}
	})
}

// FuzzErrorBody puts hostile texts into errors.
func FuzzErrorBody(f *testing.F) {
	f.Add([]byte(`{"errors":[{"code":"DENIED","message":"no hunter22","detail":{"a":[1]}}]}`))
	f.Add([]byte(`{"details":"https://u:p@h/x?sig=1"}`))
	f.Add([]byte(`{"errors":[{"code":7}],"message":"x"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		code, message := parseErrorBody(body)
		r := redactor{secrets: []string{"hunter22"}}
		for _, s := range []string{code, message} {
			s = r.text(s)
			if len(s) > 700 || !utf8.ValidString(s) || strings.ContainsAny(s, "\n\r\x1b\x00") || strings.Contains(s, "hunter22") {
				t.Errorf("text %q", s)
			}
		}
	})
}

// FuzzHeaders reads hostile headers.
func FuzzHeaders(f *testing.F) {
	f.Add(`Bearer realm="https://a/b",service=x,scope="repository:a/b:pull,push"`, "bytes 0-4/5", "7", "application/json; charset=utf-8")
	f.Add(`Basic`, "bytes */5", "Sat, 21 Nov 2026 03:00:00 GMT", "x/y;=")
	f.Add(`a b=c "`, "bytes 9223372036854775807-1/*", "-1", "")
	f.Fuzz(func(t *testing.T, auth, contentRange, retryAfter, contentType string) {
		chs := parseChallenges(auth)
		if len(chs) > 16 {
			t.Errorf("%d challenges", len(chs))
		}
		for _, c := range chs {
			if c.scheme == "" || len(c.params) > 16 {
				t.Errorf("challenge %v", c)
			}
		}
		challengeOf(&http.Response{Header: http.Header{"Www-Authenticate": {auth, auth}}})
		first, size, err := parseContentRange(contentRange)
		if err == nil && (first < 0 || size < -1 || size >= 0 && first >= size) {
			t.Errorf("range %d of %d", first, size)
		}
		if d := parseRetryAfter(retryAfter, time.Unix(0, 0)); d < 0 {
			t.Errorf("retry after %v", d)
		}
		_, _ = mediaTypeOf(contentType, []byte(`{"layers":[]}`))
	})
}
