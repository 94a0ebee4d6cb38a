// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Getenv returns the value of an environment variable, "" if it is not set.
type Getenv func(name string) string

// variables are credentials that stand in the environment.
type variables struct {
	name string
	find func(host string) (*Credential, error)
}

// Name implements Source.
func (v *variables) Name() string { return v.name }

// Find implements Source.
func (v *variables) Find(_ context.Context, r authn.Resource) (*Credential, error) {
	c, err := v.find(strings.ToLower(r.RegistryStr()))
	if c == nil && err == nil {
		c = none(v.name, "")
	}
	return c, err
}

// userPassword returns a credential of the source.
func userPassword(source, entry, user, password string) *Credential {
	return &Credential{
		cfg:     authn.AuthConfig{Username: user, Password: password},
		account: Account{Username: user, Source: source, Entry: entry},
	}
}

// NewEnv returns the source of KANIKO_<HOST>_USER and KANIKO_<HOST>_PASSWORD,
// HOST being the registry's in capitals, with "_" for ".", "-" and ":". A name
// without the first labels of the host stands for all of a domain, as long as
// the domain has two.
func NewEnv(env Getenv) Source {
	return &variables{"KANIKO_<HOST>_USER", func(host string) (*Credential, error) {
		for _, n := range envHosts(host) {
			prefix := "KANIKO_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_", ":", "_").Replace(n))
			user, password := env(prefix+"_USER"), env(prefix+"_PASSWORD")
			if user != "" && password != "" {
				return userPassword("the environment", prefix+"_USER", user, password), nil
			}
			if user != "" || password != "" {
				return nil, &ConfigError{
					Err:    fmt.Errorf("find credentials for %s: of %s_USER and %s_PASSWORD only one is set", host, prefix, prefix),
					Remedy: "set both variables, or none",
				}
			}
		}
		return nil, nil
	}}
}

// envHosts returns host and the domains it is in, the nearest first.
func envHosts(host string) []string {
	if host == name.DefaultRegistry {
		return []string{host, "docker.io"}
	}
	list := []string{host}
	bare, _, hasPort := strings.Cut(host, ":")
	if hasPort {
		list = append(list, bare)
	}
	for {
		_, rest, ok := strings.Cut(bare, ".")
		if !ok || !strings.Contains(rest, ".") {
			return list
		}
		bare = rest
		list = append(list, bare)
	}
}

// sameHost compares hosts as URLs of HTTPS have them.
func sameHost(a, b string) bool {
	norm := func(s string) string {
		s = strings.ToLower(strings.TrimSpace(s))
		if u, err := url.Parse(s); err == nil && u.Host != "" {
			s = u.Host
		}
		s, _, _ = strings.Cut(s, "/")
		return strings.TrimSuffix(s, ":443")
	}
	return norm(a) != "" && norm(a) == norm(b)
}

// NewGitLab returns the source of what a GitLab job has: its registry (CI_REGISTRY
// with CI_REGISTRY_USER and CI_REGISTRY_PASSWORD) and its dependency proxy, with
// the job's token where these are not set.
func NewGitLab(env Getenv) Source {
	return &variables{"GitLab", func(host string) (*Credential, error) {
		for _, p := range [][3]string{
			{"CI_REGISTRY", "CI_REGISTRY_USER", "CI_REGISTRY_PASSWORD"},
			{"CI_DEPENDENCY_PROXY_SERVER", "CI_DEPENDENCY_PROXY_USER", "CI_DEPENDENCY_PROXY_PASSWORD"},
		} {
			if !sameHost(env(p[0]), host) {
				continue
			}
			if user, password := env(p[1]), env(p[2]); user != "" && password != "" {
				return userPassword("the GitLab job's "+p[2], p[0], user, password), nil
			}
			if token := env("CI_JOB_TOKEN"); token != "" {
				return userPassword("the GitLab job's CI_JOB_TOKEN", p[0], "gitlab-ci-token", token), nil
			}
			return none("GitLab", fmt.Sprintf("%s is %s, but neither %s nor CI_JOB_TOKEN is set", p[0], host, p[2])), nil
		}
		return nil, nil
	}}
}

// NewGitHub returns the source of GITHUB_TOKEN for GitHub's registry: ghcr.io, or
// containers.HOST of the server that GITHUB_SERVER_URL names. The token is of
// one server and goes to no other.
func NewGitHub(env Getenv) Source {
	return &variables{"GitHub", func(host string) (*Credential, error) {
		own := "ghcr.io"
		if u, err := url.Parse(env("GITHUB_SERVER_URL")); err == nil && u.Host != "" && !sameHost(u.Host, "github.com") {
			own = "containers." + u.Host
		}
		if !sameHost(own, host) {
			return nil, nil
		}
		token := env("GITHUB_TOKEN")
		if token == "" {
			return none("GitHub", "GITHUB_TOKEN is not set"), nil
		}
		user := env("GITHUB_ACTOR")
		if user == "" {
			user = "x-access-token" // the registry wants any name
		}
		return userPassword("GITHUB_TOKEN", "", user, token), nil
	}}
}
