// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package chaos

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"testing"
	"time"
)

// slowly lets 4 MB pass in a second.
type slowly struct {
	io.Reader
	io.Closer
}

func (s slowly) Read(p []byte) (int, error) {
	const piece = 400_000
	n, err := s.Reader.Read(p[:min(len(p), piece)])
	time.Sleep(time.Second * time.Duration(n) / (10 * piece))
	return n, err
}

// TestTransfersShown pushes and pulls a layer slowly: the log has few lines about
// it, each with how far it is.
func TestTransfersShown(t *testing.T) {
	upstream := startSimple(t)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: upstream})
	proxy.ModifyResponse = func(r *http.Response) error {
		r.Body = slowly{r.Body, r.Body}
		return nil
	}
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		r.Body = slowly{r.Body, r.Body}
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(front.Close)
	d := &day{hako: buildHako(t), upstream: upstream, dir: t.TempDir()}
	d.writeRandom(t, "f", 20<<20)
	d.write(t, "Dockerfile", []byte("FROM scratch\nCOPY f /\n"))
	d.write(t, "on", []byte("ARG BASE\nFROM $BASE AS base\nFROM scratch\nCOPY --from=base f /again\n"))
	repo := front.Listener.Addr().String() + "/slow/app"
	for _, tt := range []struct {
		args  []string
		lines string
	}{
		{[]string{"-f", "Dockerfile", "--push", "-t", repo + ":1"}, `send layers to ` + regexp.QuoteMeta(repo)},
		{[]string{"-f", "on", "--no-push", "--build-arg=BASE=" + repo + ":1", "-o", "type=local,dest=" + t.TempDir()}, `fetch layers of ` + regexp.QuoteMeta(repo)},
	} {
		text := d.progress(t, tt.args...)
		done := regexp.MustCompile(`(?m)^#\d+ sha256:[0-9a-f]{64} 2\d\.\d+MB / 2\d\.\d+MB \d+\.\ds done$`)
		if !regexp.MustCompile(`(?m)^#\d+ \[internal\] `+tt.lines+`$`).MatchString(text) || !done.MatchString(text) {
			t.Errorf("%q: there is no line %s, or none of a blob:\n%s", tt.args, tt.lines, text)
		}
		if n := len(regexp.MustCompile(`(?m)^#\d+ sha256:`).FindAllString(text, -1)); n > 6 {
			t.Errorf("%q: %d lines about blobs, want a handful at most:\n%s", tt.args, n, text)
		}
	}
}

// progress runs a build and returns what it prints on standard error.
func (d *day) progress(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), d.hako, append(append([]string{"build", "--progress=plain", "--work-dir=" + t.TempDir()}, args...), ".")...)
	cmd.Dir, cmd.Env = d.dir, append(os.Environ(), "HOME="+d.dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	return stderr.String()
}
