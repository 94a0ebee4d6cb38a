// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"context"
	"encoding/json"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"
)

// A world has stand-ins for the services of clouds, by their real names, and
// files. Whoever is asked for any other host does not answer.
type world struct {
	t     *testing.T
	hosts map[string]http.HandlerFunc
	env   map[string]string

	mu    sync.Mutex
	files map[string]string
	asked []string // hosts
	now   time.Time
}

func newWorld(t *testing.T, env ...string) *world {
	w := &world{t: t, hosts: map[string]http.HandlerFunc{}, env: map[string]string{"HOME": t.TempDir()}, files: map[string]string{}, now: time.Now()}
	for i := 0; i < len(env); i += 2 {
		w.env[env[i]] = env[i+1]
	}
	return w
}

func (w *world) cloud() Cloud {
	client := &http.Client{Transport: w, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return Cloud{
		Env: func(n string) string { return w.env[n] }, Client: client, Machine: client,
		Now: func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now },
		Open: func(path string) (func() ([]byte, error), error) {
			if _, err := w.file(path); err != nil {
				return nil, err
			}
			return func() ([]byte, error) { return w.file(path) }, nil
		},
	}
}

func (w *world) file(path string) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.files[path]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return []byte(s), nil
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// RoundTrip implements http.RoundTripper.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.asked = append(w.asked, r.URL.Host)
	h := w.hosts[r.URL.Host]
	w.mu.Unlock()
	if h == nil {
		<-r.Context().Done()
		return nil, context.Cause(r.Context())
	}
	rec := httptest.NewRecorder()
	h(rec, r)
	resp := rec.Result()
	resp.Request = r
	return resp, nil
}

// reset returns the hosts that were asked since the last time, once each.
func (w *world) reset() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := slices.Clone(w.asked)
	w.asked = nil
	slices.Sort(list)
	return slices.Compact(list)
}

func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

type object = map[string]any
