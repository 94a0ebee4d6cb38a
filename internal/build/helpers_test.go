// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// resolve returns "user:password" or the account's text, for a config and
// helper programs, which are shell scripts by their names.
func resolve(t *testing.T, config, repo string, programs map[string]string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	for n, script := range programs {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	env := Env{"DOCKER_AUTH_CONFIG": config, "PATH": dir, "COUNT": filepath.Join(dir, "count")}
	k := newKeychainOpener(&Options{Env: env}, &network{}, nil)
	k.helpers.timeout = 2 * time.Second
	t.Cleanup(func() { k.close() })
	if err := k.authConfig(); err != nil {
		t.Fatal(err)
	}
	r, err := name.NewRepository(repo)
	if err != nil {
		t.Fatal(err)
	}
	c, err := k.sources[0].Find(t.Context(), r)
	if err != nil {
		return "", err
	}
	a, err := c.Authorization()
	if err != nil || *a == (authn.AuthConfig{}) {
		return c.Account().String(), err
	}
	return a.Username + ":" + a.Password + a.IdentityToken, nil
}

func TestHelperPrograms(t *testing.T) {
	t.Parallel()
	const config = `{"credHelpers":{"r.example.com":"x"},"credsStore":"all"}`
	tests := []struct {
		name, script, want, err string
	}{
		{"password", `read s; echo "{\"ServerURL\":\"$s\",\"Username\":\"u\",\"Secret\":\"for-$s\"}"`, "u:for-r.example.com", ""},
		{"token", `echo '{"Username":"<token>","Secret":"tok"}'`, "<token>:tok", ""},
		{"none", "echo credentials not found in native keychain; exit 1", "not signed in: docker-credential-x has no credentials for r.example.com", ""},
		{"fails", "echo the vault is sealed; exit 3", "", "run docker-credential-x for r.example.com: exit status 3: the vault is sealed"},
		{"fails with a secret", `echo '{"Secret":"hunter2"}'; exit 3`, "", "run docker-credential-x for r.example.com: exit status 3"},
		{"no JSON", "echo hunter2", "", "run docker-credential-x for r.example.com: it printed no JSON"},
		{"hangs", "exec /bin/sleep 60", "", "run docker-credential-x for r.example.com: no answer within 2s"},
		// In place, the end of a RUN ends a helper too.
		{"killed", `echo >> "$COUNT"; if [ $(/usr/bin/wc -l < "$COUNT") -lt 3 ]; then kill -9 $$; fi; echo '{"Username":"u","Secret":"third"}'`, "u:third", ""},
		{"always killed", "kill -9 $$", "", "run docker-credential-x for r.example.com: signal: killed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := resolve(t, config, "r.example.com/a/b", map[string]string{"docker-credential-x": tt.script})
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("err = %v", err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("%q, %v; want %q", got, err, tt.want)
			}
		})
	}
}

func TestHelperMissing(t *testing.T) {
	t.Parallel()
	const config = `{"credHelpers":{"r.example.com":"x"},"credsStore":"../../bin/sh"}`
	_, err := resolve(t, config, "r.example.com/a/b", nil)
	if err == nil || !strings.Contains(err.Error(), "DOCKER_AUTH_CONFIG names the credential helper docker-credential-x for r.example.com: no such program") {
		t.Errorf("err = %v", err)
	}
	got, err := resolve(t, config, "other.example.com/a/b", nil)
	if want := "not signed in: the credential helper docker-credential-../../bin/sh of DOCKER_AUTH_CONFIG cannot be run: no such program"; err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
}
