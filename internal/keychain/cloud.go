// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	// machineTimeout is how long the services of the machine itself (metadata,
	// container credentials) may take: where there are none, the network
	// often just swallows what is sent.
	machineTimeout = time.Second
	// cloudTimeout limits the whole way to a credential.
	cloudTimeout = 10 * time.Second
	// maxAnswer limits what is read of an answer.
	maxAnswer = 1 << 20
	// renewEarly is how long before its end a credential is not used any more,
	// at most; one that lives for minutes only is used for nine tenths.
	renewEarly = 5 * time.Minute
	// absentFor is how long it is believed that there is nothing.
	absentFor = time.Minute
)

// A Cloud is what the sources of clouds get from outside.
type Cloud struct {
	Env Getenv
	// Client speaks to token services.
	Client *http.Client
	// Machine speaks to the services of the machine itself, never over a proxy.
	Machine *http.Client
	// Open opens a file now that is read later, perhaps again and again, when it
	// may have been renewed. Errors name the file.
	Open func(path string) (read func() ([]byte, error), err error)
	// Now is the clock.
	Now func() time.Time
}

// A tokenFile is a file named by a variable or a config.
type tokenFile struct {
	name string // how the user named it: "AWS_WEB_IDENTITY_TOKEN_FILE=/path"
	read func() ([]byte, error)
	err  error
}

// open opens a file; that it cannot be is an error when it is needed.
func (c *Cloud) open(what, path string) *tokenFile {
	t := &tokenFile{name: what + "=" + path}
	t.read, t.err = c.Open(path)
	return t
}

// openEnv opens the file that a variable names; nil if it is not set.
func (c *Cloud) openEnv(name string) *tokenFile {
	path := c.Env(name)
	if path == "" {
		return nil
	}
	return c.open(name, path)
}

// bytes returns the file's content.
func (t *tokenFile) bytes() ([]byte, error) {
	b, err := []byte(nil), t.err
	if err == nil {
		b, err = t.read()
	}
	if err == nil && len(bytes.TrimSpace(b)) == 0 {
		err = errors.New("it is empty")
	}
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathErr.Err
	}
	if err != nil {
		return nil, &ConfigError{
			Err:    fmt.Errorf("read %s: %w", t.name, err),
			Remedy: "mount the file there and make it readable for the user that hako runs as, or unset what names it",
		}
	}
	return b, nil
}

// A cloud is a source that asks a cloud for credentials, for its own registries
// only. It remembers them until they expire.
type cloud struct {
	name  string
	mine  func(host string) bool
	fetch func(ctx context.Context, host string) (*Credential, error)
	// scope says for which hosts one credential serves; nil stands for one each.
	scope func(host string) string
	now   func() time.Time

	mu   sync.Mutex
	kept map[string]*keptCredential // by scope
}

type keptCredential struct {
	lock  chan struct{} // holds one item while nobody asks
	cred  *Credential
	until time.Time
}

// Name implements Source.
func (c *cloud) Name() string { return c.name }

func (c *cloud) keep(host string) *keptCredential {
	if c.scope != nil {
		host = c.scope(host)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept == nil {
		c.kept = make(map[string]*keptCredential)
	}
	k := c.kept[host]
	if k == nil {
		k = &keptCredential{lock: make(chan struct{}, 1)}
		k.lock <- struct{}{}
		c.kept[host] = k
	}
	return k
}

// Find implements Source.
func (c *cloud) Find(ctx context.Context, r authn.Resource) (*Credential, error) {
	host := strings.ToLower(r.RegistryStr())
	if !c.mine(host) {
		return none(c.name, ""), nil
	}
	k := c.keep(host)
	select {
	case <-k.lock:
		defer func() { k.lock <- struct{}{} }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if k.cred != nil && c.now().Before(k.until) {
		return k.cred, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cloudTimeout, fmt.Errorf("no answer within %v", cloudTimeout))
	defer cancel()
	cred, err := c.fetch(ctx, host)
	if err != nil {
		k.cred = nil
		return nil, c.explain(host, err)
	}
	now := c.now()
	switch {
	case cred.isEmpty():
		k.until = now.Add(absentFor)
	case cred.expires.IsZero():
		cred.expires = now.Add(renewEarly)
		k.until = cred.expires
	default:
		cred.expires = cred.expires.Add(-min(renewEarly, cred.expires.Sub(now)/10))
		k.until = cred.expires
	}
	k.cred = cred
	return cred, nil
}

func (c *cloud) explain(host string, err error) error {
	wrapped := fmt.Errorf("sign in to %s with %s: %w", host, c.name, err)
	remedy := fmt.Sprintf("hako auth explain %s shows which sources are asked; --credential-helpers without this one leaves it out", host)
	if e, ok := errors.AsType[*ConfigError](err); ok {
		remedy = e.Remedy
	}
	return &ConfigError{Err: wrapped, Remedy: remedy}
}

// forget drops what the registry has refused. That there is nothing is not
// forgotten: a registry asks for credentials with every request.
func (c *cloud) forget(r authn.Resource) {
	host := strings.ToLower(r.RegistryStr())
	if !c.mine(host) {
		return
	}
	k := c.keep(host)
	select {
	case <-k.lock:
		if k.cred != nil && !k.cred.isEmpty() {
			k.cred = nil
		}
		k.lock <- struct{}{}
	default: // somebody is asking for a new one
	}
}

// An answerError is a service's refusal.
type answerError struct {
	service string
	status  int
	code    string
	message string
}

func (e *answerError) Error() string {
	s := fmt.Sprintf("%s answered %d", e.service, e.status)
	if e.code != "" {
		s += " " + e.code
	}
	if e.message != "" {
		s += ": " + e.message
	}
	return s
}

// exchange sends a request and decodes the answer into v. A request that got no
// answer, or a 5xx, is sent once more.
func exchange(ctx context.Context, client *http.Client, service string, request func() (*http.Request, error), v any) error {
	for n := 0; ; n++ {
		req, err := request()
		if err != nil {
			return err
		}
		err = exchangeOnce(ctx, client, service, req, v)
		refused, isAnswer := errors.AsType[*answerError](err)
		if err == nil || n > 0 || ctx.Err() != nil || isAnswer && refused.status < 500 {
			return err
		}
	}
}

func exchangeOnce(ctx context.Context, client *http.Client, service string, req *http.Request, v any) error {
	resp, err := client.Do(req.WithContext(ctx))
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		// A url.Error repeats the URL and what is in its query.
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		return fmt.Errorf("ask %s: %w", service, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("ask %s: %w", service, err)
	}
	if resp.StatusCode != http.StatusOK {
		return newAnswerError(service, resp.StatusCode, b)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s answered something else than expected", service) // it may be a token
	}
	return nil
}

// newAnswerError takes code and message out of an answer, as the services of the
// clouds spell them.
func newAnswerError(service string, status int, b []byte) *answerError {
	e := &answerError{service: service, status: status}
	var doc struct {
		Type        string          `json:"__type"`
		Message     string          `json:"message"`
		Message2    string          `json:"Message"`
		Error       json.RawMessage `json:"error"`
		Description string          `json:"error_description"`
		Errors      []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	_ = json.Unmarshal(b, &doc) // what cannot be read is left out
	var text string
	if json.Unmarshal(doc.Error, &text) == nil {
		e.code = text
	}
	if _, last, ok := strings.Cut(doc.Type, "#"); ok || doc.Type != "" {
		e.code = last
		if !ok {
			e.code = doc.Type
		}
	}
	e.message = doc.Message + doc.Message2
	if doc.Description != "" {
		e.message = doc.Description
	}
	if len(doc.Errors) > 0 {
		e.code, e.message = doc.Errors[0].Code, doc.Errors[0].Message
	}
	e.code, e.message = oneLine(e.code, 80), oneLine(e.message, 400)
	return e
}

// oneLine makes a foreign text fit for an error.
func oneLine(s string, limit int) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

// decodeOneOrMany decodes an object, or a list of such.
func decodeOneOrMany[T any](b []byte) ([]T, error) {
	var list []T
	if json.Unmarshal(b, &list) == nil {
		return list, nil
	}
	var one T
	if err := json.Unmarshal(b, &one); err != nil {
		return nil, err
	}
	return []T{one}, nil
}
