// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux && runtimes

package kubernetes

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// The registry of the examples, and who may use it.
const (
	registryName = "registry.example.com"
	user         = "builder"
	password     = "sesame"
)

// A front is the registry as pods see it: with the name that the examples use,
// TLS and a password.
type front struct {
	certs string // file with the certificate authority

	mu    sync.Mutex
	blobs []string // repositories whose blobs were fetched
}

func serveRegistry(t *testing.T, state, backend string) *front {
	t.Helper()
	f := &front{certs: filepath.Join(state, "ca-certificates.crt")}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: backend})
	server := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{f.certificate(t)}}, ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			if repository, _, ok := strings.Cut(r.URL.Path, "/blobs/sha256:"); ok && r.Method == http.MethodGet {
				f.mu.Lock()
				f.blobs = append(f.blobs, strings.TrimPrefix(repository, "/v2/"))
				f.mu.Unlock()
			}
			proxy.ServeHTTP(w, r)
		}),
	}
	l, err := net.Listen("tcp", nodeIP+":443")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = server.Close() })
	return f
}

// fetched returns how many blobs of a repository were fetched since it was
// last asked.
func (f *front) fetched(repository string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, b := range f.blobs {
		if b == repository {
			n++
		}
	}
	f.blobs = nil
	return n
}

// certificate makes one for the registry's name that is its own authority.
func (f *front) certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: registryName}, DNSNames: []string{registryName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.certs, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serveNames is the cluster's name server. It knows one name.
func serveNames(t *testing.T) {
	t.Helper()
	conn, err := net.ListenPacket("udp", nodeIP+":53")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = conn.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer, err := resolve(buf[:n]); err == nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
}

func resolve(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	if len(m.Questions) != 1 {
		return nil, fmt.Errorf("%d questions", len(m.Questions))
	}
	q := m.Questions[0]
	m.Response, m.Authoritative, m.RecursionAvailable, m.Additionals = true, true, true, nil
	switch {
	case q.Name.String() != registryName+".":
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60},
			Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(nodeIP).To4())},
		}}
	}
	return m.Pack()
}
