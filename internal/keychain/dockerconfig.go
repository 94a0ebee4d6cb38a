// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// ErrNoHelper is what a Helper returns when there is no such program.
var ErrNoHelper = errors.New("no such program")

// A Helper runs the credential helper docker-credential-<name> for a server.
// The user "<token>" marks the secret as an identity token.
type Helper func(ctx context.Context, name, server string) (user, secret string, err error)

// A ConfigError is a fault in what the user set up for credentials.
type ConfigError struct {
	Err    error
	Remedy string
}

// Error implements error.
func (e *ConfigError) Error() string { return e.Err.Error() }

// Unwrap returns the fault.
func (e *ConfigError) Unwrap() error { return e.Err }

// Explain tells what to do.
func (e *ConfigError) Explain() string { return " try     " + e.Remedy }

// A DockerConfig is what a docker config.json, or podman's auth.json, has. It is
// safe for concurrent use once Helper is set.
type DockerConfig struct {
	// Helper runs credential helpers; nil means that they cannot be run here.
	Helper Helper
	// BuiltIn returns what stands in for a helper program that is not there,
	// nil for nothing; nil stands for none.
	BuiltIn func(name string) Source

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
		return nil, parseError(b, source, err)
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

// parseError says where a file is broken. The cause may quote what is in it;
// position and type do not.
func parseError(b []byte, source string, err error) error {
	e := &ConfigError{Remedy: `write {"auths":{"HOST":{"auth":"base64 of user:password"}}}, or let hako login HOST write it`}
	var syn *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case len(strings.TrimSpace(string(b))) == 0:
		e.Err = fmt.Errorf("read %s: it is empty", source)
	case errors.As(err, &syn):
		line := 1 + strings.Count(string(b[:min(int(syn.Offset), len(b))]), "\n")
		e.Err = fmt.Errorf("read %s: not valid JSON at line %d, byte %d", source, line, syn.Offset)
		if strings.HasPrefix(strings.TrimSpace(string(b)), "$") {
			e.Remedy = "this is the name of a variable, not its value: use double quotes in the shell, or another form of the CI's variable"
		}
	case errors.As(err, &typ):
		e.Err = fmt.Errorf("read %s: field %q has the wrong type", source, typ.Field)
	default:
		e.Err = fmt.Errorf("read %s: not valid JSON", source)
	}
	return e
}

// Helpers names the helper programs of the config.
func (d *DockerConfig) Helpers() []string {
	set := map[string]bool{}
	for _, h := range d.helpers {
		set[h] = true
	}
	set[d.store] = true
	delete(set, "")
	return slices.Sorted(maps.Keys(set))
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
		e.err = &ConfigError{
			Err:    fmt.Errorf("read %s: entry %q: auth is not base64 of user:password", source, key),
			Remedy: "make it with: printf %s user:password | base64 -w0",
		}
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

// Name implements Source.
func (d *DockerConfig) Name() string { return d.source }

// Find implements Source. A helper configured for the host comes first, then an
// entry with a secret, then the helper for all. If that last one cannot be
// run, there are no credentials, and the Account tells so.
func (d *DockerConfig) Find(ctx context.Context, r authn.Resource) (*Credential, error) {
	host := strings.ToLower(r.RegistryStr())
	server := host
	if host == name.DefaultRegistry {
		server = authn.DefaultAuthKey
	}
	if h := d.helpers[host]; h != "" {
		c, err := d.help(ctx, r, h, server)
		if errors.Is(err, ErrNoHelper) {
			return nil, &ConfigError{
				Err:    fmt.Errorf("%s names the credential helper docker-credential-%s for %s: %w", d.source, h, host, err),
				Remedy: fmt.Sprintf("put docker-credential-%s into a directory of PATH, or take %q out of credHelpers", h, host),
			}
		}
		return c, err
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
		c, err := d.help(ctx, r, d.store, server)
		if errors.Is(err, ErrNoHelper) {
			// Such files come along from a desk where the helper is.
			return none(d.source, fmt.Sprintf("the credential helper docker-credential-%s of %s cannot be run: %v", d.store, d.source, err)), nil
		}
		return c, err
	}
	return none(d.source, ""), nil
}

func (d *DockerConfig) help(ctx context.Context, r authn.Resource, helper, server string) (*Credential, error) {
	user, secret, err := "", "", ErrNoHelper
	if d.Helper != nil {
		user, secret, err = d.Helper(ctx, helper, server)
	}
	if errors.Is(err, ErrNoHelper) && d.BuiltIn != nil {
		if s := d.BuiltIn(helper); s != nil {
			return s.Find(ctx, r)
		}
	}
	source := fmt.Sprintf("docker-credential-%s (%s)", helper, d.source)
	if errors.Is(err, ErrNoCredentials) {
		return none(source, fmt.Sprintf("docker-credential-%s has no credentials for %s", helper, server)), nil
	}
	if errors.Is(err, ErrNoHelper) {
		return nil, err
	}
	if err != nil {
		return nil, &ConfigError{
			Err:    fmt.Errorf("run docker-credential-%s for %s: %w", helper, server, err),
			Remedy: fmt.Sprintf("try it by hand: echo %s | docker-credential-%s get; it is named in %s", server, helper, d.source),
		}
	}
	c := &Credential{
		cfg:     authn.AuthConfig{Username: user, Password: secret},
		account: Account{Username: user, Source: source, Entry: d.helperEntry(r)},
	}
	if user == tokenUser {
		c.cfg = authn.AuthConfig{Username: user, IdentityToken: secret}
	}
	return c, nil
}

// helperEntry returns the entry of credHelpers that leads to the helper, "" for
// the helper for all.
func (d *DockerConfig) helperEntry(r authn.Resource) string {
	host := strings.ToLower(r.RegistryStr())
	if d.helpers[host] == "" {
		return ""
	}
	return host
}
