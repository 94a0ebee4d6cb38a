// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	googleRepo  = "europe-docker.pkg.dev/project/repo/app"
	googleToken = "oauth2.googleapis.com"
	googleSTS   = "sts.googleapis.com"
	googleIAM   = "iamcredentials.googleapis.com"
)

// serviceAccount returns a key file and the stand-in that knows the key.
func serviceAccount(t *testing.T, key *rsa.PrivateKey) (file string, h http.HandlerFunc) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(object{
		"type": "service_account", "client_email": "ci@project.iam.gserviceaccount.com", "private_key_id": "1", "token_uri": "https://" + googleToken + "/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	return string(b), func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		form, _ := url.ParseQuery(string(body))
		parts := strings.Split(form.Get("assertion"), ".")
		if form.Get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" || len(parts) != 3 {
			answerJSON(rw, 400, object{"error": "unsupported_grant_type"})
			return
		}
		sig, _ := base64.RawURLEncoding.DecodeString(parts[2])
		sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
		if rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], sig) != nil {
			answerJSON(rw, 400, object{"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
			return
		}
		claims, _ := base64.RawURLEncoding.DecodeString(parts[1])
		if !strings.Contains(string(claims), googleScope) || !strings.Contains(string(claims), "ci@project") {
			answerJSON(rw, 400, object{"error": "invalid_scope"})
			return
		}
		n++
		answerJSON(rw, 200, object{"access_token": fmt.Sprintf("ya29.%d", n), "expires_in": 3600, "token_type": "Bearer"})
	}
}

// stsOfGoogle exchanges a subject's token, and iamOfGoogle what it gave for the
// token of a service account.
func stsOfGoogle(subject string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		form, _ := url.ParseQuery(string(body))
		if form.Get("subject_token") != subject || form.Get("audience") != "//iam/pool" {
			answerJSON(rw, 400, object{"error": "invalid_grant", "error_description": "ID Token issued at 1 is stale to sign-in."})
			return
		}
		answerJSON(rw, 200, object{"access_token": "federated", "issued_token_type": "x", "token_type": "Bearer", "expires_in": 3600})
	}
}

func iamOfGoogle(rw http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer federated" {
		answerJSON(rw, 403, object{"error": object{"code": 403, "message": "denied"}})
		return
	}
	answerJSON(rw, 200, object{"accessToken": "ya29.impersonated", "expireTime": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)})
}

func gceStandIn(rw http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Metadata-Flavor") != "Google" || r.URL.Path != "/computeMetadata/v1/instance/service-accounts/default/token" {
		rw.WriteHeader(403)
		return
	}
	rw.Header().Set("Metadata-Flavor", "Google")
	answerJSON(rw, 200, object{"access_token": "ya29.node", "expires_in": 3600, "token_type": "Bearer"})
}

func TestGoogle(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good, _ := serviceAccount(t, key)
	wrong, _ := serviceAccount(t, other)
	federation := func(source string) string {
		return `{"type":"external_account","audience":"//iam/pool","subject_token_type":"urn:ietf:params:oauth:token-type:jwt","token_url":"https://sts.googleapis.com/v1/token",` +
			`"service_account_impersonation_url":"https://iamcredentials.googleapis.com/v1/x:generateAccessToken","credential_source":` + source + `}`
	}
	const env = "GOOGLE_APPLICATION_CREDENTIALS"
	const failed = "error: sign in to europe-docker.pkg.dev with Google: "
	tests := []struct {
		name  string
		key   string            // what GOOGLE_APPLICATION_CREDENTIALS has
		files map[string]string // besides
		meta  http.HandlerFunc
		repo  string
		want  string
		asked []string
	}{
		{name: "key", key: good, want: "oauth2accesstoken:ya29.1", asked: []string{googleToken}},
		{name: "key, old registry", key: good, repo: "eu.gcr.io/project/app", want: "oauth2accesstoken:ya29.1", asked: []string{googleToken}},
		{name: "metadata", meta: gceStandIn, want: "oauth2accesstoken:ya29.node", asked: []string{machine}},
		{name: "federation, file", key: federation(`{"file":"/var/run/token"}`), files: map[string]string{"/var/run/token": "jwt\n"}, want: "oauth2accesstoken:ya29.impersonated", asked: []string{googleIAM, googleSTS}},
		{name: "federation, JSON", key: federation(`{"file":"/var/run/token","format":{"type":"json","subject_token_field_name":"tok"}}`), files: map[string]string{"/var/run/token": `{"tok":"jwt"}`}, want: "oauth2accesstoken:ya29.impersonated", asked: []string{googleIAM, googleSTS}},
		{name: "federation, URL", key: federation(`{"url":"http://actions.example.com/token"}`), want: "oauth2accesstoken:ya29.impersonated", asked: []string{"actions.example.com", googleIAM, googleSTS}},
		{name: "a user's", key: `{"type":"authorized_user","client_id":"c","client_secret":"s","refresh_token":"r"}`, want: "oauth2accesstoken:ya29.user", asked: []string{googleToken}},

		{name: "no metadata server", want: "[GOOGLE_APPLICATION_CREDENTIALS is not set, and there is no metadata server's account (ask the metadata server: no answer within 1s)]", asked: []string{machine}},
		{name: "somebody else's metadata server", meta: imdsStandIn, want: "[GOOGLE_APPLICATION_CREDENTIALS is not set, and there is no metadata server's account (ask the metadata server: what answers is not Google's)]", asked: []string{machine}},
		{name: "wrong key", key: wrong, want: failed + "with GOOGLE_APPLICATION_CREDENTIALS=/key.json: Google's token service answered 400 invalid_grant: Invalid JWT Signature.", asked: []string{googleToken}},
		{name: "no key", key: "{}", want: failed + "read GOOGLE_APPLICATION_CREDENTIALS=/key.json: it is no file of credentials of Google's"},
		{name: "broken key", key: `{"type":"service_account","private_key":"hunter2"}`, want: failed + "with GOOGLE_APPLICATION_CREDENTIALS=/key.json: they cannot be used"},
		{name: "empty key", key: "\n", want: failed + "read GOOGLE_APPLICATION_CREDENTIALS=/key.json: it is empty"},
		{name: "expired token", key: federation(`{"file":"/var/run/token"}`), files: map[string]string{"/var/run/token": "old"}, want: failed + "with GOOGLE_APPLICATION_CREDENTIALS=/key.json: Google's token service answered 400 invalid_grant: ID Token issued at 1 is stale to sign-in.", asked: []string{googleSTS}},
		{name: "no token", key: federation(`{"file":"/var/run/token"}`), want: failed + "read credential_source.file=/var/run/token: file does not exist"},
		{name: "program", key: federation(`{"executable":{"command":"/bin/id"}}`), want: failed + "read GOOGLE_APPLICATION_CREDENTIALS=/key.json: its credential_source is a program or a certificate, which hako does not use"},

		{name: "look-alike", key: good, repo: "europe-docker.pkg.dev.evil.net/project/app", want: "[]"},
		{name: "look-alike of old", key: good, repo: "evilgcr.io/project/app", want: "[]"},
		{name: "elsewhere", key: good, repo: "r.example.com/project/app", want: "[]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			_, token := serviceAccount(t, key)
			w.hosts[googleToken] = func(rw http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(tt.name, "a user") {
					answerJSON(rw, 200, object{"access_token": "ya29.user", "expires_in": 3600})
					return
				}
				token(rw, r)
			}
			w.hosts[googleSTS], w.hosts[googleIAM] = stsOfGoogle("jwt"), iamOfGoogle
			w.hosts["actions.example.com"] = func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "jwt") }
			if tt.meta != nil {
				w.hosts[machine] = tt.meta
			}
			for p, s := range tt.files {
				w.files[p] = s
			}
			if tt.key != "" {
				w.env[env], w.files["/key.json"] = "/key.json", tt.key
			}
			repo := tt.repo
			if repo == "" {
				repo = googleRepo
			}
			if got := find(t, NewGoogle(w.cloud()), repo); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if d := cmp.Diff(tt.asked, w.reset()); d != "" {
				t.Error("hosts that were asked (-want +got): ", d)
			}
		})
	}
}

// gcloud's own file is looked for where gcloud puts it, and the access token is
// renewed before it ends.
func TestGoogleRenewed(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	file, token := serviceAccount(t, key)
	w.files[filepath.Join(w.env["HOME"], ".config", "gcloud", "application_default_credentials.json")] = file
	w.hosts[googleToken] = token
	s := NewGoogle(w.cloud())
	for i, step := range []struct {
		pass time.Duration
		want string
	}{{0, "ya29.1"}, {54 * time.Minute, "ya29.1"}, {2 * time.Minute, "ya29.2"}} {
		w.pass(step.pass)
		if got := find(t, s, googleRepo); got != "oauth2accesstoken:"+step.want {
			t.Errorf("%d: %s", i, got)
		}
	}
}

// Many ask at once, for several registries: the cloud is asked once.
func TestGoogleAskedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.hosts[machine] = gceStandIn
	c := NewChain([]Source{NewGoogle(w.cloud())}, []string{"x (unset)"}, nil)
	var group sync.WaitGroup
	for _, repo := range []string{googleRepo, "gcr.io/p/app", "eu.gcr.io/p/app", googleRepo} {
		r := repository(t, repo)
		group.Go(func() {
			a, err := c.ResolveContext(t.Context(), r)
			if err != nil || a.(*Credential).Account().NotUsed != "x (unset)" || a.(*Credential).cfg.Password != "ya29.node" {
				t.Errorf("%v, %v", a, err)
			}
		})
	}
	group.Wait()
	if n := len(w.asked); n != 1 {
		t.Errorf("asked %d times", n)
	}
}
