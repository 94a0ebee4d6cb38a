// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package keychain finds credentials for registries.
//
// A [Chain] asks its sources in turn, and the first that has something for a
// registry answers: docker's and podman's files ([DockerConfig]), variables of
// the environment ([NewEnv], [NewGitLab], [NewGitHub]) and the clouds
// ([NewECR], [NewGoogle], [NewACR]). A cloud is asked only for registries that
// are its own, by their whole host name; what stands for one host is given to no other.
//
// Nothing is opened by its path here, nor read from the environment: whoever
// makes a source hands in what it reads, because another root may be in place
// of the container's when a credential has to be renewed.
//
// Credentials appear in no error and no [Account].
package keychain

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// ErrNoCredentials is what a Helper returns when it knows of none.
var ErrNoCredentials = errors.New("no credentials")

// An Account tells where credentials came from; it holds no secret.
type Account struct {
	Username string
	Source   string // such as /kaniko/.docker/config.json
	Entry    string // the entry of the source, as spelled there
	Note     string // why there is none, if there is something to say
	NotUsed  string // what else was asked and had nothing
}

// String returns a text such as
//
//	signed in as ci-bot, from /kaniko/.docker/config.json, entry "registry.example.com"
func (a Account) String() string {
	if a.Entry == "" && a.Username == "" {
		if a.Note == "" {
			return "not signed in"
		}
		return "not signed in: " + a.Note
	}
	s := "signed in"
	if a.Username != "" && a.Username != tokenUser {
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

// tokenUser is the name under which helpers give an identity token.
const tokenUser = "<token>"

// A Credential is an authenticator that knows its Account.
type Credential struct {
	cfg     authn.AuthConfig
	account Account
	expires time.Time
}

// none returns an answer without credentials; note says why, "" for nothing to
// say.
func none(source, note string) *Credential {
	return &Credential{account: Account{Source: source, Note: note}}
}

// Authorization implements authn.Authenticator.
func (c *Credential) Authorization() (*authn.AuthConfig, error) {
	cfg := c.cfg
	return &cfg, nil
}

// Account returns where the credential came from.
func (c *Credential) Account() Account { return c.account }

// Expires returns when the credential has to be asked for anew; the zero time
// stands for not known.
func (c *Credential) Expires() time.Time { return c.expires }

// isEmpty reports whether there is nothing to sign in with.
func (c *Credential) isEmpty() bool { return c.cfg == authn.AuthConfig{} }

// kind says what the credential is.
func (c *Credential) kind() string {
	switch {
	case c.cfg.RegistryToken != "":
		return "registry token"
	case c.cfg.IdentityToken != "":
		return "identity token"
	}
	return "password"
}

// A Source is a place where credentials are. It is safe for concurrent use.
type Source interface {
	// Name says what it is, in the words that messages use.
	Name() string
	// Find returns what there is for a registry or repository. Without
	// credentials the answer's Account may have a Note. An error says that
	// there should be credentials, and what keeps them.
	Find(ctx context.Context, r authn.Resource) (*Credential, error)
}

// A forgetter is a source that remembers its answers.
type forgetter interface {
	forget(r authn.Resource)
}

// A Chain is a keychain of several sources. It is safe for concurrent use.
type Chain struct {
	sources []Source
	absent  []string // what would be a source, but is not there
	close   func() error
}

// NewChain returns the keychain that asks the sources in their order. The absent
// are named in messages, such as "DOCKER_AUTH_CONFIG (unset)"; done, if not
// nil, gives back what the sources hold.
func NewChain(sources []Source, absent []string, done func() error) *Chain {
	return &Chain{sources: sources, absent: absent, close: done}
}

// Close gives back what the sources hold open.
func (c *Chain) Close() error {
	if c.close == nil {
		return nil
	}
	return c.close()
}

// Resolve implements authn.Keychain.
func (c *Chain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return c.ResolveContext(context.Background(), r)
}

// ResolveContext implements authn.ContextKeychain.
func (c *Chain) ResolveContext(ctx context.Context, r authn.Resource) (authn.Authenticator, error) {
	var first *Credential
	notUsed := append([]string(nil), c.absent...)
	for _, s := range c.sources {
		cred, err := s.Find(ctx, r)
		if err != nil {
			return nil, err
		}
		if !cred.isEmpty() {
			answer := *cred // the source may keep its own
			answer.account.NotUsed = strings.Join(notUsed, ", ")
			return &answer, nil
		}
		notUsed = append(notUsed, s.Name())
		// The first that has something to say speaks.
		if first == nil && cred.account.Note != "" {
			first = cred
		}
	}
	answer := none("", "no credentials for the registry were found")
	if first != nil {
		answer = none(first.account.Source, first.account.Note)
	}
	answer.account.NotUsed = strings.Join(notUsed, ", ")
	return answer, nil
}

// Forget drops what was remembered for r: the registry has refused it.
func (c *Chain) Forget(r authn.Resource) {
	for _, s := range c.sources {
		if f, ok := s.(forgetter); ok {
			f.forget(r)
		}
	}
}

// A Finding is what one source said about a registry.
type Finding struct {
	Source  string
	Account Account
	Kind    string // "password", "identity token" or "registry token"; "" for none
	Expires time.Time
	Asked   bool
	Err     error
}

// Explain asks the sources as Resolve does and says what each answered. Those
// that come after the answer are not asked.
func (c *Chain) Explain(ctx context.Context, r authn.Resource) []Finding {
	var list []Finding
	for _, s := range c.sources {
		f := Finding{Source: s.Name(), Asked: true}
		if n := len(list); n > 0 && (list[n-1].Kind != "" || list[n-1].Err != nil || !list[n-1].Asked) {
			f.Asked = false
			list = append(list, f)
			continue
		}
		cred, err := s.Find(ctx, r)
		if f.Err = err; err == nil {
			f.Account, f.Expires = cred.account, cred.expires
			if !cred.isEmpty() {
				f.Kind = cred.kind()
			}
		}
		list = append(list, f)
	}
	return list
}

// Absent returns what would be a source, but is not there.
func (c *Chain) Absent() []string { return c.absent }

// BuiltIn names the sources of --credential-helpers in the order in which they
// are asked.
func BuiltIn() []string { return []string{"env", "google", "ecr", "acr", "gitlab", "github"} }
