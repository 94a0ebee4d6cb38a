// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// An HTTPOptions says how a server is reached over HTTP.
type HTTPOptions struct {
	Client *http.Client
	// Authorization is the header of that name; "" takes the credentials of
	// the URL, if there are any.
	Authorization string
}

const (
	advertisementType = "application/x-git-upload-pack-advertisement"
	resultType        = "application/x-git-upload-pack-result"
	requestType       = "application/x-git-upload-pack-request"

	maxRedirects = 10
)

// httpConn is smart HTTP: a GET for the greeting, a POST for each request.
type httpConn struct {
	client  *http.Client
	base    *url.URL
	auth    string
	opening *packetReader
	close   func() error
}

// DialHTTP connects to a repository over http or https.
func DialHTTP(ctx context.Context, u *URL, opt HTTPOptions) (*Remote, error) {
	base := &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(u.Path, "/")}
	client := *opt.Client
	client.CheckRedirect = checkRedirect
	c := &httpConn{client: &client, base: base, auth: opt.Authorization}
	if c.auth == "" && u.User != nil {
		c.auth = basicAuth(u.User)
	}
	if err := c.open(ctx); err != nil {
		return nil, err
	}
	return newRemote(c)
}

func basicAuth(user *url.Userinfo) string {
	r := http.Request{Header: http.Header{}}
	password, _ := user.Password()
	r.SetBasicAuth(user.Username(), password)
	return r.Header.Get("Authorization")
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("a redirect leads from https to %s", req.URL.Scheme)
	}
	if req.URL.Host != via[0].URL.Host {
		req.Header.Del("Authorization") // net/http would send it to another port
	}
	return nil
}

func (c *httpConn) open(ctx context.Context) error {
	u := *c.base
	u.Path += "/info/refs"
	u.RawQuery = "service=git-upload-pack"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "*/*")
	resp, err := c.do(req)
	if err != nil {
		return err
	}
	if t := resp.Header.Get("Content-Type"); t != advertisementType {
		_ = resp.Body.Close()
		return fmt.Errorf("the answer is %q, not that of a git server with smart HTTP", t)
	}
	if err := c.redirected(resp.Request.URL); err != nil {
		_ = resp.Body.Close()
		return err
	}
	c.close = resp.Body.Close
	c.opening = newPacketReader(resp.Body)
	// The greeting of the first version has a line and a flush before it.
	if b, err := c.opening.r.Peek(5); err == nil && b[4] == '#' {
		if _, _, err := c.opening.next(); err != nil {
			return errors.Join(err, c.close())
		}
		if _, _, err := c.opening.next(); err != nil {
			return errors.Join(err, c.close())
		}
	}
	return nil
}

// redirected makes the place where the greeting came from the base of what
// follows. The credentials are the first host's alone.
func (c *httpConn) redirected(final *url.URL) error {
	path, ok := strings.CutSuffix(final.Path, "/info/refs")
	if !ok {
		return fmt.Errorf("a redirect leads to %s, which is not a repository's info/refs", final.Redacted())
	}
	if final.Host != c.base.Host {
		c.auth = ""
	}
	c.base = &url.URL{Scheme: final.Scheme, Host: final.Host, Path: path}
	return nil
}

func (c *httpConn) do(req *http.Request) (*http.Response, error) {
	req.Header.Set("User-Agent", agentName)
	req.Header.Set("Git-Protocol", "version=2")
	if c.auth != "" {
		req.Header.Set("Authorization", c.auth)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			return nil, ue.Err // without the URL
		}
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, &StatusError{Status: resp.StatusCode}
	}
	return resp, nil
}

func (c *httpConn) greeting() *packetReader { return c.opening }

func (c *httpConn) request(ctx context.Context, msg []byte) (*packetReader, func(), error) {
	u := *c.base
	u.Path += "/git-upload-pack"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(msg))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", requestType)
	req.Header.Set("Accept", resultType)
	resp, err := c.do(req) //nolint:bodyclose // the caller says when it is done
	if err != nil {
		return nil, nil, err
	}
	if t := resp.Header.Get("Content-Type"); t != resultType {
		_ = resp.Body.Close()
		return nil, nil, fmt.Errorf("the answer is %q, not a git server's", t)
	}
	return newPacketReader(resp.Body), func() {
		_, _ = io.CopyN(io.Discard, resp.Body, 4<<10) // the rest, so that the connection can be used again
		_ = resp.Body.Close()
	}, nil
}

func (c *httpConn) Close() error {
	if c.close == nil {
		return nil
	}
	return c.close()
}
