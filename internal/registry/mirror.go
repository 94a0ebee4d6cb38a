// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// A Mirror is a place where images of a registry are looked for.
type Mirror struct {
	// Host is "host" or "host:port"; "" is the registry itself.
	Host string
	// Prefix stands before the repository's name there: "hub" makes
	// hub/library/debian of library/debian.
	Prefix string
	// Scheme is "https" or "http"; "" leaves it to the rules for all registries.
	Scheme string
	// Path is where the API is; "" is /v2.
	Path string
	// NoTags keeps tags from being looked up there, NoPull all else.
	NoTags, NoPull bool
	// Namespace tells the mirror which registry is meant (?ns=docker.io), as
	// containerd does.
	Namespace bool
	// Header is sent with each request.
	Header http.Header
	// DialTimeout limits how long a connection may take; 0 is the default.
	DialTimeout time.Duration
	// TLS is for this mirror alone, in addition to what is set for its host.
	TLS *HostTLS
}

// Places are where pulls from a registry go: to the mirrors in their order, and
// then to the registry itself.
type Places struct {
	Mirrors []Mirror
	// NoFallback keeps the registry itself from being asked.
	NoFallback bool
}

// A place is a mirror with what was learned of it.
type place struct {
	Mirror
	id     string
	rt     http.RoundTripper
	isDown atomic.Bool // it gave no answer: others are asked from now on
}

func (c *Client) newPlace(registry string, n int, m Mirror) (*place, error) {
	if m.Host != "" {
		if _, err := name.NewRegistry(m.Host); err != nil {
			return nil, fmt.Errorf("mirror of %s: %w", displayHost(registry), err)
		}
	}
	p := &place{Mirror: m, id: fmt.Sprintf("%s#%d", registry, n), rt: c.pull}
	if m.TLS != nil || m.DialTimeout > 0 {
		rt, err := newRouter(c.placeOptions(registry, m), c.opt.SkipTLSVerifyPull)
		if err != nil {
			return nil, err
		}
		p.rt = rt
	}
	for _, values := range m.Header {
		c.addSecret(values...)
	}
	return p, nil
}

// placeOptions are the options of connections to a mirror.
func (c *Client) placeOptions(registry string, m Mirror) Options {
	opt := c.opt
	if m.TLS != nil {
		host := m.Host
		if host == "" {
			host = registry
		}
		opt.Hosts = maps.Clone(c.opt.Hosts)
		if opt.Hosts == nil {
			opt.Hosts = map[string]HostTLS{}
		}
		opt.Hosts[settingHost(host)] = opt.Hosts[settingHost(host)].with(*m.TLS)
	}
	if m.DialTimeout > 0 {
		opt.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, m.DialTimeout)
			defer cancel()
			return c.opt.DialContext(ctx, network, addr)
		}
	}
	return opt
}

// openPlaces prepares the mirrors of the options.
func (c *Client) openPlaces() error {
	c.places = map[string][]*place{}
	for registry, list := range c.opt.Mirrors {
		registry = settingHost(registry)
		for i, m := range list.Mirrors {
			p, err := c.newPlace(registry, i, m)
			if err != nil {
				return err
			}
			c.places[registry] = append(c.places[registry], p)
		}
		if !list.NoFallback || len(list.Mirrors) == 0 {
			c.places[registry] = append(c.places[registry], nil)
		}
	}
	return nil
}

// candidates returns the accesses to try, in order; the last one is tried as
// often as a registry without mirrors.
func (a *access) candidates(isTag bool) []*access {
	if !a.isMirrored {
		return []*access{a}
	}
	places, ok := a.c.places[settingHost(a.repo.RegistryStr())]
	if !ok {
		if places, ok = a.c.places[""]; !ok {
			return []*access{a}
		}
	}
	var list []*access
	for _, p := range places {
		if p != nil && (p.NoPull || isTag && p.NoTags || p.isDown.Load()) {
			continue
		}
		if at, err := a.at(p); err == nil {
			list = append(list, at)
		}
	}
	if len(list) == 0 {
		// All of them are down: then it is the last one's error that is told.
		for i := len(places) - 1; i >= 0; i-- {
			if p := places[i]; p == nil || !p.NoPull && (!isTag || !p.NoTags) {
				if at, err := a.at(p); err == nil {
					return []*access{at}
				}
			}
		}
		return []*access{a}
	}
	for _, at := range list[:len(list)-1] {
		at.isOnce = true
	}
	return list
}

// at returns the access to a's repository at another place; nil is the registry
// itself.
func (a *access) at(p *place) (*access, error) {
	b := &access{c: a.c, repo: a.repo, ref: a.ref, rt: a.rt, place: p, origin: a}
	if p == nil {
		return b, nil
	}
	b.rt = p.rt
	if p.Host != "" {
		reg, err := name.NewRegistry(p.Host)
		if err != nil {
			return nil, err
		}
		b.repo = reg.Repo(strings.Trim(p.Prefix+"/"+a.repo.RepositoryStr(), "/"))
	}
	return b, nil
}

// display names a place for messages.
func (a *access) display() string {
	s := displayHost(a.repo.RegistryStr())
	if p := a.place; p != nil && p.Prefix != "" {
		s += "/" + p.Prefix
	}
	return s
}

// eachPlace calls fn for one place after the other until it succeeds. What went
// wrong before the last one is told in a line each.
func (a *access) eachPlace(ctx context.Context, isTag bool, fn func(*access) error) error {
	list := a.candidates(isTag)
	for i, at := range list {
		err := fn(at)
		switch {
		case err == nil:
			at.tellServed()
			return nil
		case i == len(list)-1, ctx.Err() != nil:
			return err
		}
		at.moveOn(err, list[i+1])
	}
	return nil // there is one place at least
}

// moveOn says why the next place is asked, and remembers a place that cannot be
// reached.
func (a *access) moveOn(err error, next *access) {
	var e *Error
	isOther := errors.Is(err, ErrWrongContent) || errors.Is(err, errSchema1) || errors.Is(err, context.Canceled)
	if a.place != nil && errors.As(err, &e) && e.Status == 0 && !isOther {
		a.place.isDown.Store(true)
	}
	status := 0
	if e != nil {
		status = e.Status
	}
	repo := displayRepo(a.origin.repo)
	// A registry's message may name what was asked for; once is enough.
	a.c.tell(fmt.Sprintf("%s %s %d", repo, a.key(), status), "%s: %s: %s; asking %s", repo, a.display(), reasonOf(err), next.display())
}

// tellServed says that an image comes from elsewhere.
func (a *access) tellServed() {
	if a.place != nil && a.place.Host != "" && a.origin != nil {
		repo := displayRepo(a.origin.repo)
		a.c.tell(repo+" "+a.key(), "%s comes from %s", repo, a.display())
	}
}

// reasonOf is an error without what the line it is in says anyway.
func reasonOf(err error) string {
	var e *Error
	if !errors.As(err, &e) {
		return clip(err.Error())
	}
	switch {
	case e.Status != 0 && e.Message != "":
		return fmt.Sprintf("%s (%d): %s", e.kind(), e.Status, clip(e.Message))
	case e.Status != 0:
		return fmt.Sprintf("%s (%d)", e.kind(), e.Status)
	case e.Err != nil:
		return clip(e.Err.Error())
	}
	return clip(e.Error())
}

// tell gives a line to whoever wants to know, once for each key.
func (c *Client) tell(key, format string, args ...any) {
	c.mu.Lock()
	isNew := !c.told[key]
	c.told[key] = true
	c.mu.Unlock()
	if isNew && c.opt.Note != nil {
		c.opt.Note(fmt.Sprintf(format, args...))
	}
}

// base returns the path of the API, with a slash at its end.
func (a *access) base() string {
	if a.place == nil || a.place.Path == "" {
		return "/v2/"
	}
	return strings.TrimSuffix(a.place.Path, "/") + "/"
}

// query adds what a mirror is told with each request.
func (a *access) query(q url.Values) url.Values {
	if a.place == nil || !a.place.Namespace || a.place.Host == "" {
		return q
	}
	out := url.Values{"ns": {displayHost(a.origin.repo.RegistryStr())}}
	for k, v := range q {
		out[k] = v
	}
	return out
}

// A mirrorTransport sends a mirror's headers to it and to nobody else, and its
// pings to where its API is.
type mirrorTransport struct {
	inner http.RoundTripper
	a     *access
}

// RoundTrip implements http.RoundTripper.
func (t mirrorTransport) RoundTrip(in *http.Request) (*http.Response, error) {
	p := t.a.place
	if !t.a.isRegistry(in.URL) {
		return t.inner.RoundTrip(in)
	}
	out := in.Clone(in.Context())
	for k, values := range p.Header {
		if out.Header.Get(k) == "" {
			out.Header[http.CanonicalHeaderKey(k)] = values
		}
	}
	isPing := in.URL.Path == "/v2/" && p.Path != ""
	if isPing {
		out.URL.Path, out.URL.RawPath = t.a.base(), ""
	}
	resp, err := t.inner.RoundTrip(out)
	if err == nil && isPing && resp.StatusCode != http.StatusUnauthorized && resp.StatusCode < 500 {
		// What is below a path need not answer a ping: what it answers to a
		// question will tell how one signs in.
		resp.StatusCode = http.StatusOK
	}
	return resp, err
}

// transport returns how requests of a are sent.
func (a *access) transport() http.RoundTripper {
	if a.place == nil || len(a.place.Header) == 0 && a.place.Path == "" {
		return a.rt
	}
	return mirrorTransport{a.rt, a}
}

// isTag tells a tag from a digest.
func isTag(id string) bool {
	_, err := digest.Parse(id)
	return err != nil
}

// key tells apart what is remembered of the same repository at different places.
func (a *access) key() string {
	if a.place == nil {
		return ""
	}
	return a.place.id
}

// retry repeats what fails, unless there is another place to go to.
func (a *access) retry(ctx context.Context, fn func() error) error {
	if a.isOnce {
		return fn()
	}
	times := a.c.opt.PullRetries
	if a.push {
		times = a.c.opt.PushRetries
	}
	return a.c.retry(ctx, max(times, a.c.opt.Retries), fn)
}

// retryWithin is retry for a step of what is itself retried: its budget is not
// to be multiplied.
func (a *access) retryWithin(ctx context.Context, fn func() error) error {
	if err := a.retry(ctx, fn); err != nil {
		return permanentError{err}
	}
	return nil
}
