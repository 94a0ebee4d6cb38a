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
		fmt.Fprint(w, `{"access_token":"ya29.script","expires_in":3600}`)
	}))
	env.Defer(gce.Close)
	env.Setenv("GCE", strings.TrimPrefix(gce.URL, "http://"))
	ecr := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Authorization"), "Credential=AKIASCRIPT/") {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"__type":"UnrecognizedClientException","message":"The security token included in the request is invalid."}`)
			return
		}
		fmt.Fprint(w, `{"authorizationData":[{"authorizationToken":"QVdTOmVjci1wYXNzd29yZA==","expiresAt":4102444800}]}`)
	}))
	env.Defer(ecr.Close)
	env.Setenv("ECR", ecr.URL)
}
