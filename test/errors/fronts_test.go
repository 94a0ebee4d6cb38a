// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package faults

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// startFront starts a registry with a fault in front of the good one and
// returns its address.
func startFront(t *testing.T, kind, registry string) string {
	t.Helper()
	quiet := log.New(io.Discard, "", 0)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	proxy.ErrorLog = quiet
	var h http.Handler = proxy
	switch kind {
	case "unauthorized":
		h = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		})
	case "denied-push":
		h = refusing(proxy, http.StatusForbidden, "DENIED", "requested access to the resource is denied", func(r *http.Request) bool {
			return r.Method != http.MethodGet && r.Method != http.MethodHead
		})
	case "denied-late": // when the build is well under way
		denied := refusing(proxy, http.StatusForbidden, "DENIED", "requested access to the resource is denied", func(r *http.Request) bool {
			return r.Method != http.MethodGet && r.Method != http.MethodHead
		})
		h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				_, _ = io.Copy(io.Discard, r.Body)
				select {
				case <-time.After(5 * time.Second):
				case <-r.Context().Done():
				}
			}
			denied.ServeHTTP(w, r)
		})
	case "denied-pull":
		h = refusing(proxy, http.StatusForbidden, "DENIED", "requested access to the resource is denied", func(r *http.Request) bool {
			return strings.Contains(r.URL.Path, "/manifests/")
		})
	case "immutable":
		h = refusing(proxy, http.StatusBadRequest, "TAG_INVALID", "The image tag '1' already exists and is immutable.", func(r *http.Request) bool {
			return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/")
		})
	case "limited":
		h = refusing(proxy, http.StatusTooManyRequests, "TOOMANYREQUESTS", "You have reached your pull rate limit.", func(r *http.Request) bool {
			return strings.Contains(r.URL.Path, "/manifests/")
		})
	case "corrupt", "truncated":
		proxy.ModifyResponse = spoil(kind)
	case "dying":
		h = dying(proxy)
	case "tls", "plain":
	default:
		t.Fatalf("no front %q", kind)
	}
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = quiet
	if kind == "tls" {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"errors":[{"code":`+strconv.Quote(code)+`,"message":`+strconv.Quote(message)+`}]}`)
}

func refusing(next http.Handler, status int, code, message string, which func(*http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if which(r) {
			refuse(w, status, code, message)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// spoil changes what is answered for layers, which begin as gzip does.
func spoil(kind string) func(*http.Response) error {
	return func(resp *http.Response) error {
		if resp.Request.Method != http.MethodGet || !strings.Contains(resp.Request.URL.Path, "/blobs/") {
			return nil
		}
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
			if kind == "corrupt" {
				data[len(data)/2] ^= 0x55
			} else {
				data = data[:len(data)/2]
			}
		}
		resp.Body = io.NopCloser(bytes.NewReader(data))
		resp.ContentLength = int64(len(data))
		resp.Header.Set("Content-Length", strconv.Itoa(len(data)))
		return nil
	}
}

// dying takes some of a layer and then cuts every connection.
func dying(next http.Handler) http.Handler {
	var dead atomic.Bool
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const enough = 64 << 10
		if r.ContentLength > enough {
			_, _ = io.CopyN(io.Discard, r.Body, enough)
			dead.Store(true)
		}
		if dead.Load() {
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, r)
	})
}
