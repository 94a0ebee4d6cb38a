// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func openMap(files map[string]string) func(string) ([]byte, error) {
	return func(p string) ([]byte, error) {
		if text, ok := files[p]; ok {
			return []byte(text), nil
		}
		return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
	}
}

// keyPEM returns a certificate and its key.
func keyPEM(t testing.TB, cert tls.Certificate) (certPEM, key string) {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})),
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

func TestHostsFile(t *testing.T) {
	for _, tt := range []struct {
		name, dir, text string
		want            Places
		problem         string
	}{
		{"server alone", "docker.io", `server = "https://registry-1.docker.io"`, Places{
			NoFallback: true, Mirrors: []Mirror{{Scheme: "https", Namespace: true}},
		}, ""},
		{"hosts in their order, then the registry", "docker.io", `
[host."https://z.example.com"]
  capabilities = ["pull", "resolve"]
[host."https://z.example.com".header]
  x-a = "b"
  x-c = ["d", "e"]
[host."http://a.example.com:5000/proxy"]
  dial_timeout = "3s"
[host."b.example.com/v2"]
[host."https://c.example.com/v2/hub"]
  override_path = true
  skip_verify = true
`, Places{NoFallback: true, Mirrors: []Mirror{
			{Host: "z.example.com", Scheme: "https", Namespace: true, Header: http.Header{"X-A": {"b"}, "X-C": {"d", "e"}}},
			{Host: "a.example.com:5000", Scheme: "http", Path: "/proxy/v2", Namespace: true, DialTimeout: 3 * time.Second},
			{Host: "b.example.com", Scheme: "https", Namespace: true},
			{Host: "c.example.com", Scheme: "https", Path: "/v2/hub", Namespace: true, TLS: &HostTLS{SkipVerify: true}},
			{Namespace: true},
		}}, ""},
		{"another server instead of the registry", "x.example.com", `
server = "https://other.example.com"
[host."https://m.example.com"]
  capabilities = ["resolve"]
`, Places{NoFallback: true, Mirrors: []Mirror{
			{Host: "m.example.com", Scheme: "https", NoPull: true, Namespace: true},
			{Host: "other.example.com", Scheme: "https", Namespace: true},
		}}, ""},
		{"pushes only", "x.example.com", `capabilities = ["push"]
[host."https://m.example.com"]`, Places{NoFallback: true, Mirrors: []Mirror{{Host: "m.example.com", Scheme: "https", Namespace: true}}}, ""},
		{"no TOML", "x", `server = `, Places{}, "x/hosts.toml: "},
		{"not known", "x", `skip-verify = true`, Places{}, `"skip-verify" is not known`},
		{"a capability", "x", `capabilities = ["delete"]`, Places{}, `capability "delete" is not known`},
		{"a file that is not there", "x", `ca = "no.pem"`, Places{}, "ca: open no.pem: file does not exist"},
		{"a password in the URL", "x", `server = "https://u:p@h.example.com"`, Places{}, "no URL of a registry"},
		{"for every registry", "_default", `skip_verify = true`, Places{}, "they would be for every registry"},
	} {
		places, _, err := HostsDir{Name: tt.dir, Open: openMap(map[string]string{"hosts.toml": tt.text})}.Read()
		switch {
		case tt.problem != "":
			if err == nil || !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.problem)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.name, err)
		default:
			if diff := cmp.Diff(tt.want, places); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.name, diff)
			}
		}
	}
}

func TestHostsCertificates(t *testing.T) {
	caPEM, cert := newCA(t)
	certPEM, key := keyPEM(t, cert)
	files := map[string]string{"ca.pem": string(caPEM), "c.cert": certPEM, "c.key": key, "both.pem": certPEM + key, "hosts.toml": `
server = "https://x.example.com"
ca = ["ca.pem", "/abs/ca.pem"]
client = [["c.cert", "c.key"], ["both.pem"]]
`, "/abs/ca.pem": string(caPEM)}
	_, own, err := HostsDir{Name: "x.example.com", Open: openMap(files)}.Read()
	if err != nil || len(own.Clients) != 2 || strings.Count(string(own.CAs), "BEGIN CERT") != 2 {
		t.Errorf("%d clients, %s, %v", len(own.Clients), own.CAs, err)
	}
	// Docker's layout, without a hosts.toml.
	delete(files, "hosts.toml")
	files["ca.crt"] = string(caPEM)
	d := HostsDir{Name: "x.example.com_5000_", Open: openMap(files), List: []string{"ca.crt", "c.cert", "c.key", "both.pem"}}
	places, own, err := d.Read()
	if err != nil || len(own.Clients) != 1 || len(own.CAs) == 0 || len(places.Mirrors) > 0 {
		t.Errorf("%+v, %v", own, err)
	}
	if d.Registry() != "x.example.com:5000" {
		t.Errorf("registry %q", d.Registry())
	}
	files["c.key"] = "no key"
	if _, _, err := d.Read(); err == nil || !strings.Contains(err.Error(), "c.cert: certificate and key") {
		t.Errorf("a key that is none: %v", err)
	}
}

func FuzzHostsFile(f *testing.F) {
	f.Add("server = \"https://a\"\n[host.\"http://b/c\"]\ncapabilities=[\"pull\"]\nheader={a=[\"b\"]}\n")
	f.Add("ca = [\"a\"]\nclient = [[\"a\",\"b\"]]\n")
	f.Fuzz(func(t *testing.T, text string) {
		places, _, err := HostsDir{Name: "x", Open: openMap(map[string]string{"hosts.toml": text})}.Read()
		if err != nil {
			return
		}
		for _, m := range places.Mirrors {
			if strings.ContainsAny(m.Host, "/@?# ") || m.Path != "" && !strings.HasPrefix(m.Path, "/") {
				t.Errorf("%q gives %+v", text, m)
			}
		}
	})
}
