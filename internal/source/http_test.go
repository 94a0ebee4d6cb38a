// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"hako/internal/source"
	"hako/internal/store"
	"hako/internal/tree"
)

func openStore(t *testing.T) *store.Store {
	t.Helper()
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestFetchHTTP(t *testing.T) {
	t.Parallel()
	const body, modified = "content", "Wed, 21 Oct 2015 07:28:00 GMT"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cd := r.URL.Query().Get("cd"); cd != "" {
			w.Header().Set("Content-Disposition", cd)
		}
		if r.URL.Path == "/dated.txt" {
			w.Header().Set("Last-Modified", modified)
		}
		_, _ = io.WriteString(w, body)
	}))
	defer srv.Close()
	sum := digest.FromString(body)
	for _, c := range []struct {
		name, url string
		opt       source.HTTPOptions
		want      tree.Entry
	}{
		{"from the path", "/dated.txt", source.HTTPOptions{}, tree.Entry{Path: "dated.txt", Mode: 0o100600, ModTime: time.Unix(1445412480, 0)}},
		{"no name", "/", source.HTTPOptions{}, tree.Entry{Path: "download", Mode: 0o100600, ModTime: time.Unix(0, 0)}},
		{"asked for", "/x", source.HTTPOptions{Filename: "__unnamed__", Checksum: sum}, tree.Entry{Path: "__unnamed__", Mode: 0o100600, ModTime: time.Unix(0, 0)}},
		{"hostile", `/x?cd=attachment;filename="../../etc/passwd"`, source.HTTPOptions{Mode: 0o755, UID: 3}, tree.Entry{Path: "passwd", Mode: 0o100755, UID: 3, ModTime: time.Unix(0, 0)}},
		{"dots", "/x/%2e%2e", source.HTTPOptions{}, tree.Entry{Path: "download", Mode: 0o100600, ModTime: time.Unix(0, 0)}},
		{"sha512", "/x", source.HTTPOptions{Checksum: digest.SHA512.FromString(body)}, tree.Entry{Path: "x", Mode: 0o100600, ModTime: time.Unix(0, 0)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := srv.URL + strings.NewReplacer(";", "%3B", `"`, "%22").Replace(c.url)
			f, err := source.FetchHTTP(t.Context(), srv.Client(), openStore(t), u, c.opt)
			if err != nil {
				t.Fatal(err)
			}
			e, err := f.FS.Lstat(f.Name)
			if err != nil || e.Path != c.want.Path || e.Mode != c.want.Mode || e.UID != c.want.UID ||
				!e.ModTime.Equal(c.want.ModTime) || e.Size != int64(len(body)) || e.Digest != sum || f.Digest != sum {
				t.Errorf("got %+v, %v, want %+v", e, err, c.want)
			}
			r, err := f.FS.Open(f.Name)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if b, err := io.ReadAll(r); string(b) != body || err != nil {
				t.Errorf("content %q, %v", b, err)
			}
		})
	}
}

func TestFetchHTTPErrors(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := calls.Add(1)
		switch r.URL.Path {
		case "/missing":
			http.NotFound(w, r)
		case "/down":
			w.WriteHeader(http.StatusBadGateway)
		case "/cut", "/flaky":
			if r.URL.Path == "/flaky" && n > 2 {
				_, _ = io.WriteString(w, "whole")
				return
			}
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "part")
		default:
			_, _ = io.WriteString(w, "whole")
		}
	}))
	defer srv.Close()
	at := strings.TrimPrefix(srv.URL, "http://")
	wrong := digest.FromString("other")
	for _, c := range []struct {
		path  string
		opt   source.HTTPOptions
		calls int32
		want  string
	}{
		{"/missing", source.HTTPOptions{}, 1, "404 Not Found"},
		{"/down", source.HTTPOptions{Attempts: 3}, 3, "502 Bad Gateway"},
		{"/cut", source.HTTPOptions{Attempts: 2}, 2, "unexpected EOF"},
		{"/flaky", source.HTTPOptions{Attempts: 3}, 3, ""},
		{"/sum", source.HTTPOptions{Checksum: wrong}, 1, fmt.Sprintf("content of 5 bytes is %s, want %s", digest.FromString("whole"), wrong)},
		{"/sum", source.HTTPOptions{Checksum: "sha256:x"}, 0, `checksum "sha256:x": invalid checksum digest length`},
	} {
		calls.Store(0)
		c.opt.Delay = time.Millisecond
		st := openStore(t)
		_, err := source.FetchHTTP(t.Context(), srv.Client(), st, "http://user:password@"+at+c.path+"?X-Signature=secret", c.opt)
		if got := calls.Load(); got != c.calls {
			t.Errorf("%s: %d requests, want %d", c.path, got, c.calls)
		}
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.path, err)
			}
			continue
		}
		want := "fetch http://xxxxx@" + at + c.path + "?xxxxx: " + c.want
		if err == nil || err.Error() != want {
			t.Errorf("%s: error\n%v, want\n%s", c.path, err, want)
		}
		var status *source.HTTPStatusError
		if c.path == "/down" && (!errors.As(err, &status) || status.Status != 502) {
			t.Errorf("%s: no status in %v", c.path, err)
		}
		for _, dir := range []string{"tmp", "blobs/sha256"} {
			if left, err := os.ReadDir(filepath.Join(st.Dir(), dir)); err != nil || len(left) > 0 {
				t.Errorf("%s: left in %s: %v, %v", c.path, dir, left, err)
			}
		}
	}
	srv.Close()
	_, err := source.FetchHTTP(t.Context(), srv.Client(), openStore(t), srv.URL+"/x?secret", source.HTTPOptions{Attempts: 1})
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("connection refused: %v", err)
	}
}
