// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

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
}
