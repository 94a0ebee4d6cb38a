// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
)

func TestDockerConfig(t *testing.T) {
	auth := func(u string) string { return base64.StdEncoding.EncodeToString([]byte(u + ":pw-" + u)) }
	doc := fmt.Sprintf(`{
	  "auths": {
	    "https://index.docker.io/v1/": {"auth": %q},
	    "docker.io": {"auth": %q},
	    "r.example.com": {"auth": %q},
	    "r.example.com/team": {"auth": %q},
	    "https://old.example.com/v2/": {"username": "plain", "password": "pw"},
	    "id.example.com": {"auth": %q, "identitytoken": "idtok"},
	    "empty.example.com": {},
	    "broken.example.com": {"auth": "!!secret!!"}
	  },
	  "credHelpers": {"gcr.io": "gcr"},
	  "credsStore": "vault"
	}`, auth("hub"), auth("other"), auth("host"), auth("team"), auth("id"))
	help := func(_ context.Context, helper, server string) (string, string, error) {
		switch helper + " " + server {
		case "gcr gcr.io":
			return "<token>", "refresh", nil
		case "vault known.example.com":
			return "v", "pw", nil
		case "vault failing.example.com":
			return "", "", errors.New("exit status 1")
		}
		return "", "", ErrNoCredentials
	}
	tests := []struct {
		repo, user, idtoken string
		account             string
		wantErr             string
		noHelper            bool
	}{
		{repo: "ubuntu", user: "hub", account: `signed in as hub, from /c.json, entry "https://index.docker.io/v1/"`},
		{repo: "r.example.com/x/y", user: "host", account: `signed in as host, from /c.json, entry "r.example.com"`},
		{repo: "r.example.com/team/app", user: "team", account: `signed in as team, from /c.json, entry "r.example.com/team"`},
		{repo: "r.example.com/teams/app", user: "host", account: `signed in as host, from /c.json, entry "r.example.com"`},
		{repo: "old.example.com/x/y", user: "plain", account: `signed in as plain, from /c.json, entry "https://old.example.com/v2/"`},
		{repo: "id.example.com/x/y", user: "id", idtoken: "idtok", account: `signed in as id, from /c.json, entry "id.example.com"`},
		{repo: "gcr.io/x/y", user: "<token>", idtoken: "refresh", account: `signed in, from docker-credential-gcr (/c.json), entry "gcr.io"`},
		{repo: "gcr.io/x/y", noHelper: true, wantErr: "docker-credential-gcr for gcr.io: no such program"},
		{repo: "known.example.com/x/y", user: "v", account: `signed in as v, from docker-credential-vault (/c.json)`},
		{repo: "unknown.example.com/x/y", account: `not signed in: docker-credential-vault has no credentials for unknown.example.com`},
		{repo: "failing.example.com/x/y", wantErr: "run docker-credential-vault for failing.example.com: exit status 1"},
		{repo: "empty.example.com/x/y", noHelper: true, account: `not signed in: the credential helper docker-credential-vault of /c.json cannot be run: no such program`},
		{repo: "broken.example.com/x/y", wantErr: `/c.json: entry "broken.example.com": auth is not base64 of user:password`},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.repo, tt.noHelper), func(t *testing.T) {
			d, err := ParseDockerConfig([]byte(doc), "/c.json")
			if err != nil {
				t.Fatal(err)
			}
			if !tt.noHelper {
				d.Helper = help
			}
			repo, err := name.NewRepository(tt.repo)
			if err != nil {
				t.Fatal(err)
			}
			a, err := d.Find(t.Context(), repo)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) || strings.Contains(err.Error(), "secret") {
					t.Fatalf("err = %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			cfg, _ := a.Authorization()
			if diff := cmp.Diff([]string{tt.user, tt.idtoken, tt.account}, []string{cfg.Username, cfg.IdentityToken, a.Account().String()}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDockerConfigBroken(t *testing.T) {
	for _, doc := range []string{``, `{"auths":`, `{"auths":{"h":{"auth":12345678}}}`, `{"auths":"hunter22"}`} {
		if _, err := ParseDockerConfig([]byte(doc), "/c.json"); err == nil || !strings.Contains(err.Error(), "/c.json") || strings.Contains(err.Error(), "hunter22") {
			t.Errorf("%s: %v", doc, err)
		}
	}
}
