// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	minBackoff    = 200 * time.Millisecond
	maxBackoff    = 10 * time.Second
	maxRetryAfter = 60 * time.Second
)

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// backoff returns how long to wait before repetition n (from 0): it doubles,
// with jitter so that the pods of a cluster do not return all at once.
func backoff(n int) time.Duration {
	d := maxBackoff
	if n < 6 {
		d = min(minBackoff<<n, maxBackoff)
	}
	return d/2 + rand.N(d/2+1)
}

// retry calls fn until it succeeds, its error is final or it was repeated so
// many times.
func (c *Client) retry(ctx context.Context, times int, fn func() error) error {
	for n := 0; ; n++ {
		err := fn()
		if err == nil || ctx.Err() != nil || n >= times || !isTemporary(err) {
			return err
		}
		if serr := c.sleep(ctx, c.delay(n, err)); serr != nil {
			return err
		}
	}
}

// delay prefers what the registry asks for.
func (c *Client) delay(n int, err error) time.Duration {
	d := backoff(n)
	var e *Error
	if errors.As(err, &e) && e.retryAfter > 0 {
		d = max(d, min(e.retryAfter, maxRetryAfter))
	}
	return d
}

// permanentError marks a cause that a repetition will not change.
type permanentError struct{ err error }

func (e permanentError) Error() string { return e.err.Error() }
func (e permanentError) Unwrap() error { return e.err }

// isTemporary reports whether the same request may succeed later. Whatever
// goes wrong below HTTP may, except for what is known to be settled: names
// that do not exist, certificates that are not trusted, and our own verdicts.
func isTemporary(err error) bool {
	var perm permanentError
	if errors.As(err, &perm) || errors.Is(err, context.Canceled) || errors.Is(err, ErrWrongContent) {
		return false
	}
	var terr *transport.Error
	if errors.As(err, &terr) {
		return isTemporaryStatus(terr.StatusCode)
	}
	var e *Error
	if errors.As(err, &e) && e.Status != 0 {
		return isTemporaryStatus(e.Status)
	}
	var (
		dns     *net.DNSError
		verify  *tls.CertificateVerificationError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
		alert   tls.AlertError
		addr    *net.AddrError
	)
	if _, ok := remoteAlert(err); ok {
		return false
	}
	var proxy *ProxyError
	if errors.As(err, &proxy) {
		return isTemporaryStatus(proxy.Status)
	}
	switch {
	case errors.As(err, &dns):
		return !dns.IsNotFound
	case errors.As(err, &verify), errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &invalid),
		errors.As(err, &alert), errors.As(err, &addr), errors.Is(err, http.ErrSchemeMismatch):
		return false
	}
	return true
}

// remoteAlert returns the alert by which the other end refused a handshake, or
// ended a connection: crypto/tls wraps it so.
func remoteAlert(err error) (text string, ok bool) {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" || op.Err == nil {
		return "", false
	}
	return op.Err.Error(), true
}

func isTemporaryStatus(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported:
		return false
	}
	return status >= 500
}

// parseRetryAfter reads seconds or a date (RFC 9110, 10.2.3); 0 is for none.
func parseRetryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if s == "" {
		return 0
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		if n <= 0 {
			return 0
		}
		return time.Duration(min(n, 86400)) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}
