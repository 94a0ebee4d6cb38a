// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/net/http/httpproxy"

	"hako/internal/keychain"
	"hako/internal/registry"
	"hako/internal/source"
)

// maxSecret is BuildKit's limit of a secret's size.
const maxSecret = 500 << 10

// A network is how the outside is reached, read once: while an image's root is
// installed, /etc and /usr/share are that image's.
type network struct {
	hosts, resolvConf []byte
	roots             *x509.CertPool
	dial              func(ctx context.Context, network, addr string) (net.Conn, error)
	proxy             func(*http.Request) (*url.URL, error)
	note              func(text string) // shows a line; nil for none
	secrets           []string          // passwords of proxies
}

func openNetwork(env Env) (*network, error) {
	n := &network{hosts: readIfThere("/etc/hosts"), resolvConf: readIfThere("/etc/resolv.conf")}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("load certificate authorities: %w", err)
	}
	n.roots = roots
	n.dial = source.NewDialer(n.hosts, n.resolvConf).DialContext
	if n.secrets, err = proxySecrets(env); err != nil {
		return nil, err
	}
	cfg := httpproxy.Config{
		HTTPProxy: first(env, "HTTP_PROXY", "http_proxy"), HTTPSProxy: first(env, "HTTPS_PROXY", "https_proxy"), NoProxy: first(env, "NO_PROXY", "no_proxy"),
	}
	choose := cfg.ProxyFunc()
	n.proxy = func(r *http.Request) (*url.URL, error) { return choose(r.URL) }
	return n, nil
}

func readIfThere(path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return b
}

func first(env Env, names ...string) string {
	for _, n := range names {
		if v := env.Get(n); v != "" {
			return v
		}
	}
	return ""
}

// client returns an HTTP client for what is not a registry.
func (n *network) client() *http.Client {
	t := &http.Transport{
		DialContext: n.dial, Proxy: n.proxy, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second,
		TLSHandshakeTimeout: 20 * time.Second, ResponseHeaderTimeout: time.Minute,
	}
	t.TLSClientConfig = tlsConfig(n.roots)
	return &http.Client{Transport: t}
}

// insecureClient returns one that does not check certificates.
func (n *network) insecureClient() *http.Client {
	c := n.client()
	if t, ok := c.Transport.(*http.Transport); ok {
		t.TLSClientConfig.InsecureSkipVerify = true
	}
	return c
}

// openRegistry returns the client for all registries of the build.
func openRegistry(opt *Options, n *network, keys *keychain.Chain, received, sent func(int64)) (*registry.Client, error) {
	return newRegistry(opt, n, keys, received, sent, func(*registry.Options) {})
}

// newRegistry returns a client with options that tune may change.
func newRegistry(opt *Options, n *network, keys *keychain.Chain, received, sent func(int64), tune func(*registry.Options)) (_ *registry.Client, err error) {
	r := &opt.Registry
	hosts, err := openHosts(r.HostsDirs)
	if err != nil {
		return nil, err
	}
	mirrors, err := r.places(hosts)
	if err != nil {
		return nil, err
	}
	certs, tls, err := r.openCertificates(hosts)
	if err != nil {
		return nil, err
	}
	ro := registry.Options{
		Insecure: r.Insecure, InsecurePull: r.InsecurePull, InsecureRegistries: r.InsecureRegistries,
		SkipTLSVerify: r.SkipTLSVerify, SkipTLSVerifyPull: r.SkipTLSVerifyPull, SkipTLSVerifyRegistries: r.SkipTLSVerifyRegistries,
		RootCAs: n.roots, Certificates: certs, Hosts: tls, Mirrors: mirrors, Note: n.note, Keychain: keys, DialContext: n.dial, Proxy: n.proxy,
		Retries: 5, PushRetries: r.PushRetry, PullRetries: r.PullRetry, StreamRetries: max(r.PullRetry, r.StreamRetry),
		UserAgent: userAgent(opt), Secrets: n.secrets, Received: received, Sent: sent,
	}
	tune(&ro)
	return registry.New(ro)
}

// A vault has the secrets and ssh agents that commands may ask for.
type vault struct {
	secrets map[string][]byte
	agents  map[string]func(context.Context) (net.Conn, error)
}

func openVault(opt *Options) (*vault, error) {
	v := &vault{secrets: make(map[string][]byte), agents: make(map[string]func(context.Context) (net.Conn, error))}
	for _, s := range opt.Secrets {
		b := s.Value
		if b == nil {
			var err error
			if b, err = os.ReadFile(s.File); err != nil {
				return nil, fmt.Errorf("read the secret %q: %w", s.ID, err)
			}
		}
		if len(b) > maxSecret {
			return nil, fmt.Errorf("the secret %q has %d bytes; the limit is %d", s.ID, len(b), maxSecret)
		}
		v.secrets[s.ID] = b
	}
	for _, a := range opt.SSH {
		dial, err := openAgent(a, opt.Env)
		if err != nil {
			return nil, fmt.Errorf("--ssh %s: %w", a.ID, err)
		}
		v.agents[a.ID] = dial
	}
	return v, nil
}

func (v *vault) secret(id string) ([]byte, bool, error) {
	b, ok := v.secrets[id]
	return b, ok, nil
}

func (v *vault) agent(id string) func(context.Context) (net.Conn, error) { return v.agents[id] }

// openAgent returns how to reach one agent: the socket that is given or that
// SSH_AUTH_SOCK names, or one of our own that holds the given keys.
func openAgent(a SSHAgent, env Env) (func(context.Context) (net.Conn, error), error) {
	paths := a.Paths
	if len(paths) == 0 {
		if env.Get("SSH_AUTH_SOCK") == "" {
			return nil, errors.New("SSH_AUTH_SOCK is not set; name a socket or a key: --ssh " + a.ID + "=PATH")
		}
		paths = []string{env.Get("SSH_AUTH_SOCK")}
	}
	fi, err := os.Stat(paths[0])
	if err != nil {
		return nil, err
	}
	if fi.Mode()&fs.ModeSocket != 0 {
		if len(paths) > 1 {
			return nil, errors.New("only one socket can be given")
		}
		return dialSocket(paths[0])
	}
	ring := agent.NewKeyring()
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		key, err := ssh.ParseRawPrivateKey(b)
		if err != nil {
			return nil, fmt.Errorf("read the key %s: %w", p, err)
		}
		if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			return nil, fmt.Errorf("add the key %s: %w", p, err)
		}
	}
	return func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer ours.Close()
			_ = agent.ServeAgent(ring, ours) // ends when theirs is closed
		}()
		return theirs, nil
	}, nil
}

// frontendOpts returns the options for BuildKit's frontend.
func frontendOpts(opt *Options, c *contexts) map[string]string {
	o := map[string]string{"target": opt.targets()[0].Stage}
	for k, v := range c.opts {
		o[k] = v
	}
	for k, v := range opt.BuildArgs {
		o["build-arg:"+k] = v
	}
	for k, v := range opt.Labels {
		o["label:"+k] = v
	}
	var list []string
	for _, p := range opt.Platforms {
		list = append(list, formatPlatform(p))
	}
	if len(list) > 0 {
		o["platform"] = strings.Join(list, ",")
	}
	if len(list) > 1 {
		o["multi-platform"] = "true"
	}
	if opt.NoCache {
		o["no-cache"] = "" // all stages
	} else if len(opt.NoCacheStages) > 0 {
		o["no-cache"] = strings.Join(opt.NoCacheStages, ",")
	}
	if len(opt.AddHosts) > 0 {
		var hosts []string
		for _, h := range opt.AddHosts {
			hosts = append(hosts, h.Host+"="+h.IP)
		}
		o["add-hosts"] = strings.Join(hosts, ",")
	}
	if opt.NetworkMode != "" && opt.NetworkMode != "default" {
		o["force-network-mode"] = opt.NetworkMode
	}
	if opt.Hostname != "" {
		o["hostname"] = opt.Hostname
	}
	if opt.ShmSize != 0 {
		o["shm-size"] = strconv.FormatInt(opt.ShmSize, 10)
	}
	if len(opt.Ulimits) > 0 {
		var limits []string
		for _, u := range opt.Ulimits {
			limits = append(limits, fmt.Sprintf("%s=%d:%d", u.Name, u.Soft, u.Hard))
		}
		o["ulimit"] = strings.Join(limits, ",")
	}
	switch opt.Syntax {
	case "", "builtin":
	default:
		o["build-arg:BUILDKIT_SYNTAX"] = opt.Syntax
	}
	return o
}

// RegistryClient returns a client for registries outside of a build.
func RegistryClient(r Registry, env Env) (*registry.Client, error) {
	return registryClient(r, env, func(*registry.Options) {})
}

func registryClient(r Registry, env Env, tune func(*registry.Options)) (*registry.Client, error) {
	n, err := openNetwork(env)
	if err != nil {
		return nil, err
	}
	opt := &Options{Registry: r, Env: env}
	keys, err := openKeychain(opt, n, nil)
	if err != nil {
		return nil, err
	}
	return newRegistry(opt, n, keys, nil, nil, tune)
}
