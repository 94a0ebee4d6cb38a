// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"
)

// TestTLSScripts runs the scripts about certificates. $MTLS is a registry that
// asks for a certificate; its own is in $CA, and client.pem and client.key are
// one to show. $PROXY is a proxy in TLS, with the same certificate, that asks for
// a password and leads to another registry in TLS.
func TestTLSScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/tls",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"hosts": writeHosts},
		Setup: func(env *testscript.Env) error {
			s := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
			s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.StartTLS()
			env.Defer(s.Close)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("MTLS", s.Listener.Addr().String())
			env.Setenv("PROXY", startProxy(env))
			env.Setenv("CA", filepath.Join(env.WorkDir, "ca.pem"))
			env.Setenv("HAKO_WORK_DIR", filepath.Join(env.WorkDir, "work"))
			cert, key, err := clientCertificate()
			if err != nil {
				return err
			}
			for name, block := range map[string]*pem.Block{
				"ca.pem":     {Type: "CERTIFICATE", Bytes: s.Certificate().Raw},
				"other.pem":  {Type: "CERTIFICATE", Bytes: cert},
				"client.pem": {Type: "CERTIFICATE", Bytes: cert},
				"client.key": {Type: "EC PRIVATE KEY", Bytes: key},
			} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, name), pem.EncodeToMemory(block), 0o600); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

// startProxy starts a registry and a proxy to it. The proxy refuses whoever
// shows it a certificate: what is for a registry is not for it.
func startProxy(env *testscript.Env) string {
	reg := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	reg.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	reg.Config.ErrorLog = log.New(io.Discard, "", 0)
	reg.StartTLS()
	env.Defer(reg.Close)
	next := tunnel(reg.Listener.Addr().String(), http.NotFoundHandler())
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:proxy-password"))
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case len(r.TLS.PeerCertificates) > 0:
			w.WriteHeader(http.StatusForbidden)
		case r.Header.Get("Proxy-Authorization") != want:
			w.WriteHeader(http.StatusProxyAuthRequired)
		default:
			next.ServeHTTP(w, r)
		}
	}))
	proxy.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	proxy.Config.ErrorLog = log.New(io.Discard, "", 0)
	proxy.StartTLS()
	env.Defer(proxy.Close)
	return proxy.Listener.Addr().String()
}

func clientCertificate() (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if cert, err = x509.CreateCertificate(rand.Reader, c, c, &private.PublicKey, private); err != nil {
		return nil, nil, err
	}
	key, err = x509.MarshalECPrivateKey(private)
	return cert, key, err
}

// writeHosts writes hosts.toml for $MTLS into a directory.
func writeHosts(ts *testscript.TestScript, _ bool, args []string) {
	host := ts.Getenv("MTLS")
	dir := filepath.Join(ts.MkAbs(args[0]), strings.ReplaceAll(host, ":", "_")+"_")
	ts.Check(os.MkdirAll(dir, 0o755))
	text := fmt.Sprintf("server = %q\nca = %q\nclient = [[%q, %q]]\n", "https://"+host, ts.Getenv("CA"), ts.MkAbs("client.pem"), ts.MkAbs("client.key"))
	ts.Check(os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600))
}
