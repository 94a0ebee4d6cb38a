// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"hako/internal/registry"
)

// A hostsConfig is what containerd's hosts.toml files say, by registry; "" is
// for those without a file of their own.
type hostsConfig struct {
	places map[string]registry.Places
	tls    map[string]registry.HostTLS
}

// openHosts reads the directories, all of whose files are read now: later they
// may be another root's. Of two directories for one registry the first counts.
func openHosts(dirs []string) (*hostsConfig, error) {
	h := &hostsConfig{places: map[string]registry.Places{}, tls: map[string]registry.HostTLS{}}
	for _, dir := range dirs {
		list, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("read the directory of --hosts-dir: %w", err)
		}
		for _, e := range list {
			path := filepath.Join(dir, e.Name())
			if fi, err := os.Stat(path); err != nil || !fi.IsDir() || strings.HasPrefix(e.Name(), ".") {
				continue // a ConfigMap's ..data, or no registry
			}
			if err := h.add(path, e.Name()); err != nil {
				return nil, fmt.Errorf("--hosts-dir %s: %w", dir, err)
			}
		}
	}
	return h, nil
}

func (h *hostsConfig) add(path, base string) error {
	d := registry.HostsDir{Name: base, Open: func(p string) ([]byte, error) {
		if !filepath.IsAbs(p) {
			p = filepath.Join(path, p)
		}
		return os.ReadFile(p)
	}}
	list, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range list {
		d.List = append(d.List, e.Name())
	}
	reg := d.Registry()
	if _, ok := h.places[reg]; ok {
		return nil
	}
	places, tls, err := d.Read()
	if err != nil {
		return err
	}
	h.places[reg], h.tls[reg] = places, tls
	return nil
}

// places joins the flags' mirrors with those of hosts.toml, which come after
// them.
func (r *Registry) places(hosts *hostsConfig) (map[string]registry.Places, error) {
	all := map[string]registry.Places{}
	for reg, p := range hosts.places {
		all[reg] = p
	}
	for from, list := range r.Mirrors {
		reg, err := name.NewRegistry(from)
		if err != nil {
			return nil, fmt.Errorf("--registry-map: %w", err)
		}
		own, ok := all[reg.RegistryStr()]
		if !ok {
			own = all[""]
		}
		var mirrors []registry.Mirror
		for _, to := range list {
			m, err := parseMirror(to)
			if err != nil {
				return nil, err
			}
			mirrors = append(mirrors, m)
		}
		own.Mirrors = append(mirrors, own.Mirrors...)
		all[reg.RegistryStr()] = own
	}
	if r.NoFallback {
		isSelf := func(m registry.Mirror) bool { return m.Host == "" }
		for reg, p := range all {
			p.NoFallback = true
			p.Mirrors = slices.DeleteFunc(slices.Clone(p.Mirrors), isSelf)
			all[reg] = p
		}
	}
	return all, nil
}

// proxySecrets returns the passwords in the proxies' URLs, as they are there and
// as they are meant. A URL that is none is not repeated: it may hold one.
func proxySecrets(env Env) (secrets []string, err error) {
	for _, names := range [][]string{{"HTTP_PROXY", "http_proxy"}, {"HTTPS_PROXY", "https_proxy"}} {
		value := first(env, names...)
		if value == "" {
			continue
		}
		if !strings.Contains(value, "://") {
			value = "http://" + value // as httpproxy reads it
		}
		u, err := url.Parse(value)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("%s is no URL of a proxy, such as http://proxy.example.com:3128", names[0])
		}
		password, _ := u.User.Password()
		if len(password) < 4 {
			continue // it would blacken ordinary words
		}
		secrets = append(secrets, password)
		if _, raw, ok := strings.Cut(u.User.String(), ":"); ok && raw != password {
			secrets = append(secrets, raw)
		}
	}
	return secrets, nil
}

// userAgent is what registries are told of this program and of what called it,
// as kaniko tells them.
func userAgent(opt *Options) string {
	agent := opt.Registry.Program
	if agent == "" {
		agent = "hako"
	}
	if by := opt.Env.Get("UPSTREAM_CLIENT_TYPE"); by != "" {
		agent += "," + by
	}
	// What is no visible ASCII has no place in a header.
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return -1
		}
		return c
	}, agent)
}

// parseMirror reads host[:port][/prefix].
func parseMirror(s string) (m registry.Mirror, err error) {
	rest, isPlain := strings.CutPrefix(s, "http://")
	if isPlain {
		m.Scheme = "http"
	}
	rest = strings.TrimPrefix(rest, "https://")
	m.Host, m.Prefix, _ = strings.Cut(rest, "/")
	m.Prefix = strings.Trim(m.Prefix, "/")
	if m.Host == "" {
		return m, fmt.Errorf("mirror %q: it has no host", s)
	}
	reg, err := name.NewRegistry(m.Host)
	if err != nil {
		return m, fmt.Errorf("mirror %q: %w", s, err)
	}
	if m.Prefix != "" {
		if _, err := name.NewRepository(reg.RegistryStr() + "/" + m.Prefix); err != nil {
			return m, fmt.Errorf("mirror %q: %w", s, err)
		}
	}
	return m, nil
}

// openCertificates reads the certificates that flags name for single hosts.
func (r *Registry) openCertificates(hosts *hostsConfig) (map[string][]byte, map[string]registry.HostTLS, error) {
	certs := make(map[string][]byte)
	for host, path := range r.Certificates {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, fmt.Errorf("read the certificate for %s: %w", host, err)
		}
		certs[host] = pem
	}
	for host, files := range r.ClientCertificates {
		certPEM, err := os.ReadFile(files.Cert)
		if err != nil {
			return nil, nil, fmt.Errorf("read the client certificate for %s: %w", host, err)
		}
		keyPEM, err := os.ReadFile(files.Key)
		if err != nil {
			return nil, nil, fmt.Errorf("read the client key for %s: %w", host, err)
		}
		cert, err := registry.ClientCertificate(certPEM, keyPEM)
		if err != nil {
			return nil, nil, fmt.Errorf("read the client certificate for %s: %w", host, err)
		}
		reg, err := name.NewRegistry(host)
		if err != nil {
			return nil, nil, fmt.Errorf("--registry-client-cert: %w", err)
		}
		t := hosts.tls[reg.RegistryStr()]
		// What a flag says is shown first.
		t.Clients = slices.Insert(slices.Clone(t.Clients), 0, cert)
		hosts.tls[reg.RegistryStr()] = t
	}
	return certs, hosts.tls, nil
}
