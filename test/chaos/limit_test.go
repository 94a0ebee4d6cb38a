// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package chaos

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
)

// TestBodyLimit pushes to the reference registry through a proxy that takes no
// body of more than 1 MiB, nginx's default.
func TestBodyLimit(t *testing.T) {
	upstream := startDistribution(t)
	var refused, pieces atomic.Int32
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: upstream})
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 1<<20 || r.ContentLength < 0 {
			refused.Add(1)
			rw.Header().Set("Connection", "close")
			rw.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		if r.Method == http.MethodPatch {
			pieces.Add(1)
		}
		proxy.ServeHTTP(rw, r)
	}))
	t.Cleanup(front.Close)
	d := &day{hako: buildHako(t), upstream: upstream, dir: t.TempDir()}
	d.writeRandom(t, "f", 5<<20)
	d.write(t, "small", []byte("small\n"))
	d.write(t, "Dockerfile", []byte("FROM scratch\nCOPY f /\nCOPY small /\n"))
	ref := front.Listener.Addr().String() + "/limited/app:1"
	got := d.build(t, "Dockerfile", "", ref, nil)
	if want := d.build(t, "Dockerfile", "", upstream+"/limited/same:1", nil); got != want {
		t.Errorf("pushed %s, want %s", got, want)
	}
	d.validate(t, upstream+"/limited/app:1")
	if refused.Load() == 0 || refused.Load() > 2 || pieces.Load() < 5 {
		t.Errorf("%d requests were refused, %d pieces came", refused.Load(), pieces.Load())
	}
}
