// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// A router sends each request over the transport of its host. Hosts without
// settings of their own share one transport, which keeps connections per host.
type router struct {
	userAgent string
	base      *http.Transport
	hosts     map[string]*http.Transport // by "host" or "host:port", lower case
}

// HostTLS is how one host is trusted and what is shown to it, and to no other.
type HostTLS struct {
	CAs        []byte            // certificate authorities (PEM), beside those for all
	Clients    []tls.Certificate // to show if the host asks for one
	SkipVerify bool
}

// with returns both settings.
func (t HostTLS) with(o HostTLS) HostTLS {
	return HostTLS{
		CAs:        append(append(slices.Clone(t.CAs), '\n'), o.CAs...),
		Clients:    append(slices.Clone(t.Clients), o.Clients...),
		SkipVerify: t.SkipVerify || o.SkipVerify,
	}
}

// hostSettings joins what the options say of single hosts.
func hostSettings(opt Options) map[string]HostTLS {
	hosts := map[string]HostTLS{}
	add := func(h string, t HostTLS) { hosts[settingHost(h)] = hosts[settingHost(h)].with(t) }
	for h, t := range opt.Hosts {
		add(h, t)
	}
	for h, pem := range opt.Certificates {
		add(h, HostTLS{CAs: pem})
	}
	for _, h := range opt.SkipTLSVerifyRegistries {
		add(h, HostTLS{SkipVerify: true})
	}
	return hosts
}

func newRouter(opt Options, skipVerify bool) (*router, error) {
	r := &router{userAgent: opt.UserAgent, hosts: map[string]*http.Transport{}}
	r.base = newTransport(opt, &tls.Config{RootCAs: opt.RootCAs, InsecureSkipVerify: skipVerify})
	for h, pem := range opt.Certificates {
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read certificate for registry %s: no certificate in PEM form found", settingHost(h))
		}
	}
	for h, t := range hostSettings(opt) {
		pool := opt.RootCAs
		if len(bytes.TrimSpace(t.CAs)) > 0 {
			pool = x509.NewCertPool()
			if opt.RootCAs != nil {
				pool = opt.RootCAs.Clone()
			}
			if !pool.AppendCertsFromPEM(t.CAs) {
				return nil, fmt.Errorf("read certificate for registry %s: no certificate in PEM form found", h)
			}
		}
		r.hosts[h] = newTransport(opt, &tls.Config{
			RootCAs: pool, InsecureSkipVerify: skipVerify || t.SkipVerify, Certificates: t.Clients,
		})
	}
	return r, nil
}

// newTransport makes a transport of HTTP/1.1, as BuildKit and docker use for
// registries: over HTTP/2 all layers would share one TCP connection.
func newTransport(opt Options, conf *tls.Config) *http.Transport {
	conf.MinVersion = tls.VersionTLS12
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	t := &http.Transport{
		DialContext:            opt.DialContext,
		TLSClientConfig:        conf,
		Protocols:              &protocols,
		TLSHandshakeTimeout:    handshakeTimeout,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        60 * time.Second,
		ExpectContinueTimeout:  time.Second,
		ResponseHeaderTimeout:  5 * time.Minute, // some registries hash a blob before they answer
		MaxResponseHeaderBytes: 256 << 10,
		DisableCompression:     true, // blobs are wanted as they are stored
		WriteBufferSize:        64 << 10,
		ReadBufferSize:         64 << 10,
	}
	setProxy(t, opt)
	return t
}

// settingHost spells the host of a setting like canonicalHost; Docker Hub has
// several names, and people may write a URL.
func settingHost(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(s), "https://"), "http://")
	s, _, _ = strings.Cut(s, "/")
	s = strings.ToLower(s)
	if s == "docker.io" {
		s = "index.docker.io"
	}
	return strings.TrimSuffix(s, ":443")
}

// RoundTrip implements http.RoundTripper.
func (r *router) RoundTrip(in *http.Request) (*http.Response, error) {
	t := r.base
	if h := r.hosts[settingHost(in.URL.Host)]; h != nil {
		t = h
	}
	out := in.Clone(in.Context())
	out.Header.Set("User-Agent", r.userAgent)
	return t.RoundTrip(out)
}

// A probe is the transport for pings and token requests: it limits answers
// and keeps what Retry-After said, which go-containerregistry's errors omit.
type probe struct {
	inner      http.RoundTripper
	retryAfter atomic.Int64
	httpErr    atomic.Pointer[error] // of the last attempt without TLS
	tlsErr     atomic.Pointer[error] // of the last attempt with it
	now        func() time.Time
}

const maxProbeBody = 1 << 20

func (p *probe) RoundTrip(in *http.Request) (*http.Response, error) {
	resp, err := p.inner.RoundTrip(in)
	if err != nil {
		if in.URL.Scheme == "http" {
			p.httpErr.Store(&err)
		} else {
			p.tlsErr.Store(&err)
		}
		return nil, err
	}
	p.retryAfter.Store(int64(parseRetryAfter(resp.Header.Get("Retry-After"), p.now())))
	resp.Body = &limitedBody{r: io.LimitReader(resp.Body, maxProbeBody), c: resp.Body}
	return resp, nil
}

type limitedBody struct {
	r io.Reader
	c io.Closer
}

func (b *limitedBody) Read(p []byte) (int, error) { return b.r.Read(p) }
func (b *limitedBody) Close() error               { return b.c.Close() }

// canonicalHost returns host:port in lower case, with the scheme's port.
func canonicalHost(host, scheme string) string {
	u := url.URL{Host: strings.ToLower(host)}
	port := u.Port()
	if port == "" {
		port = "443"
		if scheme == "http" {
			port = "80"
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// checkTarget refuses URLs that a registry may not send us to: a registry
// in HTTPS not to plain HTTP, and none to link-local addresses, where clouds
// keep the credentials of machines.
func checkTarget(u *url.URL, allowHTTP bool) error {
	switch {
	case u.Scheme == "https", u.Scheme == "http" && allowHTTP:
	case u.Scheme == "http":
		return permanentError{fmt.Errorf("redirect from https to plain http at %s refused", u.Host)}
	default:
		return permanentError{fmt.Errorf("redirect to scheme %q refused", u.Scheme)}
	}
	if u.Host == "" {
		return permanentError{errors.New("redirect without a host refused")}
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return nil //nolint:nilerr // a name, which is resolved by whoever dials
	}
	if ip = ip.Unmap(); ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast() || ip == netip.MustParseAddr("fd00:ec2::254") {
		return permanentError{fmt.Errorf("redirect to address %s refused", ip)}
	}
	return nil
}

// A watchdog cancels an exchange on which nothing moves while it is armed.
type watchdog struct {
	timer   *time.Timer
	timeout time.Duration
}

var errStalled = errors.New("transfer stalled")

// watch returns a context with a watchdog that is not armed yet.
func (c *Client) watch(ctx context.Context) (context.Context, *watchdog, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watchdog{timeout: c.opt.StallTimeout}
	w.timer = time.AfterFunc(w.timeout, func() { cancel(errStalled) })
	w.pause()
	return ctx, w, func() {
		w.pause()
		cancel(nil)
	}
}

func (w *watchdog) arm()   { w.timer.Reset(w.timeout) }
func (w *watchdog) pause() { w.timer.Stop() }

// stallCause replaces the error of an exchange that the watchdog ended, which
// is but a canceled context, by its reason.
func stallCause(ctx context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	return err
}

// An answerBody is watched while it is read; how long its reader takes for
// other things does not matter.
type answerBody struct {
	io.ReadCloser
	ctx  context.Context //nolint:containedctx // the exchange's
	dog  *watchdog
	stop context.CancelFunc
}

func (b *answerBody) Read(p []byte) (int, error) {
	b.dog.arm()
	n, err := b.ReadCloser.Read(p)
	b.dog.pause()
	if err != nil && !errors.Is(err, io.EOF) {
		err = stallCause(b.ctx, err)
	}
	return n, err
}

func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	b.stop()
	return err
}

// A questionBody is watched between reads: then it is sent.
type questionBody struct {
	io.ReadCloser
	dog *watchdog
}

func (b *questionBody) Read(p []byte) (int, error) {
	b.dog.pause()
	n, err := b.ReadCloser.Read(p)
	if err == nil {
		b.dog.arm()
	}
	return n, err
}
