// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// An endpoint is a registry as it answered the first request.
type endpoint struct {
	reg    name.Registry
	scheme string

	mu        sync.Mutex
	challenge *transport.Challenge // how to sign in; its Scheme is "" for not at all
}

func (e *endpoint) setChallenge(ch challenge) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.challenge = &transport.Challenge{Scheme: ch.scheme, Parameters: ch.params, Insecure: e.scheme == "http"}
}

func (e *endpoint) getChallenge() *transport.Challenge {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.challenge
}

// isInsecure reports whether plain HTTP is allowed by a setting.
func (c *Client) isInsecure(reg name.Registry, push bool) bool {
	if push && c.opt.Insecure || !push && c.opt.InsecurePull {
		return true
	}
	return slices.ContainsFunc(c.opt.InsecureRegistries, func(h string) bool {
		return settingHost(h) == settingHost(reg.RegistryStr())
	})
}

// endpoint finds out, once, by which scheme a registry is reached and how one
// signs in there.
func (a *access) endpoint(ctx context.Context) (*endpoint, error) {
	key := fmt.Sprintf("%t %s %s", a.push, a.repo.RegistryStr(), a.key())
	e, err := a.c.endpoints.do(ctx, key, func(ctx context.Context) (*endpoint, error) {
		var opts []name.Option
		if a.isInsecure() {
			opts = append(opts, name.Insecure)
		}
		reg, err := name.NewRegistry(a.repo.RegistryStr(), opts...)
		if err != nil {
			return nil, a.fail("", err)
		}
		var ch *transport.Challenge
		err = a.retryWithin(ctx, func() (err error) {
			p := &probe{inner: a.transport(), now: a.c.now}
			ch, err = transport.Ping(ctx, reg, p)
			if herr := p.httpErr.Load(); herr != nil && errors.Is(err, http.ErrSchemeMismatch) {
				err = *herr // it speaks plain HTTP: what went wrong there counts
			}
			var status *transport.Error
			_ = errors.As(err, &status)
			if terr := p.tlsErr.Load(); terr != nil && status != nil && status.StatusCode == http.StatusBadRequest {
				err = *terr // it speaks TLS, and answers so to whoever does not
			}
			if status != nil && status.StatusCode == http.StatusNotFound && a.place == nil {
				err = a.explainAbsentAPI(ctx, reg, err)
			}
			if err == nil && ch.Insecure && !a.mayUseHTTP() {
				err = permanentError{errors.New("redirect from https to plain http refused")}
			}
			return a.failProbe("", p, err)
		})
		if err != nil {
			return nil, err
		}
		e := &endpoint{reg: reg, scheme: "https", challenge: ch}
		if ch.Insecure {
			e.scheme = "http"
		}
		ch.Scheme = strings.ToLower(ch.Scheme)
		return e, nil
	})
	var shared *Error
	if errors.As(err, &shared) {
		// The answer may be to somebody else's question.
		own := *shared
		o := a.newError(own.What)
		own.Repository, own.Ref = o.Repository, o.Ref
		return nil, permanentError{&own}
	}
	return e, err
}

func (a *access) failProbe(what string, p *probe, err error) error {
	err = a.fail(what, err)
	var e *Error
	if errors.As(err, &e) {
		e.retryAfter = time.Duration(p.retryAfter.Load())
	}
	return err
}

// An access is the right to do something with a repository, on the way to
// being granted. It is made for one operation.
type access struct {
	c    *Client
	repo name.Repository
	ref  string // for errors
	push bool
	rt   http.RoundTripper
	from []name.Repository // also to be read: sources of a mount

	isMirrored bool    // the places of the registry may serve it
	place      *place  // where it goes instead; nil is the registry itself
	origin     *access // whose place it is
	served     *access // where its manifest came from
	isOnce     bool    // there is another place: nothing is repeated here

	mu   sync.Mutex
	acct Account
}

func (c *Client) access(repo name.Repository, ref string, push bool, from ...name.Repository) *access {
	a := &access{c: c, repo: repo, ref: ref, push: push, rt: c.pull, from: from}
	if push {
		a.rt = c.push
	}
	return a
}

func (a *access) account() Account {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.acct
}

func (a *access) scopes() []string {
	action := transport.PullScope
	if a.push {
		action = transport.PushScope // "push,pull"
	}
	s := []string{a.repo.Scope(action)}
	for _, r := range a.from {
		s = append(s, r.Scope(transport.PullScope))
	}
	return s
}

// A grant is the Authorization header for a set of scopes.
type grant struct {
	lock    chan struct{} // holds one item while the grant is free
	value   string
	expires time.Time // zero for never
	extra   []string  // scopes that challenges asked for beyond ours
}

func (a *access) grant() *grant {
	key := fmt.Sprintf("%t %s %s %s", a.push, a.repo.Name(), a.key(), strings.Join(a.scopes(), " "))
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	g := a.c.grants[key]
	if g == nil {
		g = &grant{lock: make(chan struct{}, 1)}
		g.lock <- struct{}{}
		a.c.grants[key] = g
	}
	return g
}

// authorize returns the Authorization header to send, "" for none. stale is
// the value that the registry has just refused, with its challenge; what
// somebody else has renewed meanwhile is not renewed again.
func (a *access) authorize(ctx context.Context, e *endpoint, stale string, refused *challenge) (string, error) {
	g := a.grant()
	select {
	case <-g.lock:
		defer func() { g.lock <- struct{}{} }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if refused != nil {
		if g.value != "" && g.value != stale {
			return g.value, nil
		}
		g.value = ""
		e.setChallenge(*refused)
		g.addScope(refused.params["scope"], a.scopes())
		a.forgetCredentials() // the password may have expired
	}
	cred, err := a.credentials(ctx)
	if err != nil {
		return "", permanentError{err}
	}
	if g.value != "" && (g.expires.IsZero() || a.c.now().Before(g.expires)) {
		return g.value, nil
	}
	ch := e.getChallenge()
	switch {
	case ch == nil || ch.Scheme == "":
		return "", nil
	case cred.cfg.RegistryToken != "":
		g.value, g.expires = "Bearer "+cred.cfg.RegistryToken, cred.expires
	case ch.Scheme == "basic":
		g.value, g.expires = basicHeader(cred.cfg), cred.expires
	case ch.Scheme == "bearer":
		err := a.exchange(ctx, e, g, ch, cred)
		if errors.Is(err, ErrDenied) {
			err = a.exchangeAgain(ctx, e, g, ch, cred, err)
		}
		if err != nil {
			return "", err
		}
	default:
		return "", permanentError{fmt.Errorf("sign in: the registry asks for the scheme %q, which is not supported", ch.Scheme)}
	}
	return g.value, nil
}

// addScope takes over what a challenge wants beyond our scopes: some
// registries rewrite repository names. The number is limited, the registry
// may be malicious.
func (g *grant) addScope(scope string, ours []string) {
	if scope == "" || len(scope) > 1024 || len(g.extra) >= 8 || slices.Contains(ours, scope) || slices.Contains(g.extra, scope) {
		return
	}
	g.extra = append(g.extra, scope)
}

// exchange gets a bearer token from the service that the registry names.
func (a *access) exchange(ctx context.Context, e *endpoint, g *grant, ch *transport.Challenge, cred *resolved) error {
	// Some services look at the first scope only: what was asked for comes first.
	scopes := append(slices.Clone(g.extra), a.scopes()...)
	var tok *transport.Token
	err := a.retryWithin(ctx, func() (err error) {
		p := &probe{inner: &originGuard{inner: a.transport()}, now: a.c.now}
		tok, err = transport.Exchange(ctx, e.reg, cred.auth, p, scopes, ch)
		if err == nil {
			return nil
		}
		return a.failProbe("sign in", p, exchangeError(err))
	})
	if err != nil {
		return err
	}
	value := tok.Token
	if tok.AccessToken != "" {
		value = tok.AccessToken
	}
	a.c.addSecret(value, tok.RefreshToken)
	ttl := tok.ExpiresIn
	if ttl <= 0 {
		ttl = 60 // the default of the token protocol
	}
	ttl = min(ttl, 24*3600)
	g.value = "Bearer " + value
	g.expires = a.c.now().Add(time.Duration(ttl) * time.Second * 9 / 10)
	return nil
}

// exchangeAgain tries with new credentials, if there are any: those that were
// refused may be of hours ago.
func (a *access) exchangeAgain(ctx context.Context, e *endpoint, g *grant, ch *transport.Challenge, old *resolved, denied error) error {
	a.forgetCredentials()
	cred, err := a.credentials(ctx)
	if err != nil {
		return permanentError{err}
	}
	if *cred.cfg == *old.cfg {
		return denied
	}
	return a.exchange(ctx, e, g, ch, cred)
}

// exchangeError keeps what is a verdict on the registry's answer, and drops
// its text where that may be a token.
func exchangeError(err error) error {
	var terr *transport.Error
	var uerr *url.Error
	if errors.As(err, &terr) || errors.As(err, &uerr) {
		return err
	}
	if text := err.Error(); strings.Contains(text, "realm") || strings.Contains(text, "not bearer") {
		return permanentError{err}
	}
	return permanentError{errors.New("the token service gave no token")}
}

// originGuard follows go-containerregistry's http.Client: net/http forwards
// headers set by hand on redirects within a domain, so that a token service
// could hand the basic credentials to a subdomain or to plain HTTP.
type originGuard struct {
	inner http.RoundTripper
	first *url.URL
}

func (o *originGuard) RoundTrip(in *http.Request) (*http.Response, error) {
	if o.first == nil {
		o.first = in.URL
	} else if in.URL.Scheme != o.first.Scheme || canonicalHost(in.URL.Host, in.URL.Scheme) != canonicalHost(o.first.Host, o.first.Scheme) {
		if in.Method != http.MethodGet {
			// A form with a refresh token in it.
			return nil, permanentError{errors.New("the token service redirects credentials to another host")}
		}
		in = in.Clone(in.Context())
		in.Header.Del("Authorization")
	}
	return o.inner.RoundTrip(in)
}

func basicHeader(cfg *authn.AuthConfig) string {
	switch {
	case cfg.Username != "" && cfg.Password != "":
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(cfg.Username+":"+cfg.Password))
	case cfg.Auth != "":
		return "Basic " + cfg.Auth
	}
	return ""
}

// resolved are credentials in each of the forms that are needed.
type resolved struct {
	auth    authn.Authenticator
	cfg     *authn.AuthConfig
	account Account
	expires time.Time // zero for not known
}

// credentials asks the keychain, once for each repository until what it gave
// expires: there may be a helper process behind it.
func (a *access) credentials(ctx context.Context) (*resolved, error) {
	r, err := a.c.creds.do(ctx, a.repo.Name(), a.findCredentials)
	if err == nil && !r.expires.IsZero() && !a.c.now().Before(r.expires) {
		a.dropCredentials()
		r, err = a.c.creds.do(ctx, a.repo.Name(), a.findCredentials)
	}
	if err != nil {
		return nil, fmt.Errorf("find credentials: %w", err)
	}
	a.mu.Lock()
	a.acct = r.account
	a.mu.Unlock()
	return r, nil
}

func (a *access) dropCredentials() {
	a.c.creds.drop(func(key string) bool { return key == a.repo.Name() })
}

// forgetCredentials makes the keychain look again: the registry has refused
// what it gave.
func (a *access) forgetCredentials() {
	a.dropCredentials()
	if k, ok := a.c.opt.Keychain.(interface{ Forget(r authn.Resource) }); ok {
		k.Forget(a.repo)
	}
}

func (a *access) findCredentials(ctx context.Context) (*resolved, error) {
	auth, err := authn.Resolve(ctx, a.c.opt.Keychain, a.repo)
	if err != nil {
		return nil, err
	}
	cfg, err := authn.Authorization(ctx, auth)
	if err != nil {
		return nil, err
	}
	a.c.addSecret(cfg.Password, cfg.IdentityToken, cfg.RegistryToken, cfg.Auth, strings.TrimPrefix(basicHeader(cfg), "Basic "))
	r := &resolved{auth: authn.FromConfig(*cfg), cfg: cfg, account: Account{Username: cfg.Username}}
	if t, ok := auth.(interface{ Account() Account }); ok {
		r.account = t.Account()
	}
	if t, ok := auth.(interface{ Expires() time.Time }); ok {
		r.expires = t.Expires()
	}
	if *cfg == (authn.AuthConfig{}) {
		// go-containerregistry knows "send nothing" by this value alone.
		r.auth = authn.Anonymous
	}
	return r, nil
}

type anonymousKeychain struct{}

func (anonymousKeychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.Anonymous, nil
}
