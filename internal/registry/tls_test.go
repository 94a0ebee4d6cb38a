// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// newCA returns a certificate authority as PEM and a certificate of it for
// all the hosts that tests use.
func newCA(t *testing.T) (caPEM []byte, cert tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{"a.example.com", "b.example.com"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}),
		tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: key}
}

// newTLSFront serves all hosts with cert; dial leads there.
func newTLSFront(t *testing.T, cert tls.Certificate, fault faultFunc) (f *front, dial Options) {
	f = &front{fault: fault}
	f.Server = httptest.NewUnstartedServer(f.handler())
	f.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.StartTLS()
	t.Cleanup(f.Close)
	var d net.Dialer
	dial.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return d.DialContext(ctx, network, f.Listener.Addr().String())
	}
	dial.RootCAs = x509.NewCertPool() // nothing of this machine
	return f, dial
}

func TestTLS(t *testing.T) {
	caPEM, cert := newCA(t)
	otherPEM, _ := newCA(t)
	_, base := newTLSFront(t, cert, nil)
	tests := []struct {
		name       string
		set        func(*Options)
		host       string
		pull, push bool // whether it works
	}{
		{"unknown authority", func(o *Options) {}, "a.example.com", false, false},
		{"authority for all", func(o *Options) { o.RootCAs = x509.NewCertPool(); o.RootCAs.AppendCertsFromPEM(caPEM) }, "a.example.com", true, true},
		{"authority for the host", func(o *Options) { o.Certificates = map[string][]byte{"a.example.com": caPEM} }, "a.example.com", true, true},
		{"authority for the host and port", func(o *Options) { o.Certificates = map[string][]byte{"a.example.com:8443": caPEM} }, "a.example.com:8443", true, true},
		{"authority for another host", func(o *Options) { o.Certificates = map[string][]byte{"a.example.com": caPEM} }, "b.example.com", false, false},
		{"authority for another port", func(o *Options) { o.Certificates = map[string][]byte{"a.example.com:8443": caPEM} }, "a.example.com", false, false},
		{"other authority for the host", func(o *Options) { o.Certificates = map[string][]byte{"a.example.com": otherPEM} }, "a.example.com", false, false},
		{"not verified for pushes", func(o *Options) { o.SkipTLSVerify = true }, "a.example.com", false, true},
		{"not verified for pulls", func(o *Options) { o.SkipTLSVerifyPull = true }, "a.example.com", true, false},
		{"not verified for the host", func(o *Options) { o.SkipTLSVerifyRegistries = []string{"a.example.com"} }, "a.example.com", true, true},
		{"not verified for another host", func(o *Options) { o.SkipTLSVerifyRegistries = []string{"a.example.com"} }, "b.example.com", false, false},
		{"authority for the host, pushes not verified", func(o *Options) {
			o.Certificates = map[string][]byte{"a.example.com": otherPEM}
			o.SkipTLSVerify = true
		}, "a.example.com", false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opt := base
			tt.set(&opt)
			c, slept := newClient(t, opt)
			repo, err := name.NewRepository(tt.host + "/team/app")
			if err != nil {
				t.Fatal(err)
			}
			err = c.CheckPushPermission(t.Context(), repo)
			if (err == nil) != tt.push {
				t.Errorf("push: %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), "certificate") {
				t.Errorf("push: unclear error: %v", err)
			}
			_, err = c.FetchManifest(t.Context(), repo.Tag("absent"))
			if (err != nil && strings.Contains(err.Error(), "(404)")) != tt.pull {
				t.Errorf("pull: %v", err)
			}
			if len(slept.d) > 0 {
				t.Error("retried a certificate")
			}
		})
	}
	if _, err := New(Options{Certificates: map[string][]byte{"a.example.com": []byte("no PEM")}}); err == nil {
		t.Error("New accepts a certificate that is none")
	}
}

func TestInsecure(t *testing.T) {
	f := newFront(t, nil) // plain HTTP
	var d net.Dialer
	base := Options{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return d.DialContext(ctx, network, f.Listener.Addr().String())
	}}
	tests := []struct {
		name       string
		set        func(*Options)
		host       string
		pull, push bool
	}{
		{"not allowed", func(o *Options) {}, "a.example.com:5000", false, false},
		{"pushes", func(o *Options) { o.Insecure = true }, "a.example.com:5000", false, true},
		{"pulls", func(o *Options) { o.InsecurePull = true }, "a.example.com:5000", true, false},
		{"host", func(o *Options) { o.InsecureRegistries = []string{"a.example.com:5000"} }, "a.example.com:5000", true, true},
		{"other host", func(o *Options) { o.InsecureRegistries = []string{"a.example.com"} }, "a.example.com:5000", false, false},
		{"localhost", func(o *Options) {}, "localhost:5000", true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opt := base
			tt.set(&opt)
			c, _ := newClient(t, opt)
			repo, err := name.NewRepository(tt.host + "/team/app")
			if err != nil {
				t.Fatal(err)
			}
			if err := c.CheckPushPermission(t.Context(), repo); (err == nil) != tt.push {
				t.Errorf("push: %v", err)
			}
			_, err = c.FetchManifest(t.Context(), repo.Tag("absent"))
			if (err != nil && strings.Contains(err.Error(), "(404)")) != tt.pull {
				t.Errorf("pull: %v", err)
			}
		})
	}
}

// A registry in HTTPS must not get us to send anything in the clear.
func TestNoDowngrade(t *testing.T) {
	_, cert := newCA(t)
	plain := newFront(t, nil)
	_, opt := newTLSFront(t, cert, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" {
			return false
		}
		http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	})
	opt.SkipTLSVerify, opt.SkipTLSVerifyPull = true, true
	c, _ := newClient(t, opt)
	repo, err := name.NewRepository("a.example.com/team/app")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.FetchManifest(t.Context(), repo.Tag("x")); err == nil || !strings.Contains(err.Error(), "plain http") {
		t.Errorf("pull: %v", err)
	}
	if err := c.CheckPushPermission(t.Context(), repo); err == nil || !strings.Contains(err.Error(), "plain http") {
		t.Errorf("push: %v", err)
	}
	if len(plain.log) > 0 {
		t.Errorf("asked in the clear: %v", plain.log)
	}
}

// A client certificate is shown to its host and to no other, and so are the
// settings of hosts.toml.
func TestClientCertificate(t *testing.T) {
	caPEM, cert := newCA(t)
	var mu sync.Mutex
	shown := map[string]int{}
	f := &front{}
	f.Server = httptest.NewUnstartedServer(f.handler())
	f.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
	f.TLS.VerifyConnection = func(s tls.ConnectionState) error {
		mu.Lock()
		defer mu.Unlock()
		shown[s.ServerName] += len(s.PeerCertificates)
		return nil
	}
	f.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.StartTLS()
	t.Cleanup(f.Close)
	opt := Options{RootCAs: x509.NewCertPool(), DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, f.Listener.Addr().String())
	}}
	opt.Hosts = map[string]HostTLS{"a.example.com": {CAs: caPEM, Clients: []tls.Certificate{cert}}, "b.example.com": {CAs: caPEM}}
	c, _ := newClient(t, opt)
	for _, host := range []string{"a.example.com", "b.example.com"} {
		repo, err := name.NewRepository(host + "/team/app")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CheckPushPermission(t.Context(), repo); err != nil {
			t.Error(err)
		}
		if _, err := c.FetchManifest(t.Context(), repo.Tag("absent")); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if shown["a.example.com"] < 2 || shown["b.example.com"] != 0 {
		t.Errorf("shown: %v", shown)
	}
}
