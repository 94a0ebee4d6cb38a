// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hako/test/gitserver"
)

const (
	azureKey   = "cGxhbnRlZC1rZXk=" // of the account myaccount
	azureHost  = "myaccount.blob.core.windows.net"
	acrHost    = "mycr.azurecr.io"
	acrRefresh = "planted-refresh"
	ecrHost    = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
	gitToken   = "planted-git-token"
)

// clouds stand in TLS under the names of Docker Hub, Google, Amazon, Azure and
// GitHub. Behind them are real servers: the reference registry, azurite, git.
// What has no server that could run here is told apart by the token it gives.
type clouds struct {
	ip, ca   string // what the names lead to; the authority's file
	metadata string // host:port of Google's metadata server
	registry string // the registry itself, without credentials
	azurite  string
	git      string // the directory of repositories
	front    http.Handler
	storage  http.Handler
	repos    http.Handler

	mu     sync.Mutex
	pushed map[string]string // who pushed a reference
	pulled []string          // paths of blobs
}

// A cloudRegistry is a name under which there is a registry.
type cloudRegistry struct {
	realm string // of its token service; with none it asks for a password
	// who tells the account of a user and a password, "" for a wrong one.
	who func(user, password string) string
}

func cloudRegistries() map[string]cloudRegistry {
	is := func(user, password string) func(string, string) string {
		return func(u, p string) string {
			if u == user && p == password {
				return user
			}
			return ""
		}
	}
	google := func(user, password string) string {
		if who, ok := strings.CutPrefix(password, "ya29."); ok && user == "oauth2accesstoken" {
			return who
		}
		return ""
	}
	return map[string]cloudRegistry{
		"index.docker.io":   {realm: "https://auth.docker.io/token", who: is("USER", "PASSWORD")},
		"gcr.io":            {realm: "https://gcr.io/v2/token", who: google},
		"us-docker.pkg.dev": {realm: "https://us-docker.pkg.dev/v2/token", who: google},
		ecrHost:             {who: is("AWS", "planted-ecr")},
		acrHost:             {realm: "https://" + acrHost + "/oauth2/token"},
	}
}

// cloudNames are all hosts that are here.
func cloudNames() []string {
	return []string{
		"index.docker.io", "auth.docker.io", "gcr.io", "us-docker.pkg.dev", "oauth2.googleapis.com", ecrHost, "api.ecr.us-east-1.amazonaws.com",
		acrHost, "login.microsoftonline.com", azureHost, "github.com",
	}
}

func (w *world) clouds(t *testing.T) *clouds {
	t.Helper()
	c := &clouds{pushed: map[string]string{}, git: t.TempDir()}
	var err error
	if c.registry, err = w.Distribution(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.azurite, err = w.Serve(t.Context(), "azurite", []string{"AZURITE_ACCOUNTS=myaccount:" + azureKey}, func(port string) []string {
		return []string{"--blobPort", port, "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"}
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.repos, err = gitserver.HTTP(t.Context(), c.git, true); err != nil {
		t.Fatal(err)
	}
	c.storage = httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: c.azurite})
	c.front = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: c.registry})
			r.Out.Host = r.In.Host
			r.Out.Header.Set("X-Forwarded-Proto", "https")
		},
		ModifyResponse: c.note,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	c.listen(t)
	metadata := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Metadata-Flavor", "Google")
		fmt.Fprint(rw, `{"access_token":"ya29.machine","expires_in":3600,"token_type":"Bearer"}`)
	}))
	t.Cleanup(metadata.Close)
	c.metadata = metadata.Listener.Addr().String()
	return c
}

// listen serves at port 443 of a loopback address of its own, with a certificate
// for all names.
func (c *clouds) listen(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: cloudNames(), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	c.ca = filepath.Join(t.TempDir(), "test-ca.crt")
	if err := os.WriteFile(c.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	c.ip = fmt.Sprintf("127.%d.%d.%d", 1+mrand.IntN(254), mrand.IntN(256), 1+mrand.IntN(254))
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", c.ip+":443")
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(c)
	if err := s.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	s.Listener = l
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
}

// podmanArgs let a container find the clouds and trust them.
func (c *clouds) podmanArgs() []string {
	args := []string{"--env=GCE_METADATA_HOST=" + c.metadata, "--volume=" + c.ca + ":/kaniko/ssl/certs/test-ca.crt:ro"}
	for _, name := range cloudNames() {
		args = append(args, "--add-host="+name+":"+c.ip)
	}
	return args
}

// ServeHTTP implements http.Handler.
func (c *clouds) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	answer := func(status int, text string) {
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(status)
		fmt.Fprint(rw, text)
	}
	reg, isRegistry := cloudRegistries()[r.Host]
	switch {
	case r.Host == azureHost:
		c.storage.ServeHTTP(rw, r)
	case r.Host == "github.com":
		if user, _, _ := r.BasicAuth(); user != gitToken {
			rw.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			answer(http.StatusUnauthorized, "{}")
			return
		}
		c.repos.ServeHTTP(rw, r)
	case r.Host == "oauth2.googleapis.com" && r.FormValue("refresh_token") == "planted-user":
		answer(http.StatusOK, `{"access_token":"ya29.user","expires_in":3600,"token_type":"Bearer"}`)
	case r.Host == "oauth2.googleapis.com" && r.FormValue("assertion") != "":
		answer(http.StatusOK, `{"access_token":"ya29.account","expires_in":3600,"token_type":"Bearer"}`)
	case r.Host == "api.ecr.us-east-1.amazonaws.com" && strings.Contains(r.Header.Get("Authorization"), "Credential=AKIAPLANTED/"):
		answer(http.StatusOK, `{"authorizationData":[{"authorizationToken":"QVdTOnBsYW50ZWQtZWNy","expiresAt":4102444800}]}`)
	case r.Host == "login.microsoftonline.com" && r.URL.Path == "/tenant/oauth2/v2.0/token" && r.FormValue("client_id") == "client" && r.FormValue("client_secret") == "planted-secret":
		answer(http.StatusOK, `{"access_token":"planted-entra","expires_in":3599,"token_type":"Bearer"}`)
	case r.Host == "api.ecr.us-east-1.amazonaws.com":
		answer(http.StatusBadRequest, `{"__type":"UnrecognizedClientException","message":"The security token included in the request is invalid."}`)
	case r.Host == "login.microsoftonline.com":
		answer(http.StatusUnauthorized, `{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided."}`)
	case r.Host == acrHost && r.URL.Path == "/oauth2/exchange" && r.FormValue("access_token") == "planted-entra" && r.FormValue("service") == acrHost:
		answer(http.StatusOK, `{"refresh_token":"`+acrRefresh+`"}`)
	case r.Host == acrHost && r.URL.Path == "/oauth2/token" && r.FormValue("grant_type") == "refresh_token" && r.FormValue("refresh_token") == acrRefresh:
		answer(http.StatusOK, `{"access_token":"client"}`)
	case r.Host == "auth.docker.io" || isRegistry && reg.who != nil && r.URL.Path == "/v2/token":
		c.giveToken(answer, r)
	case isRegistry:
		c.serveRegistry(rw, r, reg, answer)
	default:
		answer(http.StatusForbidden, "{}")
	}
}

// giveToken is a token service; a token is the account's name.
func (c *clouds) giveToken(answer func(int, string), r *http.Request) {
	host := r.Host
	if host == "auth.docker.io" {
		host = "index.docker.io"
	}
	user, password, ok := r.BasicAuth()
	if !ok {
		answer(http.StatusOK, `{"token":"anonymous"}`)
		return
	}
	who := cloudRegistries()[host].who(user, password)
	if who == "" {
		answer(http.StatusUnauthorized, "{}")
		return
	}
	answer(http.StatusOK, `{"token":"`+who+`"}`)
}

// serveRegistry lets everybody with a token pull, and those with an account push.
func (c *clouds) serveRegistry(rw http.ResponseWriter, r *http.Request, reg cloudRegistry, answer func(int, string)) {
	who := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	challenge := `Bearer realm="` + reg.realm + `",service="` + r.Host + `"`
	if reg.realm == "" {
		user, password, _ := r.BasicAuth()
		who, challenge = reg.who(user, password), `Basic realm="registry"`
	}
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case who == "" || strings.HasPrefix(who, "Basic"):
		rw.Header().Set("WWW-Authenticate", challenge)
		answer(http.StatusUnauthorized, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
		return
	case who == "anonymous" && !reads:
		answer(http.StatusForbidden, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`)
		return
	}
	r.Header.Set("X-Account", who)
	c.front.ServeHTTP(rw, r)
}

// note remembers what the registry did.
func (c *clouds) note(resp *http.Response) error {
	r := resp.Request
	c.mu.Lock()
	defer c.mu.Unlock()
	path := r.Host + strings.TrimPrefix(r.URL.Path, "/v2")
	if r.Method == http.MethodPut && resp.StatusCode == http.StatusCreated && strings.Contains(path, "/manifests/") {
		c.pushed[strings.Replace(path, "/manifests/", ":", 1)] = r.Header.Get("X-Account")
	}
	if r.Method == http.MethodGet && strings.Contains(path, "/blobs/") {
		c.pulled = append(c.pulled, path)
	}
	return nil
}

// by returns who pushed a reference, "" for nobody.
func (c *clouds) by(ref string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pushed[ref]
}

// blobs returns the blobs of a repository that were asked for, sorted.
func (c *clouds) blobs(repo string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := slices.DeleteFunc(slices.Clone(c.pulled), func(p string) bool { return !strings.HasPrefix(p, repo+"/") })
	slices.Sort(list)
	return list
}
