// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"encoding/json"
	"strings"
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

// FuzzAddAuth adds to configs what is found again, whatever else they hold.
func FuzzAddAuth(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://r.example.com/v1/":{"auth":"YTpi"}},"credsStore":"x","HttpHeaders":{"a":1}}`), "r.example.com", "u", "p")
	f.Add([]byte(`null`), "docker.io", "u", "p:q")
	f.Add([]byte(`{"auths":null}`), "r.example.com:5000/team", "", "")
	f.Fuzz(func(t *testing.T, old []byte, host, user, password string) {
		repo, err := name.NewRepository(host + "/team/app")
		if err != nil || len(host) == 0 || password == "" || strings.Trim(password, "\x00") != password || user == "" {
			return
		}
		b, note, err := AddAuth(old, "/c.json", host, user, password)
		if err != nil || note != "" {
			return
		}
		d, err := ParseDockerConfig(b, "/c.json")
		if err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		c, err := d.Find(t.Context(), repo)
		if err != nil || c.isEmpty() && repo.RegistryStr() == normalizeKey(host) {
			t.Errorf("%s: %v, %v", b, c, err)
		}
	})
}
