// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"encoding/json"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
)

// FuzzDockerConfig reads configs, which people write by hand.
func FuzzDockerConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"auth":"YTpi"}},"credsStore":"x","credHelpers":{"a":"b"}}`))
	f.Add([]byte(`{"auths":{"":{"auth":"="},"/":{"username":"x"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseDockerConfig(b, "/c.json")
		if err != nil {
			return
		}
		repo, err := name.NewRepository("r.example.com/team/app")
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(b) {
			t.Error("accepted what is not JSON")
		}
		_, _ = d.Find(t.Context(), repo)
	})
}
