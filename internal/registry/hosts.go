// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// DefaultHosts is the directory of hosts.toml for registries without one.
const DefaultHosts = "_default"

// A HostsDir reads containerd's configuration of one registry. Its files are
// opened through Open, relative to the directory or absolute.
type HostsDir struct {
	Name string // of the directory: "docker.io", "localhost_5000_", "_default"
	Open func(path string) ([]byte, error)
	List []string // names of the files in the directory
}

// hostsTable is a table of hosts.toml.
type hostsTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// Registry returns the host that the directory is for, "" for the default.
func (d HostsDir) Registry() string {
	if d.Name == DefaultHosts {
		return ""
	}
	// A port stands between underscores where a file's name has no colon.
	if host, port, ok := strings.Cut(strings.TrimSuffix(d.Name, "_"), "_"); ok && strings.HasSuffix(d.Name, "_") {
		return settingHost(host + ":" + port)
	}
	return settingHost(d.Name)
}

// Read returns where pulls from the registry go, and the TLS settings of the
// registry itself, which pushes have too. A directory without a hosts.toml has
// certificates in docker's layout: *.crt, and *.cert with *.key.
func (d HostsDir) Read() (Places, HostTLS, error) {
	text, err := d.Open("hosts.toml")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		own, err := d.certificates()
		if err == nil && d.Registry() == "" && (len(own.CAs) > 0 || len(own.Clients) > 0) {
			err = fmt.Errorf("read %s: its certificates would be for every registry", d.Name)
		}
		return Places{}, own, err
	case err != nil:
		return Places{}, HostTLS{}, err
	}
	places, own, err := d.parse(text)
	if err != nil {
		return Places{}, HostTLS{}, fmt.Errorf("read %s/hosts.toml: %w", d.Name, err)
	}
	return places, own, nil
}

func (d HostsDir) parse(text []byte) (places Places, own HostTLS, err error) {
	var doc struct {
		hostsTable
		Server string                `toml:"server"`
		Hosts  map[string]hostsTable `toml:"host"`
	}
	// What is not known could be what keeps a host from being asked.
	if err := toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields().Decode(&doc); err != nil {
		var unknown *toml.StrictMissingError
		if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
			return places, own, fmt.Errorf("%q is not known", strings.Join(unknown.Errors[0].Key(), "."))
		}
		return places, own, err
	}
	for _, url := range hostOrder(text) {
		m, err := d.mirror(url, doc.Hosts[url])
		if err != nil {
			return places, own, fmt.Errorf("host %q: %w", url, err)
		}
		places.Mirrors = append(places.Mirrors, m)
	}
	// The file's own settings are for the server, which comes last.
	server, err := d.mirror(doc.Server, doc.hostsTable)
	if err != nil {
		return places, own, fmt.Errorf("server %q: %w", doc.Server, err)
	}
	if server.Host == "" && server.TLS != nil && d.Registry() == "" {
		return places, own, errors.New("ca, client and skip_verify stand without a server or a host: they would be for every registry")
	}
	isSelf := server.Host == "" || server.Path == "" && sameRegistry(server.Host, d.Registry())
	if isSelf && server.TLS != nil && d.Registry() != "" {
		own = *server.TLS
	}
	if isSelf {
		server.Host = ""
	}
	if !server.NoPull || !server.NoTags {
		places.Mirrors = append(places.Mirrors, server)
	}
	places.NoFallback = true
	return places, own, nil
}

// sameRegistry knows the names of Docker Hub.
func sameRegistry(a, b string) bool {
	hub := func(h string) string {
		if h = settingHost(h); h == "registry-1.docker.io" {
			return "index.docker.io"
		}
		return h
	}
	return hub(a) == hub(b)
}

// hostOrder returns the names of the tables [host."…"] as they stand in the
// file, whose order counts.
func hostOrder(text []byte) []string {
	var order []string
	p := unstable.Parser{}
	p.Reset(text)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var parts []string
		for it := e.Key(); it.Next(); {
			parts = append(parts, string(it.Node().Data))
		}
		if len(parts) >= 2 && parts[0] == "host" && !slices.Contains(order, parts[1]) {
			order = append(order, parts[1])
		}
	}
	return order
}

// mirror reads one table.
func (d HostsDir) mirror(server string, t hostsTable) (Mirror, error) {
	m := Mirror{Namespace: true, NoTags: len(t.Capabilities) > 0, NoPull: len(t.Capabilities) > 0}
	for _, c := range t.Capabilities {
		switch strings.ToLower(c) {
		case "pull":
			m.NoPull = false
		case "resolve":
			m.NoTags = false
		case "push", "referrers":
		default:
			return m, fmt.Errorf("capability %q is not known", c)
		}
	}
	if err := m.setServer(server, t.OverridePath); err != nil {
		return m, err
	}
	if t.DialTimeout != "" {
		var err error
		if m.DialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil {
			return m, fmt.Errorf("dial_timeout: %w", err)
		}
	}
	for k, v := range t.Header {
		values, err := stringList(v)
		if err != nil {
			return m, fmt.Errorf("header %s: %w", k, err)
		}
		if m.Header == nil {
			m.Header = http.Header{}
		}
		m.Header[http.CanonicalHeaderKey(k)] = values
	}
	var err error
	m.TLS, err = d.tls(t)
	return m, err
}

// setServer takes host and path of a URL, which may have no scheme.
func (m *Mirror) setServer(server string, isWhole bool) error {
	if server == "" {
		return nil
	}
	if !strings.HasPrefix(server, "http://") && !strings.HasPrefix(server, "https://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("it is no URL of a registry, such as https://mirror.example.com")
	}
	m.Scheme, m.Host = u.Scheme, u.Host
	switch p := path.Clean("/" + u.Path); {
	case isWhole:
		m.Path = p
	case !strings.HasSuffix(p, "/v2"):
		m.Path = path.Join(p, "v2")
	default:
		m.Path = p
	}
	if m.Path == "/v2" {
		m.Path = ""
	}
	return nil
}

// tls reads the certificates that a table names; nil if it has no such setting.
func (d HostsDir) tls(t hostsTable) (*HostTLS, error) {
	if t.CA == nil && t.Client == nil && t.SkipVerify == nil {
		return nil, nil //nolint:nilnil // nothing is set, and nothing is wrong
	}
	out := &HostTLS{SkipVerify: t.SkipVerify != nil && *t.SkipVerify}
	if t.CA != nil {
		files, err := stringList(t.CA)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		for _, f := range files {
			pem, err := d.Open(f)
			if err != nil {
				return nil, fmt.Errorf("ca: %w", err)
			}
			*out = out.with(HostTLS{CAs: pem})
		}
	}
	pairs, err := clientPairs(t.Client)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	for _, p := range pairs {
		cert, err := d.clientCert(p[0], p[1])
		if err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
		out.Clients = append(out.Clients, cert)
	}
	return out, nil
}

// clientPairs reads one file with certificate and key, several, or pairs.
func clientPairs(v any) ([][2]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return [][2]string{{v, v}}, nil
	case []any:
		var pairs [][2]string
		for _, item := range v {
			files, err := stringList(item)
			switch {
			case err != nil:
				return nil, err
			case len(files) == 1:
				pairs = append(pairs, [2]string{files[0], files[0]})
			case len(files) == 2:
				pairs = append(pairs, [2]string{files[0], files[1]})
			default:
				return nil, errors.New("want a certificate and a key")
			}
		}
		return pairs, nil
	}
	return nil, fmt.Errorf("want a file, or pairs of files, not %v", v)
}

func stringList(v any) ([]string, error) {
	switch v := v.(type) {
	case string:
		return []string{v}, nil
	case []any:
		var list []string
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, errors.New("want text")
			}
			list = append(list, s)
		}
		return list, nil
	}
	return nil, errors.New("want text")
}

func (d HostsDir) clientCert(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := d.Open(certFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := d.Open(keyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	return ClientCertificate(cert, key)
}

// certificates reads a directory in docker's layout.
func (d HostsDir) certificates() (own HostTLS, err error) {
	for _, f := range d.List {
		switch path.Ext(f) {
		case ".crt":
			pem, err := d.Open(f)
			if err != nil {
				return own, err
			}
			own = own.with(HostTLS{CAs: pem})
		case ".cert":
			key := strings.TrimSuffix(f, ".cert") + ".key"
			if !slices.Contains(d.List, key) {
				key = f
			}
			cert, err := d.clientCert(f, key)
			if err != nil {
				return own, fmt.Errorf("read %s/%s: %w", d.Name, f, err)
			}
			own.Clients = append(own.Clients, cert)
		}
	}
	return own, nil
}

// ClientCertificate reads a certificate and its key in PEM form.
func ClientCertificate(certPEM, keyPEM []byte) (tls.Certificate, error) {
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		// Its text names what is wrong and shows nothing of the key.
		return cert, fmt.Errorf("certificate and key: %w", err)
	}
	return cert, nil
}
