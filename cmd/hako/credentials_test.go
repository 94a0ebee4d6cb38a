// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"
)

// startClouds gives a script the metadata server of Google ($GCE) and the API of
// ECR ($ECR), which knows the access key AKIASCRIPT. They are there for scripts
// that name them in GCE_METADATA_HOST and AWS_ENDPOINT_URL_ECR.
func startClouds(env *testscript.Env) {
	gce := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		fmt.Fprint(w, `{"access_token":"ya29.planted","expires_in":3600}`)
	}))
	env.Defer(gce.Close)
	env.Setenv("GCE", strings.TrimPrefix(gce.URL, "http://"))
	ecr := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Authorization"), "Credential=AKIASCRIPT/") {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"__type":"UnrecognizedClientException","message":"The security token included in the request is invalid."}`)
			return
		}
		fmt.Fprint(w, `{"authorizationData":[{"authorizationToken":"QVdTOnBsYW50ZWQtZWNyLXBhc3N3b3Jk","expiresAt":4102444800}]}`)
	}))
	env.Defer(ecr.Close)
	env.Setenv("ECR", ecr.URL)
	// A registry, by whatever name it is asked as a proxy for plain HTTP, that
	// refuses everybody and repeats in its message what they said.
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="echo"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"no right for %s with %s, %s"}]}`, user, password, r.Header.Get("Authorization"))
	}))
	env.Defer(echo.Close)
	env.Setenv("ECHO", echo.URL)
	expiring := httptest.NewServer(&expiringECR{registry: registry.New(registry.Logger(log.New(io.Discard, "", 0)))})
	env.Defer(expiring.Close)
	env.Setenv("EXPIRING", expiring.URL)
}

// expiringECR is ECR's API and, as a proxy for plain HTTP, its registry. Each
// password is good for three requests.
type expiringECR struct {
	registry http.Handler
	mu       sync.Mutex
	n, left  int
	given    int
}

// ServeHTTP implements http.Handler.
func (e *expiringECR) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case r.Header.Get("X-Amz-Target") != "":
		e.given++
		token := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "AWS:pw-%d", e.n))
		fmt.Fprintf(w, `{"authorizationData":[{"authorizationToken":%q,"expiresAt":4102444800}]}`, token)
		return
	case r.URL.Path == "/given":
		fmt.Fprintln(w, e.given)
		return
	}
	if _, password, _ := r.BasicAuth(); password != fmt.Sprint("pw-", e.n) {
		w.Header().Set("WWW-Authenticate", `Basic realm="ecr"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if e.left--; e.left < 0 {
		e.n, e.left = e.n+1, 3
	}
	e.registry.ServeHTTP(w, r)
}
