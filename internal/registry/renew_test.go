// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// renewing is a keychain that remembers a password until it is told to forget.
type renewing struct {
	mu      sync.Mutex
	n       int // passwords given
	kept    bool
	forgets int
	life    time.Duration
	now     func() time.Time
}

type renewed struct {
	authn.Authenticator
	expires time.Time
}

func (r renewed) Expires() time.Time { return r.expires }

func (k *renewing) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return k.ResolveContext(context.Background(), r)
}

func (k *renewing) ResolveContext(context.Context, authn.Resource) (authn.Authenticator, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.kept {
		k.n++
	}
	k.kept = k.life == 0
	a := renewed{Authenticator: authn.FromConfig(authn.AuthConfig{Username: "u", Password: fmt.Sprint("pw-", k.n)})}
	if k.life > 0 {
		a.expires = k.now().Add(k.life)
	}
	return a, nil
}

func (k *renewing) Forget(authn.Resource) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept, k.forgets = false, k.forgets+1
}

func push(t *testing.T, c *Client, f *front, b []byte) {
	t.Helper()
	if err := tryPush(t, c, f, b); err != nil {
		t.Fatal(err)
	}
}

func tryPush(t *testing.T, c *Client, f *front, b []byte) error {
	t.Helper()
	_, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", b), opener(b), nil)
	return err
}

// A password that the registry takes for a number of requests only, as one that
// runs out while layers travel.
func TestPasswordRenewedMidPush(t *testing.T) {
	var mu sync.Mutex
	left, valid := 4, 1
	f := newFront(t, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		_, pw, _ := r.BasicAuth()
		if pw != fmt.Sprint("pw-", valid) {
			return unauthorized(w, `Basic realm="x"`)
		}
		if left--; left == 0 {
			left, valid = 4, valid+1
		}
		return false
	})
	k := &renewing{}
	c, _ := newClient(t, Options{Keychain: k})
	for i := range 5 {
		push(t, c, f, bytes.Repeat([]byte{byte(i)}, 100))
	}
	if k.n < 3 || k.n != valid || k.forgets != k.n-1 {
		t.Errorf("%d passwords given, %d forgotten, %d valid", k.n, k.forgets, valid)
	}
}

func TestPasswordRenewedBeforeItExpires(t *testing.T) {
	f := newFront(t, func(w http.ResponseWriter, r *http.Request) bool {
		if _, _, ok := r.BasicAuth(); !ok {
			return unauthorized(w, `Basic realm="x"`)
		}
		return false
	})
	now := time.Now()
	k := &renewing{life: time.Hour, now: func() time.Time { return now }}
	c, _ := newClient(t, Options{Keychain: k})
	c.now = k.now
	push(t, c, f, []byte("one"))
	push(t, c, f, []byte("two"))
	if k.n != 1 {
		t.Errorf("%d passwords within their life", k.n)
	}
	now = now.Add(time.Hour)
	push(t, c, f, []byte("three"))
	if k.n != 2 || k.forgets != 0 {
		t.Errorf("%d passwords, %d forgotten", k.n, k.forgets)
	}
}

// The token service refuses a password of hours ago, not the registry.
func TestPasswordRenewedForToken(t *testing.T) {
	valid := 2
	f := newFront(t, nil)
	f.set(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if _, pw, _ := r.BasicAuth(); pw != fmt.Sprint("pw-", valid) {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			fmt.Fprint(w, `{"token":"good"}`)
			return true
		}
		if r.Header.Get("Authorization") != "Bearer good" {
			return unauthorized(w, fmt.Sprintf(`Bearer realm="%s/token",service="x"`, f.URL))
		}
		return false
	})
	k := &renewing{}
	c, _ := newClient(t, Options{Keychain: k})
	push(t, c, f, []byte("x"))
	if k.n != 2 || f.count("GET /token") != 2 {
		t.Errorf("%d passwords, %d asked for tokens", k.n, f.count("GET /token"))
	}
	// One that stays wrong is an error after one more look.
	valid = -1
	c, _ = newClient(t, Options{Keychain: &renewing{kept: true, n: 1}})
	if err := tryPush(t, c, f, []byte("y")); !errors.Is(err, ErrDenied) {
		t.Errorf("err = %v", err)
	}
	if n := f.count("GET /token"); n > 4 {
		t.Errorf("%d asked for tokens", n)
	}
}
