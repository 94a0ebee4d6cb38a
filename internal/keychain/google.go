// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"golang.org/x/oauth2/google/externalaccount"
)

const (
	googleScope = "https://www.googleapis.com/auth/cloud-platform"
	// googleUser is the name under which registries take an access token.
	googleUser = "oauth2accesstoken"
)

// isGoogleHost reports whether a registry is Container Registry or Artifact
// Registry.
func isGoogleHost(host string) bool {
	return host == "gcr.io" || strings.HasSuffix(host, ".gcr.io") || strings.HasSuffix(host, ".pkg.dev")
}

// NewGoogle returns the source for Google's registries. It finds credentials in
// the order of Google's libraries: the file that GOOGLE_APPLICATION_CREDENTIALS
// names (a key, a user's, or workload identity federation), gcloud's, the
// metadata server.
func NewGoogle(c Cloud) Source {
	g := &googleCloud{c: c, key: c.openEnv("GOOGLE_APPLICATION_CREDENTIALS")}
	if g.key == nil {
		dir := c.Env("CLOUDSDK_CONFIG")
		if dir == "" && c.Env("HOME") != "" {
			dir = filepath.Join(c.Env("HOME"), ".config", "gcloud")
		}
		if dir != "" {
			f := c.open("gcloud's file", filepath.Join(dir, "application_default_credentials.json"))
			if f.err == nil {
				g.key = f
			}
		}
	}
	g.openSubject()
	// A token is for all of Google, and so is that there is none.
	all := func(string) string { return "" }
	return &cloud{name: "Google", mine: isGoogleHost, fetch: g.fetch, scope: all, now: c.Now}
}

type googleCloud struct {
	c       Cloud
	key     *tokenFile // nil for none
	subject *tokenFile // that the key's credential_source names
}

// googleFile is what is looked at of a file with credentials.
type googleFile struct {
	Type                           string  `json:"type"`
	ClientEmail                    string  `json:"client_email"`
	Audience                       string  `json:"audience"`
	SubjectTokenType               string  `json:"subject_token_type"`
	TokenURL                       string  `json:"token_url"`
	TokenInfoURL                   string  `json:"token_info_url"`
	ServiceAccountImpersonationURL string  `json:"service_account_impersonation_url"`
	ServiceAccountImpersonation    lasting `json:"service_account_impersonation"`
	ClientID                       string  `json:"client_id"`
	ClientSecret                   string  `json:"client_secret"`
	WorkforcePoolUserProject       string  `json:"workforce_pool_user_project"`
	UniverseDomain                 string  `json:"universe_domain"`
	CredentialSource               struct {
		File        string          `json:"file"`
		Executable  json.RawMessage `json:"executable"`
		Certificate json.RawMessage `json:"certificate"`
		Format      struct {
			Type  string `json:"type"`
			Field string `json:"subject_token_field_name"`
		} `json:"format"`
	} `json:"credential_source"`
}

type lasting struct {
	Seconds int `json:"token_lifetime_seconds"`
}

// openSubject opens the token that workload identity federation exchanges.
func (g *googleCloud) openSubject() {
	if g.key == nil {
		return
	}
	b, err := g.key.bytes()
	var f googleFile
	if err == nil && json.Unmarshal(b, &f) == nil && f.CredentialSource.File != "" {
		g.subject = g.c.open("credential_source.file", f.CredentialSource.File)
	}
}

func (g *googleCloud) fetch(ctx context.Context, _ string) (*Credential, error) {
	if g.key == nil {
		return g.metadata(ctx)
	}
	b, err := g.key.bytes()
	if err != nil {
		return nil, err
	}
	var f googleFile
	if err := json.Unmarshal(b, &f); err != nil || f.Type == "" {
		return nil, &ConfigError{
			Err:    fmt.Errorf("read %s: it is no file of credentials of Google's", g.key.name),
			Remedy: "give the JSON key of a service account, or the configuration of workload identity federation",
		}
	}
	seen := &witness{next: transportOf(g.c.Client)}
	client := *g.c.Client
	client.Transport = seen
	src, err := g.tokenSource(context.WithValue(ctx, oauth2.HTTPClient, &client), &f, b)
	if err != nil {
		return nil, err
	}
	t, err := src.Token()
	if err != nil {
		return nil, g.refused(ctx, seen)
	}
	who := f.Type
	if f.ClientEmail != "" {
		who = f.ClientEmail
	}
	c := userPassword(fmt.Sprintf("Google, with %s (%s)", g.key.name, who), "", googleUser, t.AccessToken)
	c.expires = t.Expiry
	return c, nil
}

// tokenSource makes of a file what gets tokens. Files and programs that the
// library would open by their paths are opened here, or refused.
func (g *googleCloud) tokenSource(ctx context.Context, f *googleFile, b []byte) (oauth2.TokenSource, error) {
	broken := func(err error) error {
		return &ConfigError{fmt.Errorf("read %s: %s", g.key.name, oneLine(err.Error(), 120)), "make the file anew, with gcloud or in the console"}
	}
	cs := &f.CredentialSource
	switch {
	case f.Type == "external_account" && (cs.Executable != nil || cs.Certificate != nil):
		return nil, &ConfigError{
			Err:    fmt.Errorf("read %s: its credential_source is a program or a certificate, which hako does not use", g.key.name),
			Remedy: "use one with a file or a URL; or docker-credential-gcloud in credHelpers",
		}
	case f.Type == "external_account" && g.subject != nil:
		token, err := g.subjectToken(cs.Format.Type, cs.Format.Field)
		if err != nil {
			return nil, err
		}
		src, err := externalaccount.NewTokenSource(ctx, externalaccount.Config{
			Audience: f.Audience, SubjectTokenType: f.SubjectTokenType, TokenURL: f.TokenURL, TokenInfoURL: f.TokenInfoURL,
			ServiceAccountImpersonationURL:             f.ServiceAccountImpersonationURL,
			ServiceAccountImpersonationLifetimeSeconds: f.ServiceAccountImpersonation.Seconds,
			ClientID: f.ClientID, ClientSecret: f.ClientSecret, WorkforcePoolUserProject: f.WorkforcePoolUserProject, UniverseDomain: f.UniverseDomain,
			Scopes: []string{googleScope}, SubjectTokenSupplier: subject(token),
		})
		if err != nil {
			return nil, broken(err)
		}
		return src, nil
	}
	creds, err := google.CredentialsFromJSONWithType(ctx, b, google.CredentialsType(f.Type), googleScope)
	if err != nil {
		return nil, broken(err)
	}
	return creds.TokenSource, nil
}

// refused makes an error of a failed exchange. The library's own repeats what
// the service answered, whatever that is.
func (g *googleCloud) refused(ctx context.Context, seen *witness) error {
	const service = "Google's token service"
	text := "they cannot be used"
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("ask %s: %w", service, context.Cause(ctx))
	case seen.err != nil:
		return fmt.Errorf("ask %s: %w", service, seen.err)
	case seen.status != 0:
		text = newAnswerError(service, seen.status, seen.body).Error()
	}
	return &ConfigError{
		Err:    fmt.Errorf("with %s: %s", g.key.name, text),
		Remedy: "check that the key, or the federation's provider, still exists, and that this clock is right",
	}
}

// A witness remembers the last answer, or failure, that was no success.
type witness struct {
	next   http.RoundTripper
	status int
	body   []byte
	err    error
}

// RoundTrip implements http.RoundTripper.
func (w *witness) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := w.next.RoundTrip(r)
	w.status, w.body, w.err = 0, nil, err
	if err != nil || resp.StatusCode < 300 {
		return resp, err
	}
	w.status = resp.StatusCode
	w.body, w.err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	resp.Body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(w.body))
	return resp, w.err
}

func transportOf(c *http.Client) http.RoundTripper {
	if c.Transport != nil {
		return c.Transport
	}
	return http.DefaultTransport
}

// subjectToken returns the token to exchange, from a file that is renewed.
func (g *googleCloud) subjectToken(format, field string) (string, error) {
	b, err := g.subject.bytes()
	if err != nil || format != "json" {
		return strings.TrimSpace(string(b)), err
	}
	var doc map[string]any
	if json.Unmarshal(b, &doc) == nil {
		if t, ok := doc[field].(string); ok {
			return t, nil
		}
	}
	return "", &ConfigError{fmt.Errorf("read %s: it has no field %q", g.subject.name, field), "correct credential_source.format"}
}

// subject is a token to exchange.
type subject string

// SubjectToken implements externalaccount.SubjectTokenSupplier.
func (s subject) SubjectToken(context.Context, externalaccount.SupplierOptions) (string, error) {
	return string(s), nil
}

// metadata asks the metadata server for the token of the machine's, or the
// pod's, service account.
func (g *googleCloud) metadata(ctx context.Context) (*Credential, error) {
	const nowhere = "GOOGLE_APPLICATION_CREDENTIALS is not set"
	host := g.c.Env("GCE_METADATA_HOST")
	if host == "" {
		host = "169.254.169.254"
	}
	ctx, cancel := context.WithTimeoutCause(ctx, machineTimeout, fmt.Errorf("no answer within %v", machineTimeout))
	defer cancel()
	var t struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	err := exchange(ctx, googleOnly(g.c.Machine), "the metadata server", func() (*http.Request, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/computeMetadata/v1/instance/service-accounts/default/token", http.NoBody)
		if err == nil {
			r.Header.Set("Metadata-Flavor", "Google")
		}
		return r, err
	}, &t)
	if err == nil && t.AccessToken == "" {
		err = errors.New("the metadata server gave no token")
	}
	if err != nil {
		return none("Google", fmt.Sprintf("%s, and there is no metadata server's account (%v)", nowhere, err)), nil
	}
	c := userPassword("Google, with the metadata server's account", "", googleUser, t.AccessToken)
	c.expires = g.c.Now().Add(time.Duration(t.ExpiresIn) * time.Second)
	return c, nil
}

// googleOnly takes answers only from a server that says it is Google's metadata
// server: at that address others have their own.
func googleOnly(c *http.Client) *http.Client {
	own := *c
	next := transportOf(c)
	own.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		if err == nil && resp.Header.Get("Metadata-Flavor") != "Google" {
			resp.Body.Close()
			return nil, errors.New("what answers is not Google's")
		}
		return resp, err
	})
	return &own
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
