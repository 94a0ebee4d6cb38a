// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// ErrNoCredentials is what a Helper returns when it knows of none.
var ErrNoCredentials = errors.New("no credentials")

// A Helper runs the credential helper docker-credential-<name> for a server.
// The user "<token>" marks the secret as an identity token.
type Helper func(ctx context.Context, name, server string) (user, secret string, err error)

// An Account tells where credentials came from; it holds no secret.
type Account struct {
	Username string
	Source   string // such as /kaniko/.docker/config.json
	Entry    string // the entry of the source, as spelled there
	Note     string // why there is none, if there is something to say
}

// String returns a text such as
//
//	signed in as ci-bot, from /kaniko/.docker/config.json, entry "registry.example.com"
func (a Account) String() string {
	if a == (Account{}) {
		return "not signed in"
	}
	if a.Entry == "" && a.Username == "" {
		if a.Note != "" {
			return "not signed in: " + a.Note
		}
		return fmt.Sprintf("not signed in: %s has no entry for the registry", a.Source)
	}
	s := "signed in"
	if a.Username != "" && a.Username != "<token>" {
		s += " as " + a.Username
	}
	if a.Source != "" {
		s += ", from " + a.Source
	}
	if a.Entry != "" {
		s += fmt.Sprintf(", entry %q", a.Entry)
	}
	return s
}

// A Credential is an authenticator that knows its Account.
type Credential struct {
	cfg     authn.AuthConfig
	account Account
}

// Authorization implements authn.Authenticator.
func (c *Credential) Authorization() (*authn.AuthConfig, error) {
	cfg := c.cfg
	return &cfg, nil
}

// Account returns where the credential came from.
func (c *Credential) Account() Account { return c.account }

// A DockerConfig is the keychain of a docker config.json. It is safe for
// concurrent use once Helper is set.
type DockerConfig struct {
	// Helper runs credential helpers; nil means that they cannot be run here.
	Helper Helper

	source  string
	entries map[string]dockerEntry // by normalized key
	helpers map[string]string      // host → helper, normalized
	store   string                 // the helper for all other hosts
}

type dockerEntry struct {
	key string // as spelled
	cfg authn.AuthConfig
	err error // reported when the entry is needed
}

type dockerAuth struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// ParseDockerConfig reads a docker config.json; source is its path, for
// messages. Entries of auths may be hosts, hosts with a path (the longest that
// leads to the repository is taken) or the URLs of old.
func ParseDockerConfig(b []byte, source string) (*DockerConfig, error) {
	var doc struct {
		Auths       map[string]dockerAuth `json:"auths"`
		CredsStore  string                `json:"credsStore"`
		CredHelpers map[string]string     `json:"credHelpers"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		// The cause may quote what is in the file; position and type do not.
		var syn *json.SyntaxError
		var typ *json.UnmarshalTypeError
		switch {
		case errors.As(err, &syn):
			return nil, fmt.Errorf("read %s: not valid JSON at byte %d", source, syn.Offset)
		case errors.As(err, &typ):
			return nil, fmt.Errorf("read %s: field %q has the wrong type", source, typ.Field)
		}
		return nil, fmt.Errorf("read %s: not valid JSON", source)
	}
	d := &DockerConfig{source: source, entries: map[string]dockerEntry{}, helpers: map[string]string{}, store: doc.CredsStore}
	// The spelling nearest to the plain host wins where two mean the same, as
	// docker prefers the exact entry; the URL is Docker Hub's exact one.
	keys := make([]string, 0, len(doc.Auths))
	for k := range doc.Auths {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int {
		if a == authn.DefaultAuthKey || b == authn.DefaultAuthKey {
			if a == authn.DefaultAuthKey {
				return -1
			}
			return 1
		}
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	for _, k := range keys {
		e := newDockerEntry(k, doc.Auths[k], source)
		if e.err == nil && e.cfg == (authn.AuthConfig{}) {
			continue // docker leaves these when a helper has the secret
		}
		n := normalizeKey(k)
		if _, ok := d.entries[n]; !ok {
			d.entries[n] = e
		}
	}
	for k, h := range doc.CredHelpers {
		d.helpers[normalizeKey(k)] = h
	}
	return d, nil
}

func newDockerEntry(key string, a dockerAuth, source string) dockerEntry {
	e := dockerEntry{key: key, cfg: authn.AuthConfig{
		Username: a.Username, Password: a.Password,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}}
	if a.Auth == "" {
		return e
	}
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(a.Auth), "="))
	user, pass, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok {
		e.err = fmt.Errorf("%s, entry %q: auth is not base64 of user:password", source, key)
		return e
	}
	e.cfg.Username, e.cfg.Password = user, strings.Trim(pass, "\x00")
	return e
}

// normalizeKey returns "host" or "host/path". A URL stands for its host; so
// do the API versions that old clients wrote.
func normalizeKey(k string) string {
	rest, isURL := k, false
	for _, scheme := range []string{"https://", "http://"} {
		if r, ok := strings.CutPrefix(k, scheme); ok {
			rest, isURL = r, true
		}
	}
	host, path, _ := strings.Cut(rest, "/")
	host = strings.ToLower(host)
	switch host {
	case "docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		host = name.DefaultRegistry
	}
	path = strings.Trim(path, "/")
	if isURL || path == "v1" || path == "v2" || path == "" {
		return host
	}
	return host + "/" + path
}

// Resolve implements authn.Keychain.
func (d *DockerConfig) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return d.ResolveContext(context.Background(), r)
}

// ResolveContext implements authn.ContextKeychain. A helper configured for the
// host comes first, then an entry with a secret, then the helper for all. If
// that last one cannot be run, the registry is asked without credentials, and
// the Account tells so.
func (d *DockerConfig) ResolveContext(ctx context.Context, r authn.Resource) (authn.Authenticator, error) {
	host := strings.ToLower(r.RegistryStr())
	server := host
	if host == name.DefaultRegistry {
		server = authn.DefaultAuthKey
	}
	if h := d.helpers[host]; h != "" {
		if d.Helper == nil {
			return nil, fmt.Errorf("%s names the credential helper docker-credential-%s for %s, which cannot be run here", d.source, h, host)
		}
		return d.help(ctx, h, server, host)
	}
	for key := normalizeKey(r.String()); ; {
		if e, ok := d.entries[key]; ok {
			if e.err != nil {
				return nil, e.err
			}
			return &Credential{cfg: e.cfg, account: Account{Username: e.cfg.Username, Source: d.source, Entry: e.key}}, nil
		}
		i := strings.LastIndexByte(key, '/')
		if i < 0 {
			break
		}
		key = key[:i]
	}
	if d.store != "" {
		if d.Helper == nil {
			note := fmt.Sprintf("the credential helper docker-credential-%s of %s cannot be run here", d.store, d.source)
			return &Credential{account: Account{Source: d.source, Note: note}}, nil
		}
		return d.help(ctx, d.store, server, "")
	}
	return &Credential{account: Account{Source: d.source}}, nil
}

func (d *DockerConfig) help(ctx context.Context, helper, server, entry string) (authn.Authenticator, error) {
	user, secret, err := d.Helper(ctx, helper, server)
	source := fmt.Sprintf("docker-credential-%s (%s)", helper, d.source)
	if errors.Is(err, ErrNoCredentials) {
		note := fmt.Sprintf("docker-credential-%s has no credentials for %s", helper, server)
		return &Credential{account: Account{Source: source, Note: note}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("run docker-credential-%s for %s: %w", helper, server, err)
	}
	c := &Credential{
		cfg:     authn.AuthConfig{Username: user, Password: secret},
		account: Account{Username: user, Source: source, Entry: entry},
	}
	if user == "<token>" {
		c.cfg = authn.AuthConfig{Username: user, IdentityToken: secret}
	}
	return c, nil
}
