// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
	// The algorithms that a checksum may name.
	_ "crypto/sha256"
	_ "crypto/sha512"

	"hako/internal/store"
	"hako/internal/tree"
)

// HTTPOptions say how a URL is fetched and how its file looks.
type HTTPOptions struct {
	Checksum digest.Digest // what the content must have, or ""
	Filename string        // name of the file; "" takes the server's, then the URL's
	Mode     tree.Mode     // permissions; 0 means 0600
	UID, GID uint32
	MaxSize  int64         // of the content; 0 means any
	Header   http.Header   // sent with the request
	Attempts int           // how often to try; 0 means 5
	Delay    time.Duration // wait before the second attempt, doubled each time; 0 means 500 ms
}

// An HTTPFile is a fetched file. Its content is in the store under Digest.
type HTTPFile struct {
	FS           tree.FS // the root and the file in it
	Name         string
	Digest       digest.Digest // SHA-256
	Size         int64
	LastModified time.Time // zero if the server did not say
}

// maxRetryAfter bounds what a server may ask to be waited for.
const maxRetryAfter = 30 * time.Second

// FetchHTTP gets rawURL and puts its content into st, as ADD and http contexts
// have it in BuildKit: one file, owned 0:0, mode 0600, with the time of the
// Last-Modified header or 1970-01-01.
//
// What may pass by itself (connections that break, also in the middle of the
// content; 408, 429 and 5xx) is tried again. Errors have neither the query nor
// the credentials of the URL, as these may be secret.
func FetchHTTP(ctx context.Context, client *http.Client, st *store.Store, rawURL string, opt HTTPOptions) (*HTTPFile, error) {
	shown := redactURL(rawURL)
	if opt.Checksum != "" {
		if err := opt.Checksum.Validate(); err != nil {
			return nil, fmt.Errorf("fetch %s: checksum %q: %w", shown, opt.Checksum, err)
		}
	}
	attempts, delay := opt.Attempts, opt.Delay
	if attempts <= 0 {
		attempts = maxAttempts
	}
	if delay <= 0 {
		delay = firstDelay
	}
	var f *HTTPFile
	err := retry(ctx, attempts, delay, func() (err error) {
		f, err = fetchOnce(ctx, client, st, rawURL, opt)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", shown, err)
	}
	return f, nil
}

// A passingError is worth another attempt, but not before some time.
type passingError struct {
	err   error
	after time.Duration
}

func (e *passingError) Error() string { return e.err.Error() }
func (e *passingError) Unwrap() error { return e.err }

// An HTTPStatusError is an answer other than success.
type HTTPStatusError struct{ Status int }

// Error returns "404 Not Found".
func (e *HTTPStatusError) Error() string {
	return strings.TrimSpace(strconv.Itoa(e.Status) + " " + http.StatusText(e.Status))
}

func fetchOnce(ctx context.Context, client *http.Client, st *store.Store, rawURL string, opt HTTPOptions) (*HTTPFile, error) {
	resp, err := get(ctx, client, rawURL, opt.Header)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	f := &HTTPFile{Name: httpFileName(rawURL, opt.Filename, resp.Header)}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		f.LastModified = t
	}
	body := resp.Body
	if opt.MaxSize > 0 {
		body = http.MaxBytesReader(nil, body, opt.MaxSize)
	}
	if err := f.save(st, body, opt.Checksum); err != nil {
		return nil, err
	}
	f.FS = f.tree(st, opt)
	return f, nil
}

// get sends a request and returns the answer if it is a success. Its errors have
// no URL.
func get(ctx context.Context, client *http.Client, rawURL string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
	if err != nil {
		return nil, withoutURL(err)
	}
	for k, v := range header {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, transportError(withoutURL(err))
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 300 {
		err := statusError(resp)
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// save streams body into the store and verifies it on the way.
func (f *HTTPFile) save(st *store.Store, body io.Reader, checksum digest.Digest) error {
	w, err := st.Create()
	if err != nil {
		return err
	}
	defer w.Discard()
	sha := digest.SHA256.Digester()
	out := io.MultiWriter(w, sha.Hash())
	var verifier digest.Verifier
	if checksum != "" && checksum.Algorithm() != digest.SHA256 {
		verifier = checksum.Verifier()
		out = io.MultiWriter(out, verifier)
	}
	in := &sourceReader{r: body}
	if f.Size, err = io.Copy(out, in); err != nil {
		if e, ok := errors.AsType[*http.MaxBytesError](in.err); ok {
			return fmt.Errorf("it has more than %d bytes", e.Limit)
		}
		if in.err != nil {
			return transportError(in.err)
		}
		return err
	}
	f.Digest = sha.Digest()
	switch {
	case verifier != nil && !verifier.Verified():
		return &ChecksumError{Size: f.Size, Got: f.Digest, Want: checksum}
	case verifier == nil && checksum != "" && checksum != f.Digest:
		return &ChecksumError{Size: f.Size, Got: f.Digest, Want: checksum}
	}
	return w.Commit(store.Blobs, f.Digest)
}

// A sourceReader remembers errors of reading, to tell them from errors of
// writing.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (f *HTTPFile) tree(st *store.Store, opt HTTPOptions) tree.FS {
	mode, at := opt.Mode.Perm(), f.LastModified
	if mode == 0 {
		mode = 0o600
	}
	if at.IsZero() {
		at = time.Unix(0, 0)
	}
	return &oneFile{
		entry: tree.Entry{
			Path: f.Name, Mode: tree.ModeRegular | mode, UID: opt.UID, GID: opt.GID,
			Size: f.Size, ModTime: at, Digest: f.Digest,
		},
		open: func() (io.ReadCloser, error) { return st.Get(store.Blobs, f.Digest) },
	}
}

func statusError(resp *http.Response) error {
	err := &HTTPStatusError{Status: resp.StatusCode}
	if s := resp.StatusCode; s < 500 && s != http.StatusTooManyRequests && s != http.StatusRequestTimeout {
		return err
	}
	var after time.Duration
	h := resp.Header.Get("Retry-After")
	if n, aerr := strconv.Atoi(h); aerr == nil && n > 0 {
		after = time.Duration(min(n, 3600)) * time.Second
	} else if t, terr := http.ParseTime(h); terr == nil {
		after = time.Until(t)
	}
	return &passingError{err: err, after: min(after, maxRetryAfter)}
}

// transportError marks err as passing unless it is certain to come again.
func transportError(err error) error {
	var dns *net.DNSError
	if errors.Is(err, context.Canceled) || errors.As(err, &dns) && dns.IsNotFound {
		return err
	}
	var op *net.OpError
	if errors.As(err, &op) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || isTimeout(err) {
		return &passingError{err: err}
	}
	// Errors of TLS, of redirects and of HTTP itself stay; errors of HTTP/2
	// streams have no exported type.
	if strings.Contains(err.Error(), "stream error") || strings.Contains(err.Error(), "GOAWAY") {
		return &passingError{err: err}
	}
	return err
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// withoutURL takes the URL out of a client's error: its query may be a signature.
func withoutURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// redactURL returns the URL without credentials, query and fragment.
func redactURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "a URL that cannot be parsed"
	}
	if u.User != nil {
		u.User = url.User("xxxxx")
	}
	if u.RawQuery != "" {
		u.RawQuery = "xxxxx"
	}
	u.Fragment, u.RawFragment = "", ""
	return u.String()
}

// httpFileName returns the name that a fetched file gets: the one asked for, the
// one in Content-Disposition, or the last part of the URL's path.
func httpFileName(rawURL, asked string, h http.Header) string {
	if asked != "" {
		return safeFileName(asked)
	}
	if _, params, err := mime.ParseMediaType(h.Get("Content-Disposition")); err == nil {
		if n := params["filename"]; n != "" && !strings.HasSuffix(n, "/") {
			return safeFileName(n)
		}
	}
	if u, err := url.Parse(rawURL); err == nil {
		return safeFileName(path.Base(u.Path))
	}
	return safeFileName("")
}

// safeFileName returns a single component; "download" for what is none.
func safeFileName(s string) string {
	name := filepath.ToSlash(filepath.Base(filepath.FromSlash(strings.TrimSpace(s))))
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") || strings.ContainsFunc(name, unicode.IsControl) {
		return "download"
	}
	return name
}
