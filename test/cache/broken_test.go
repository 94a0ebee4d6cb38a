// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cache

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A faultCase is a way in which the cache's repository fails in the second of two builds.
type faultCase struct {
	name  string
	fault func(w http.ResponseWriter, r *http.Request) bool
	// warns is what the build has to say, once.
	warns string
}

// stuck answers nothing until the client is gone, which a server sees once it has
// read what was sent.
func stuck(r *http.Request) bool {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
	return true
}

func isBlobGet(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
}

func answer(w http.ResponseWriter, status int, body string) bool {
	w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
	return true
}

func faultCases(inner http.Handler) []faultCase {
	status := func(code int, matches func(r *http.Request) bool) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !matches(r) {
				return false
			}
			w.Header().Set("Retry-After", "60")
			return answer(w, code, `{"errors":[{"code":"UNKNOWN","message":"out of order"}]}`)
		}
	}
	any := func(*http.Request) bool { return true }
	writes := func(r *http.Request) bool { return r.Method != http.MethodGet && r.Method != http.MethodHead }
	manifest := func(r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/")
	}
	return []faultCase{
		{"500", status(500, any), "nothing of it is used"},
		{"503 with Retry-After", status(503, any), "nothing of it is used"},
		{"429 with Retry-After", status(429, any), "nothing of it is used"},
		{"hangs", func(_ http.ResponseWriter, r *http.Request) bool { return stuck(r) }, "nothing of it is used"},
		{"hangs when written", func(_ http.ResponseWriter, r *http.Request) bool { return writes(r) && stuck(r) }, "written"},
		{"read only", status(403, writes), "nothing more is written to it"},
		{"full", status(507, writes), "written"},
		{"not found", status(404, any), ""},
		{"no document", func(w http.ResponseWriter, r *http.Request) bool { return manifest(r) && answer(w, 200, "<html>") }, "nothing of it is used"},
		{"an image", func(w http.ResponseWriter, r *http.Request) bool {
			return manifest(r) && answer(w, 200, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:`+strings.Repeat("0", 64)+`","size":2},"layers":[]}`)
		}, "something else than a cache"},
		{"blobs are gone", status(404, isBlobGet), "building again"},
		{"blobs refused", status(403, isBlobGet), "building again"},
		{"blobs hang", func(_ http.ResponseWriter, r *http.Request) bool { return isBlobGet(r) && stuck(r) }, "building again"},
		{"blobs truncated", func(w http.ResponseWriter, r *http.Request) bool {
			return isBlobGet(r) && change(w, r, inner, func(b []byte) []byte { return b[:len(b)/2] })
		}, "building again"},
		{"wrong bytes", func(w http.ResponseWriter, r *http.Request) bool {
			return isBlobGet(r) && change(w, r, inner, func(b []byte) []byte {
				b[len(b)/2] ^= 0xff
				return b
			})
		}, "building again"},
		{"other bytes", func(w http.ResponseWriter, r *http.Request) bool {
			return isBlobGet(r) && change(w, r, inner, func(b []byte) []byte { return make([]byte, len(b)) })
		}, "building again"},
	}
}

// change serves what the registry has, changed.
func change(w http.ResponseWriter, r *http.Request, inner http.Handler, by func([]byte) []byte) bool {
	rec := httptest.NewRecorder()
	inner.ServeHTTP(rec, r)
	if rec.Code >= 300 {
		return false
	}
	size := rec.Header().Get("Content-Length")
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", size)
	w.WriteHeader(rec.Code)
	_, _ = w.Write(by(rec.Body.Bytes()))
	return true
}

// TestBrokenRegistry: whatever the cache's registry does, the image is right, and
// nothing but one line tells.
func TestBrokenRegistry(t *testing.T) {
	t.Parallel()
	const dockerfile = "FROM REG/base:one AS a\nCOPY f /f\nRUN cat /f /f > /g; rm /extra\nFROM REG/base:one\nCOPY --from=a /g /g\nRUN cat /g > /h; : %s\n"
	shared := newWorld(t)
	shared.base("one", "1")
	shared.write(map[string]string{"Dockerfile": fmt.Sprintf(dockerfile, "changed"), "f": strings.Repeat("some content\n", 1000)})
	want := shared.uncached()
	for i, test := range faultCases(shared.reg.Handler) {
		repo := fmt.Sprintf("broken%d", i)
		w := &world{t: t, reg: shared.reg, addr: shared.addr, dir: t.TempDir()}
		w.args = []string{"--cache", "--cache-repo=" + w.addr + "/" + repo, "-d", w.addr + "/app:1"}
		w.write(map[string]string{"Dockerfile": fmt.Sprintf(dockerfile, "first"), "f": strings.Repeat("some content\n", 1000)})
		w.must(w.build())
		w.write(map[string]string{"Dockerfile": fmt.Sprintf(dockerfile, "changed")})
		w.reg.setFault(func(rw http.ResponseWriter, r *http.Request) bool {
			return strings.HasPrefix(r.URL.Path, "/v2/"+repo+"/") && test.fault(rw, r)
		})
		began := time.Now()
		b := w.build()
		took := time.Since(began)
		w.reg.setFault(nil)
		if b.err != nil || b.digest != want {
			t.Errorf("%s: %s, want %s: %v\n%s", test.name, b.digest, want, b.err, b.log)
		}
		if test.warns != "" && strings.Count(b.log, test.warns) == 0 {
			t.Errorf("%s: nothing says %q\n%s", test.name, test.warns, b.log)
		}
		t.Logf("%-22s %.1f s", test.name, took.Seconds())
	}
}

// TestLostFromStdin: standard input can be read only once, and yet a build of it
// begins again without what the cache has lost.
func TestLostFromStdin(t *testing.T) {
	t.Parallel()
	const dockerfile = "FROM REG/base:one\nCOPY f /f\nRUN cat /f /f > /g\nCOPY d /d\nRUN cat /g > /h; : %s\n"
	w := newWorld(t)
	w.base("one", "1")
	for i, form := range []string{"a pipe", "a file"} {
		w.args = []string{"--cache", fmt.Sprintf("--cache-repo=%s/stdin%d", w.addr, i), "-d", w.addr + "/app:1"}
		w.write(map[string]string{"Dockerfile": fmt.Sprintf(dockerfile, "first"), "f": "f\n", "d/e/f": "f\n"})
		w.must(w.build())
		w.write(map[string]string{"Dockerfile": fmt.Sprintf(dockerfile, "changed")})
		want := w.uncached()
		w.reg.setFault(func(rw http.ResponseWriter, r *http.Request) bool {
			return strings.HasPrefix(r.URL.Path, "/v2/stdin") && isBlobGet(r) && answer(rw, http.StatusNotFound, "{}")
		})
		cmd := w.command(t.Context(), "-", w.args...)
		cmd.Stdin = w.archive(form == "a file")
		b := finish(cmd)
		w.reg.setFault(nil)
		if b.err != nil || b.digest != want || !strings.Contains(b.log, "building again") {
			t.Errorf("%s: %s, want %s: %v\n%s", form, b.digest, want, b.err, b.log)
		}
	}
}

// archive returns the context as a tar.
func (w *world) archive(isFile bool) io.Reader {
	w.t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	if err := errors.Join(tw.AddFS(os.DirFS(w.dir)), tw.Close()); err != nil {
		w.t.Fatal(err)
	}
	if !isFile {
		return &b
	}
	path := filepath.Join(w.t.TempDir(), "context.tar")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		w.t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = f.Close() })
	return f
}
