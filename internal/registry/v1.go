// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/name"
)

// ErrV1 is a registry that speaks the first version of the protocol only.
var ErrV1 = errors.New("the registry speaks version 1 of docker's registry protocol only, which is not supported (docker dropped it in 2017)")

// errNoRegistry is a server that answers, but not as a registry does.
var errNoRegistry = errors.New("what answers there is no registry: it knows no /v2/")

// explainAbsentAPI finds out what a server is that has no /v2/.
func (a *access) explainAbsentAPI(ctx context.Context, reg name.Registry, err error) error {
	schemes := []string{"https"}
	if reg.Scheme() == "http" {
		schemes = []string{"http", "https"}
	}
	for _, scheme := range schemes {
		u := url.URL{Scheme: scheme, Host: reg.RegistryStr(), Path: "/v1/_ping"}
		req, rerr := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if rerr != nil {
			return err
		}
		resp, rerr := a.rt.RoundTrip(req)
		if rerr != nil {
			continue
		}
		isV1 := resp.StatusCode == http.StatusOK && resp.Header.Get("X-Docker-Registry-Version") != ""
		discard(resp)
		if isV1 {
			return permanentError{ErrV1}
		}
		return permanentError{errNoRegistry}
	}
	return err
}
