// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hako/internal/keychain"
)

type faultFunc = func(w http.ResponseWriter, r *http.Request) bool

// config is a docker config with one account.
func config(t testing.TB, host, user, pass string) *keychain.Chain {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + pass))
	d, err := keychain.ParseDockerConfig(fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, auth), "/kaniko/.docker/config.json")
	if err != nil {
		t.Fatal(err)
	}
	return keychain.NewChain([]keychain.Source{d}, nil, nil)
}

func unauthorized(w http.ResponseWriter, challenge string) bool {
	w.Header().Set("WWW-Authenticate", challenge)
	w.WriteHeader(http.StatusUnauthorized)
	_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`))
	return true
}

func withBasic(next faultFunc, user, pass string) faultFunc {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != pass {
			return unauthorized(w, `Basic realm="registry"`)
		}
		return next != nil && next(w, r)
	}
}

// A tokenService gives tokens that are good for a number of requests.
type tokenService struct {
	mu        sync.Mutex
	uses      int // of each token
	left      map[string]int
	issued    int
	scopes    []string // of the last request
	deny      string   // a scope that is refused
	expiresIn int
}

func (s *tokenService) serve(next faultFunc) faultFunc {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			s.issue(w, r)
			return true
		}
		s.mu.Lock()
		tok := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		ok := s.left[tok] > 0
		if ok {
			s.left[tok]--
		}
		s.mu.Unlock()
		if !ok {
			return unauthorized(w, fmt.Sprintf(`Bearer realm="http://%s/token",service="reg",scope="repository:team/app:pull,push"`, r.Host))
		}
		return next != nil && next(w, r)
	}
}

func (s *tokenService) issue(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scopes = r.URL.Query()["scope"]
	u, p, _ := r.BasicAuth()
	if u != "ci" || p != "hunter22" || s.deny != "" && strings.Contains(strings.Join(s.scopes, " "), s.deny) {
		w.WriteHeader(http.StatusForbidden)
		// As careless as a service may be.
		_, _ = fmt.Fprintf(w, `{"errors":[{"code":"DENIED","message":"no access for %s %s"}]}`, r.Header.Get("Authorization"), p)
		return
	}
	s.issued++
	tok := fmt.Sprintf("token-%d", s.issued)
	if s.left == nil {
		s.left = map[string]int{}
	}
	s.left[tok] = s.uses
	_, _ = fmt.Fprintf(w, `{"token":%q,"expires_in":%d}`, tok, s.expiresIn)
}

func TestBearerRenewedMidPush(t *testing.T) {
	s := &tokenService{uses: 2, expiresIn: 3600}
	f := newFront(t, s.serve(nil))
	c, _ := newClient(t, Options{Keychain: config(t, f.host(), "ci", "hunter22")})
	blob := randomBytes(100_000)
	// HEAD and POST use the first token up: the PUT is refused and sent again.
	res, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob), opener(blob), nil)
	if err != nil || res != Uploaded {
		t.Fatalf("%v, %v", res, err)
	}
	if s.issued != 2 || f.count("PUT") != 2 {
		t.Errorf("%d tokens, %d PUTs", s.issued, f.count("PUT"))
	}
	got, err := c.FetchBlob(t.Context(), f.repo(t, "team/app"), descOf("", blob))
	if err != nil || len(got) != len(blob) {
		t.Error(err)
	}
}

func TestBearerRenewedBeforeItExpires(t *testing.T) {
	s := &tokenService{uses: 1000, expiresIn: 300}
	f := newFront(t, s.serve(nil))
	c, _ := newClient(t, Options{Keychain: config(t, f.host(), "ci", "hunter22")})
	now := time.Unix(1e9, 0)
	c.now = func() time.Time { return now }
	for i, want := range []int{1, 1, 2} {
		if err := c.CheckPushPermission(t.Context(), f.repo(t, "team/app")); err != nil {
			t.Fatal(err)
		}
		if s.issued != want {
			t.Errorf("check %d: %d tokens, want %d", i, s.issued, want)
		}
		now = now.Add(200 * time.Second)
	}
}

func TestDenied(t *testing.T) {
	s := &tokenService{uses: 1000}
	f := newFront(t, s.serve(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"errors":[{"code":"DENIED","message":"push access is missing\nfor hunter22"}]}`))
		return true
	}))
	tests := []struct{ name, user, pass, want, account string }{
		{"right password, no right", "ci", "hunter22", "push HOST/team/app: denied (403): push access is missing for [redacted]", `signed in as ci, from /kaniko/.docker/config.json, entry "HOST"`},
		{"wrong password", "ci", "password1", "push HOST/team/app: sign in: denied (403): no access for Basic [redacted] [redacted]", `signed in as ci, from /kaniko/.docker/config.json, entry "HOST"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := newClient(t, Options{Keychain: config(t, f.host(), tt.user, tt.pass)})
			err := c.CheckPushPermission(t.Context(), f.repo(t, "team/app"))
			if !errors.Is(err, ErrDenied) {
				t.Fatalf("err = %v", err)
			}
			if got := strings.ReplaceAll(err.Error(), f.host(), "HOST"); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			var e *Error
			if !errors.As(err, &e) || strings.ReplaceAll(e.Account.String(), f.host(), "HOST") != tt.account {
				t.Errorf("account: %#v", e)
			}
		})
	}
}

func TestAnonymousWhereBasicIsAsked(t *testing.T) {
	f := newFront(t, withBasic(nil, "a", "b"))
	c, _ := newClient(t, Options{})
	err := c.CheckPushPermission(t.Context(), f.repo(t, "team/app"))
	var e *Error
	if !errors.As(err, &e) || e.Status != 401 || e.Code != "UNAUTHORIZED" || e.Account.String() != "not signed in" {
		t.Errorf("err = %v", err)
	}
}

// Some registries answer the ping of anybody.
func TestChallengeAfterOpenPing(t *testing.T) {
	basic := withBasic(nil, "ci", "hunter22")
	f := newFront(t, func(w http.ResponseWriter, r *http.Request) bool {
		return r.URL.Path != "/v2/" && basic(w, r)
	})
	c, _ := newClient(t, Options{Keychain: config(t, f.host(), "ci", "hunter22")})
	if err := c.CheckPushPermission(t.Context(), f.repo(t, "team/app")); err != nil {
		t.Error(err)
	}
}

func TestSignInOnceForMany(t *testing.T) {
	s := &tokenService{uses: 1000}
	f := newFront(t, s.serve(nil))
	c, _ := newClient(t, Options{Keychain: config(t, f.host(), "ci", "hunter22")})
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			b := fmt.Appendf(nil, "blob %d", i)
			if _, err := c.PushBlob(t.Context(), f.repo(t, "team/app"), descOf("", b), opener(b), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if s.issued != 1 || f.count("GET /v2/") != 1 {
		t.Errorf("%d tokens, %d pings", s.issued, f.count("GET /v2/"))
	}
}

func TestParseChallenges(t *testing.T) {
	tests := []struct {
		in   string
		want []challenge
	}{
		{`Bearer realm="https://a/b?c=d,e",service=x , scope="repository:a/b:pull,push"`, []challenge{{"bearer", map[string]string{"realm": "https://a/b?c=d,e", "service": "x", "scope": "repository:a/b:pull,push"}}}},
		{`Negotiate, Basic realm="a \"b\""`, []challenge{{"negotiate", map[string]string{}}, {"basic", map[string]string{"realm": `a "b"`}}}},
		{`BASIC`, []challenge{{"basic", map[string]string{}}}},
		{`Bearer realm="open`, []challenge{{"bearer", map[string]string{}}}},
		{`=,,;`, nil},
		{``, nil},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, parseChallenges(tt.in), cmp.AllowUnexported(challenge{})); diff != "" {
			t.Errorf("%s: %s", tt.in, diff)
		}
	}
}
