// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// variablesOf is an environment of "NAME=value" lines.
func variablesOf(lines ...string) Getenv {
	m := map[string]string{}
	for _, l := range lines {
		k, v, _ := strings.Cut(l, "=")
		m[k] = v
	}
	return func(name string) string { return m[name] }
}

func repository(t testing.TB, s string) name.Repository {
	t.Helper()
	r, err := name.NewRepository(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// find returns "user:password", or the note in brackets, or the error.
func find(t testing.TB, s Source, repo string) string {
	t.Helper()
	c, err := s.Find(t.Context(), repository(t, repo))
	switch {
	case err != nil:
		return "error: " + err.Error()
	case c.isEmpty():
		return "[" + c.account.Note + "]"
	case c.cfg.IdentityToken != "":
		return c.cfg.Username + " token " + c.cfg.IdentityToken
	}
	return c.cfg.Username + ":" + c.cfg.Password
}

func TestVariables(t *testing.T) {
	t.Parallel()
	gitlab := []string{
		"CI_REGISTRY=registry.gitlab.example.com", "CI_REGISTRY_USER=u", "CI_REGISTRY_PASSWORD=p",
		"CI_DEPENDENCY_PROXY_SERVER=gitlab.example.com:443", "CI_JOB_TOKEN=j",
	}
	tests := []struct {
		name   string
		source func(Getenv) Source
		env    []string
		repo   string
		want   string
	}{
		{"host", NewEnv, []string{"KANIKO_R_EXAMPLE_COM_USER=u", "KANIKO_R_EXAMPLE_COM_PASSWORD=p"}, "r.example.com/a/b", "u:p"},
		{"dash", NewEnv, []string{"KANIKO_MY_REG_EXAMPLE_COM_USER=u", "KANIKO_MY_REG_EXAMPLE_COM_PASSWORD=p"}, "my-reg.example.com/app", "u:p"},
		{"port", NewEnv, []string{"KANIKO_LOCALHOST_5000_USER=u", "KANIKO_LOCALHOST_5000_PASSWORD=p"}, "localhost:5000/app", "u:p"},
		{"port of a bare name", NewEnv, []string{"KANIKO_LOCALHOST_USER=u", "KANIKO_LOCALHOST_PASSWORD=p"}, "localhost:5000/app", "u:p"},
		{"domain", NewEnv, []string{"KANIKO_EXAMPLE_COM_USER=u", "KANIKO_EXAMPLE_COM_PASSWORD=p"}, "r.example.com/app", "u:p"},
		{"nearest", NewEnv, []string{
			"KANIKO_EXAMPLE_COM_USER=far", "KANIKO_EXAMPLE_COM_PASSWORD=p", "KANIKO_R_EXAMPLE_COM_USER=near", "KANIKO_R_EXAMPLE_COM_PASSWORD=p",
		}, "r.example.com/app", "near:p"},
		{"no top-level domain", NewEnv, []string{"KANIKO_COM_USER=u", "KANIKO_COM_PASSWORD=p"}, "r.example.com/app", "[]"},
		{"look-alike", NewEnv, []string{"KANIKO_EXAMPLE_COM_USER=u", "KANIKO_EXAMPLE_COM_PASSWORD=p"}, "example.com.evil.net/app", "[]"},
		{"Docker Hub", NewEnv, []string{"KANIKO_DOCKER_IO_USER=u", "KANIKO_DOCKER_IO_PASSWORD=p"}, "ubuntu", "u:p"},
		{"Docker Hub's other name", NewEnv, []string{"KANIKO_INDEX_DOCKER_IO_USER=u", "KANIKO_INDEX_DOCKER_IO_PASSWORD=p"}, "ubuntu", "u:p"},
		{"half", NewEnv, []string{"KANIKO_R_EXAMPLE_COM_USER=u"}, "r.example.com/app", "error: find credentials for r.example.com: of KANIKO_R_EXAMPLE_COM_USER and KANIKO_R_EXAMPLE_COM_PASSWORD only one is set"},

		{"GitLab", NewGitLab, gitlab, "registry.gitlab.example.com/g/p", "u:p"},
		{"GitLab proxy", NewGitLab, gitlab, "gitlab.example.com/g/dependency_proxy/containers/alpine", "gitlab-ci-token:j"},
		{"GitLab token", NewGitLab, []string{"CI_REGISTRY=r.example.com:5050", "CI_JOB_TOKEN=j"}, "r.example.com:5050/g/p", "gitlab-ci-token:j"},
		{"GitLab nothing", NewGitLab, []string{"CI_REGISTRY=r.example.com"}, "r.example.com/g/p", "[CI_REGISTRY is r.example.com, but neither CI_REGISTRY_PASSWORD nor CI_JOB_TOKEN is set]"},
		{"GitLab elsewhere", NewGitLab, gitlab, "registry.gitlab.example.com.evil.net/g/p", "[]"},
		{"GitLab nowhere", NewGitLab, []string{"CI_JOB_TOKEN=j"}, "r.example.com/g/p", "[]"},

		{"GitHub", NewGitHub, []string{"GITHUB_TOKEN=t", "GITHUB_ACTOR=octo"}, "ghcr.io/o/p", "octo:t"},
		{"GitHub in Actions", NewGitHub, []string{"GITHUB_TOKEN=t", "GITHUB_SERVER_URL=https://github.com"}, "ghcr.io/o/p", "x-access-token:t"},
		{"GitHub without", NewGitHub, nil, "ghcr.io/o/p", "[GITHUB_TOKEN is not set]"},
		{"GitHub look-alike", NewGitHub, []string{"GITHUB_TOKEN=t"}, "ghcr.io.evil.net/o/p", "[]"},
		{"GitHub subdomain", NewGitHub, []string{"GITHUB_TOKEN=t"}, "x.ghcr.io/o/p", "[]"},
		{"GitHub of one's own", NewGitHub, []string{"GITHUB_TOKEN=t", "GITHUB_SERVER_URL=https://ghe.example.com"}, "containers.ghe.example.com/o/p", "x-access-token:t"},
		{"its token stays there", NewGitHub, []string{"GITHUB_TOKEN=t", "GITHUB_SERVER_URL=https://ghe.example.com"}, "ghcr.io/o/p", "[]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := find(t, tt.source(variablesOf(tt.env...)), tt.repo); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.repo, got, tt.want)
			}
		})
	}
}

// fixed is a source with one answer.
type fixed struct {
	name string
	cred *Credential
	err  error
}

func (f fixed) Name() string { return f.name }

func (f fixed) Find(context.Context, authn.Resource) (*Credential, error) {
	if f.err != nil {
		return nil, f.err
	}
	return f.cred, nil
}

func TestChain(t *testing.T) {
	t.Parallel()
	nothing := fixed{"nothing", none("nothing", ""), nil}
	reason := fixed{"reason", none("reason", "the moon is full"), nil}
	first := fixed{"first", userPassword("first", "e", "u1", "p1"), nil}
	second := fixed{"second", userPassword("second", "e", "u2", "p2"), nil}
	broken := fixed{"broken", nil, errors.New("does not work")}
	tests := []struct {
		name    string
		sources []Source
		want    Account
		asked   []bool
		err     string
	}{
		{"first answers", []Source{nothing, first, second, broken}, Account{"u1", "first", "e", "", "absent (unset), nothing"}, []bool{true, true, false, false}, ""},
		{"a reason is told", []Source{nothing, reason}, Account{Source: "reason", Note: "the moon is full", NotUsed: "absent (unset), nothing, reason"}, []bool{true, true}, ""},
		{"nobody", []Source{nothing}, Account{Note: "no credentials for the registry were found", NotUsed: "absent (unset), nothing"}, []bool{true}, ""},
		{"broken before", []Source{broken, first}, Account{}, []bool{true, false}, "does not work"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := NewChain(tt.sources, []string{"absent (unset)"}, nil)
			repo := repository(t, "r.example.com/app")
			var asked []bool
			for _, f := range c.Explain(t.Context(), repo) {
				asked = append(asked, f.Asked)
			}
			if d := cmp.Diff(tt.asked, asked); d != "" {
				t.Error(d)
			}
			a, err := c.ResolveContext(t.Context(), repo)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("err = %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, a.(*Credential).Account()); d != "" {
				t.Error(d)
			}
		})
	}
}
