// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const handshakeTimeout = 20 * time.Second

// A ProxyError is a proxy's refusal to connect to a registry.
type ProxyError struct {
	Proxy  string // host:port
	Status int
}

// Error tells which proxy refused, and how.
func (e *ProxyError) Error() string {
	return fmt.Sprintf("proxy %s: %s (%d)", e.Proxy, strings.ToLower(http.StatusText(e.Status)), e.Status)
}

// setProxy sends what a transport sends through the proxy that the options
// choose. The transport's TLS settings are for its host: a proxy that is spoken
// to in TLS gets neither its client certificate, nor is it trusted because of
// its authorities or because nobody is to be verified.
func setProxy(t *http.Transport, opt Options) {
	if opt.Proxy == nil {
		return
	}
	var proxies sync.Map // host:port of those that speak TLS
	t.Proxy = func(r *http.Request) (*url.URL, error) {
		u, err := opt.Proxy(r)
		if err == nil && u != nil && u.Scheme == "https" {
			proxies.Store(canonicalHost(u.Host, "https"), true)
		}
		return u, err
	}
	t.OnProxyConnectResponse = func(_ context.Context, u *url.URL, _ *http.Request, resp *http.Response) error {
		if resp.StatusCode != http.StatusOK {
			return &ProxyError{Proxy: u.Host, Status: resp.StatusCode}
		}
		return nil
	}
	// net/http would use TLSClientConfig for both.
	t.DialTLSContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conf := t.TLSClientConfig.Clone()
		if _, ok := proxies.Load(strings.ToLower(addr)); ok {
			conf = &tls.Config{RootCAs: opt.RootCAs, MinVersion: tls.VersionTLS12}
		}
		return dialTLS(ctx, opt, network, addr, conf)
	}
}

func dialTLS(ctx context.Context, opt Options, network, addr string, conf *tls.Config) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	conn, err := opt.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	conf.ServerName = host
	c := tls.Client(conn, conf)
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}
