// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package registry pulls from and pushes to image registries: all HTTP to
// registries ends here.
//
// A [Client] knows credentials, trust and retries; its methods are precise
// about one thing each: [Client.Resolve] finds an image's manifest and config
// for a platform, [Client.OpenBlob] reads a blob from any offset and resumes
// when the connection breaks, [Client.PushBlob] finds, mounts or uploads a
// blob, [Client.StreamBlob] begins to while it is still being made,
// [Client.PushManifest] sets a tag.
//
// Registries are not trusted. Answers are limited in size, manifests and
// configs are compared with their digests, credentials go to the host they
// are for and to the token service it names, and to no other: not to redirect
// targets, and not into errors. A certificate authority configured for one
// host is not believed when it vouches for another.
//
// # Plain HTTP
//
// A registry is spoken to in HTTPS. Plain HTTP is tried when HTTPS fails, or
// does not answer within 300 ms, for registries marked insecure and for those
// that are local by name: localhost, 127.0.0.1, ::1, *.local, *.localhost and
// the private IPv4 ranges. This is the rule of go-containerregistry, on which
// kaniko is built, so that localhost:5000 works without a flag.
package registry

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Options say how registries are spoken to. The zero value is useful:
// anonymous, HTTPS, the system's certificate authorities.
type Options struct {
	// Insecure and InsecurePull allow plain HTTP for pushes and for pulls.
	Insecure, InsecurePull bool
	// InsecureRegistries are hosts ("host" or "host:port") for which plain
	// HTTP is allowed both ways.
	InsecureRegistries []string
	// SkipTLSVerify and SkipTLSVerifyPull accept any certificate for pushes
	// and for pulls.
	SkipTLSVerify, SkipTLSVerifyPull bool
	// SkipTLSVerifyRegistries are hosts whose certificate is not verified.
	SkipTLSVerifyRegistries []string
	// RootCAs are the certificate authorities to trust; nil stands for the
	// system's, which New then loads at once.
	RootCAs *x509.CertPool
	// Certificates adds certificate authorities (PEM) for one host each.
	Certificates map[string][]byte
	// Hosts are further TLS settings, for one host each.
	Hosts map[string]HostTLS
	// Mirrors are other places for pulls of images, by registry; those of "" are
	// for all registries that have none of their own. They are not asked when
	// something is pushed, or read that was pushed.
	Mirrors map[string]Places
	// Note, if set, is told in a line which mirror was passed over and why.
	Note func(text string)
	// Kept, if set, has manifests and configs of images that were resolved
	// before, and is given those of images that are.
	Kept Kept
	// Keychain knows credentials; nil means none. Where it returns a
	// *keychain.Credential, errors tell which account was used. It is told to
	// Forget what was refused, if it can.
	Keychain authn.Keychain
	// UserAgent is sent with each request; the default is "hako".
	UserAgent string
	// DialContext opens connections, so that name resolution is the
	// caller's; nil stands for a net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Proxy chooses a proxy as http.Transport's field of the name does; nil
	// means none. The environment is not read here.
	Proxy func(*http.Request) (*url.URL, error)
	// Secrets are values, such as a proxy's password, that errors must not repeat.
	Secrets []string
	// Retries is how often a failed request is repeated; 0 stands for 5, a
	// negative number for never.
	Retries int
	// PushRetries, PullRetries and StreamRetries are the same for pushes, for pulls
	// and for how often a layer's stream is resumed without getting on, if they
	// are more.
	PushRetries, PullRetries, StreamRetries int
	// StallTimeout ends a transfer on which no byte moved for so long; it is
	// then resumed or repeated. The default is one minute.
	StallTimeout time.Duration
	// Received and Sent, if set, are told of the bytes of blobs and manifests
	// as they move, from many goroutines.
	Received, Sent func(n int64)
	// Transfer, if set, is told of each blob that begins to move, and returns who
	// is told how far it is.
	Transfer func(Transfer) Moving
}

// A Client talks to registries. It asks each question once: answers about
// manifests, tokens and finished uploads are remembered for its lifetime, and
// equal requests under way are shared. It is safe for concurrent use.
type Client struct {
	opt   Options
	pull  http.RoundTripper
	push  http.RoundTripper
	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration) error

	endpoints group[*endpoint]
	creds     group[*resolved]
	images    group[*Image]
	roots     group[*root]
	configs   group[[]byte]
	uploads   group[PushResult]

	places map[string][]*place // nil in a list is the registry itself

	mu      sync.Mutex
	told    map[string]bool // what of mirrors was told
	grants  map[string]*grant
	secrets map[string]bool  // what must not appear in errors
	pieces  map[string]int64 // by registry: the most that a request may bring
	streams []*stream
	// unstreamed are registries where a stream has failed.
	unstreamed map[string]bool
}

// New returns a client.
func New(opt Options) (*Client, error) {
	if opt.UserAgent == "" {
		opt.UserAgent = "hako"
	}
	if opt.Retries == 0 {
		opt.Retries = 5
	}
	if opt.StallTimeout == 0 {
		opt.StallTimeout = time.Minute
	}
	if opt.Keychain == nil {
		opt.Keychain = anonymousKeychain{}
	}
	if opt.RootCAs == nil {
		// Loaded now: later the files may be another root's. Without a pool
		// crypto/x509 decides by itself, as on platforms that have none.
		if pool, err := x509.SystemCertPool(); err == nil {
			opt.RootCAs = pool
		}
	}
	if opt.DialContext == nil {
		opt.DialContext = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	pull, err := newRouter(opt, opt.SkipTLSVerifyPull)
	if err != nil {
		return nil, err
	}
	push, err := newRouter(opt, opt.SkipTLSVerify)
	if err != nil {
		return nil, err
	}
	c := &Client{
		opt: opt, pull: pull, push: push,
		now: time.Now, sleep: sleep, told: map[string]bool{},
		grants: map[string]*grant{}, secrets: map[string]bool{}, pieces: map[string]int64{}, unstreamed: map[string]bool{},
	}
	c.addSecret(opt.Secrets...)
	return c, c.openPlaces()
}

// ParseReference reads a reference as docker does: without a registry it is
// Docker Hub's, there without a namespace it is in library/, and without tag
// and digest it is the tag latest. A tag beside a digest is dropped.
func ParseReference(s string) (name.Reference, error) {
	ref, err := name.ParseReference(s)
	if err == nil {
		return ref, nil
	}
	if strings.Contains(s, "@") {
		// ParseReference does not say what is wrong with a digest.
		if _, derr := name.NewDigest(s); derr != nil {
			err = derr
		}
	}
	return nil, fmt.Errorf("parse reference %q: %w", s, err)
}

func (c *Client) received(n int64) {
	if c.opt.Received != nil && n > 0 {
		c.opt.Received(n)
	}
}

func (c *Client) sent(n int64) {
	if c.opt.Sent != nil && n > 0 {
		c.opt.Sent(n)
	}
}
