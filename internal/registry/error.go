// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"hako/internal/keychain"
)

// What an *Error may be, for errors.Is.
var (
	// ErrNotFound is an absent repository, manifest or blob.
	ErrNotFound = errors.New("not found")
	// ErrDenied is a refusal: credentials are missing, wrong or too weak.
	ErrDenied = errors.New("denied")
	// ErrRateLimited is a refusal for having asked too often.
	ErrRateLimited = errors.New("too many requests")
	// ErrWrongContent is content that is not what its digest or size says.
	ErrWrongContent = errors.New("wrong content")
)

// An Account tells where credentials came from; it holds no secret.
type Account = keychain.Account

// An Error is a failed operation on a registry. It holds no credentials and no
// query strings of URLs.
type Error struct {
	Op         string // "pull" or "push"
	Registry   string // host, docker.io for Docker Hub
	Repository string
	Ref        string // the whole reference, or the repository for a blob
	What       string // "manifest", "blob sha256:…", "sign in", …; may be empty
	Host       string // who answered, if it was not the registry
	Status     int    // HTTP status, 0 if there was no answer
	Code       string // the registry's error code, such as DENIED
	Message    string // the registry's message
	Account    Account
	Err        error // the cause where there was no answer, or a wrong one

	retryAfter time.Duration
}

// Error returns a line such as
//
//	push registry.example.com/team/app:1.4: denied (403): push access is missing
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", e.Op, e.Ref)
	if e.What != "" {
		b.WriteString(": " + e.What)
	}
	if e.Host != "" {
		b.WriteString(": " + e.Host)
	}
	if e.Status != 0 {
		fmt.Fprintf(&b, ": %s (%d)", e.kind(), e.Status)
	}
	switch {
	case e.Message != "":
		b.WriteString(": " + e.Message)
	case e.Code != "":
		b.WriteString(": " + e.Code)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

func (e *Error) kind() string {
	switch {
	case e.Is(ErrDenied):
		return "denied"
	case e.Is(ErrNotFound):
		return "not found"
	case e.Is(ErrRateLimited):
		return "too many requests"
	}
	if s := http.StatusText(e.Status); s != "" {
		return strings.ToLower(s)
	}
	return "unexpected status"
}

// Is makes errors.Is work with ErrNotFound, ErrDenied and ErrRateLimited.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Status == http.StatusNotFound
	case ErrDenied:
		return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
	case ErrRateLimited:
		return e.Status == http.StatusTooManyRequests || e.Code == "TOOMANYREQUESTS"
	}
	return false
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// displayHost spells Docker Hub as people do.
func displayHost(host string) string {
	if host == name.DefaultRegistry {
		return "docker.io"
	}
	return host
}

func displayRepo(r name.Repository) string {
	return displayHost(r.RegistryStr()) + "/" + r.RepositoryStr()
}

func displayRef(r name.Reference) string {
	if d, ok := r.(name.Digest); ok {
		return displayRepo(r.Context()) + "@" + d.DigestStr()
	}
	return displayRepo(r.Context()) + ":" + r.Identifier()
}

// maxErrorBody limits what is read of an error answer.
const maxErrorBody = 64 << 10

// parseErrorBody finds code and message in an error answer: the list of the
// OCI distribution-spec, or what token services return instead. Text that is
// not JSON, such as a proxy's HTML page, is not repeated.
func parseErrorBody(b []byte) (code, message string) {
	var doc struct {
		Errors []struct {
			Code    string          `json:"code"`
			Message string          `json:"message"`
			Detail  json.RawMessage `json:"detail"`
		} `json:"errors"`
		Code        string `json:"code"`
		Message     string `json:"message"`
		Details     string `json:"details"`
		Description string `json:"error_description"`
	}
	// A field of another type fails the decoding, but the others are there.
	_ = json.Unmarshal(b, &doc)
	if len(doc.Errors) > 0 {
		code, message = doc.Errors[0].Code, doc.Errors[0].Message
	} else {
		code, message = doc.Code, doc.Message
		for _, s := range []string{doc.Details, doc.Description} {
			if message == "" {
				message = s
			}
		}
	}
	return code, message
}

func readErrorBody(r io.Reader) (code, message string) {
	b, _ := io.ReadAll(io.LimitReader(r, maxErrorBody))
	return parseErrorBody(b)
}

// A redactor knows what errors must not say.
type redactor struct{ secrets []string }

// The query and the user info of URLs are where signatures and passwords are.
var (
	urlQuery = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://[^\s"'<>?]*)\?[^\s"'<>]*`)
	urlUser  = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^\s"'<>/@]*@`)
)

// text makes a foreign text fit for an error: one line, limited, without
// secrets.
func (r redactor) text(s string) string {
	const limit = 600
	for _, secret := range r.secrets {
		s = strings.ReplaceAll(s, secret, "[redacted]")
	}
	s = urlQuery.ReplaceAllString(s, "$1?[redacted]")
	s = urlUser.ReplaceAllString(s, "$1[redacted]@")
	s = strings.Map(func(c rune) rune {
		if unicode.IsSpace(c) {
			return ' '
		}
		if !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, s)
	s = strings.TrimSpace(s)
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}

// redactedError is a cause whose text was cleaned; errors.Is and As see the
// original.
type redactedError struct {
	text string
	err  error
}

func (e *redactedError) Error() string { return e.text }
func (e *redactedError) Unwrap() error { return e.err }

// addSecret remembers a value that errors must not repeat.
func (c *Client) addSecret(ss ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range ss {
		// Shorter ones would blacken ordinary words.
		if len(s) >= 4 {
			c.secrets[s] = true
		}
	}
}

func (c *Client) redactor() redactor {
	c.mu.Lock()
	defer c.mu.Unlock()
	var r redactor
	for s := range c.secrets {
		r.secrets = append(r.secrets, s)
	}
	// One may be part of another.
	slices.SortFunc(r.secrets, func(x, y string) int { return len(y) - len(x) })
	return r
}

// fail fills the error of an operation of a.
func (a *access) fail(what string, err error) error {
	if err == nil {
		return nil
	}
	var done *Error
	if errors.As(err, &done) {
		return err
	}
	e := a.newError(what)
	red := a.c.redactor()

	var terr *transport.Error
	if errors.As(err, &terr) {
		e.Status = terr.StatusCode
		if len(terr.Errors) > 0 {
			e.Code, e.Message = red.text(string(terr.Errors[0].Code)), red.text(terr.Errors[0].Message)
		}
		return e
	}
	// A url.Error repeats the URL, and with it what may be a signature.
	var uerr *url.Error
	for errors.As(err, &uerr) {
		err = uerr.Err
	}
	e.Err = &redactedError{text: red.text(err.Error()), err: err}
	return e
}

func (a *access) newError(what string) *Error {
	op := "pull"
	if a.push {
		op = "push"
	}
	ref := a.ref
	if ref == "" {
		ref = displayRepo(a.repo)
	}
	e := &Error{
		Op: op, Registry: displayHost(a.repo.RegistryStr()), Repository: a.repo.RepositoryStr(),
		Ref: ref, What: what, Account: a.account(),
	}
	if a.place != nil && a.place.Host != "" {
		e.Host = e.Registry // not the one of the reference
	}
	return e
}

// failStatus makes an error of an answer, and closes it.
func (a *access) failStatus(what string, resp *http.Response) error {
	defer resp.Body.Close()
	e := a.newError(what)
	e.Status = resp.StatusCode
	red := a.c.redactor()
	code, message := readErrorBody(resp.Body)
	e.Code, e.Message = red.text(code), red.text(message)
	if resp.Request != nil && !a.isRegistry(resp.Request.URL) {
		e.Host = resp.Request.URL.Host
	}
	e.retryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), a.c.now())
	return e
}

// IsImmutableTag reports whether err is a registry's refusal to set a tag again
// that it has with another image.
func IsImmutableTag(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Op == "push" && isImmutableTag(e)
}

// isImmutableTag reports whether a registry refuses to set a tag again. The
// specification has no code for it, so this is a list of what is met: ECR,
// Harbor, Artifact Registry.
func isImmutableTag(e *Error) bool {
	if e.Status < 400 || e.Status >= 500 {
		return false
	}
	s := strings.ToLower(e.Code + " " + e.Message)
	return e.Status == http.StatusConflict || strings.Contains(s, "tag_already_exists") ||
		strings.Contains(s, "imagetagalreadyexists") || strings.Contains(s, "immutab")
}
