// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/source/bucket"
)

func openStore(t *testing.T, client *http.Client, change func(o *bucket.StoreOptions)) *bucket.Store {
	t.Helper()
	o := bucket.StoreOptions{
		Options: bucket.Options{HTTP: client, Getenv: os.Getenv}, Bucket: "bkt",
		Wait: 2 * time.Second, Stall: time.Second,
	}
	if change != nil {
		change(&o)
	}
	s, err := bucket.OpenStore(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func blob(content string) (ocispecs.Descriptor, func(context.Context, int64) (io.ReadCloser, error)) {
	desc := ocispecs.Descriptor{MediaType: "application/x-test", Digest: digest.FromString(content), Size: int64(len(content))}
	return desc, func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content[offset:])), nil
	}
}

func read(t *testing.T, s *bucket.Store, key string, offset int64) (content, version string) {
	t.Helper()
	rc, version, err := s.Open(t.Context(), key, offset)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), version
}

// gateway starts versitygw with the bucket bkt in dir.
func gateway(t *testing.T, dir string) *http.Client {
	t.Helper()
	clear(t)
	if err := os.MkdirAll(filepath.Join(dir, "bkt"), 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	start(t, "versitygw", "unix", socket, []string{"ROOT_ACCESS_KEY=key", "ROOT_SECRET_KEY=planted-secret"}, "--quiet", "--port", socket, "posix", dir)
	t.Setenv("S3_ENDPOINT", "http://s3.test")
	t.Setenv("S3_FORCE_PATH_STYLE", "true")
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
	return only("unix", socket)
}

// TestStore talks to versitygw, which checks signatures and digests.
func TestStore(t *testing.T) {
	client := gateway(t, t.TempDir())
	var received, sent atomic.Int64
	s := openStore(t, client, func(o *bucket.StoreOptions) {
		o.Received, o.Sent = func(n int64) { received.Add(n) }, func(n int64) { sent.Add(n) }
	})
	const key = "pre fix/blobs/sha256:00+ä"
	if _, _, err := s.Open(t.Context(), key, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open what is not there: %v", err)
	}
	if _, _, err := s.Stat(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat what is not there: %v", err)
	}
	desc, open := blob("0123456789")
	if err := s.Put(t.Context(), key, desc, open); err != nil {
		t.Fatal(err)
	}
	if got, _ := read(t, s, key, 0); got != "0123456789" {
		t.Errorf("read %q", got)
	}
	if got, _ := read(t, s, key, 7); got != "789" {
		t.Errorf("read %q from 7", got)
	}
	if received.Load() != 13 || sent.Load() != 10 {
		t.Errorf("received %d, sent %d", received.Load(), sent.Load())
	}
	size, written, err := s.Stat(t.Context(), key)
	if err != nil || size != 10 || time.Since(written) > time.Minute {
		t.Errorf("stat: %d, %s, %v", size, written, err)
	}
	if err := s.Touch(t.Context(), key, "application/x-test"); err != nil {
		t.Error(err)
	}
	if got, _ := read(t, s, key, 0); got != "0123456789" {
		t.Errorf("read %q after a touch", got)
	}
	// Other bytes than the descriptor's are not taken.
	desc.Digest = digest.FromString("other")
	if err := s.Put(t.Context(), "other", desc, open); err == nil || !strings.Contains(err.Error(), "XAmzContentSHA256Mismatch") {
		t.Errorf("put other bytes: %v", err)
	}
	failing := func(context.Context, int64) (io.ReadCloser, error) { return nil, io.ErrNoProgress }
	if err := s.Put(t.Context(), "other", desc, failing); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("put what cannot be opened: %v", err)
	}
}

// TestStoreReplace: of two who replace the same version one is told.
func TestStoreReplace(t *testing.T) {
	s := openStore(t, gateway(t, t.TempDir()), nil)
	replace := func(content, version string) error {
		return s.Replace(t.Context(), "doc", "application/x-test", []byte(content), version)
	}
	if err := replace("one", ""); err != nil {
		t.Fatal(err)
	}
	if err := replace("none", ""); !errors.Is(err, fs.ErrExist) {
		t.Errorf("make what is there: %v", err)
	}
	_, version := read(t, s, "doc", 0)
	if err := replace("two", version); err != nil {
		t.Fatal(err)
	}
	if err := replace("none", version); !errors.Is(err, fs.ErrExist) {
		t.Errorf("replace what is another by now: %v", err)
	}
	if got, _ := read(t, s, "doc", 0); got != "two" {
		t.Errorf("read %q", got)
	}
}

// TestStoreRefused: what a server says is put into one line without keys.
func TestStoreRefused(t *testing.T) {
	client := gateway(t, t.TempDir())
	wrong := func(o *bucket.StoreOptions) {
		o.AccessKeyID, o.SecretKey = "key", "planted-other"
	}
	unknown := func(o *bucket.StoreOptions) {
		o.AccessKeyID, o.SecretKey = "planted-id", "planted-other"
	}
	for name, test := range map[string]struct {
		change func(o *bucket.StoreOptions)
		want   string
	}{
		"bucket":     {func(o *bucket.StoreOptions) { o.Bucket = "none" }, "404 Not Found (NoSuchBucket): there is no bucket none"},
		"secret":     {wrong, "403 Forbidden (SignatureDoesNotMatch): the server does not accept these keys"},
		"access key": {unknown, "404 Not Found (XAdminUserNotFound): the server does not accept these keys"},
	} {
		s := openStore(t, client, test.change)
		_, _, err := s.Open(t.Context(), "doc", 0)
		if err == nil || err.Error() != test.want || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: open: %v, want %s", name, err, test.want)
		}
		desc, open := blob("x")
		if err := s.Put(t.Context(), "doc", desc, open); err == nil || err.Error() != test.want {
			t.Errorf("%s: put: %v, want %s", name, err, test.want)
		}
	}
}

// TestStoreAnswers is about servers of other kinds, and broken ones.
func TestStoreAnswers(t *testing.T) {
	clear(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
	var asked atomic.Int32
	var copied string
	ahead := time.Now().UTC().Add(48 * time.Hour)
	client := stand(t, func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		refuse := func(status int, code string) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "<Error><Code>"+code+"</Code><Message>planted-message</Message></Error>")
		}
		key := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		switch {
		case r.Header.Get("X-Amz-Copy-Source") != "":
			copied = r.Header.Get("X-Amz-Copy-Source") + " " + r.Header.Get("X-Amz-Metadata-Directive")
			_, _ = io.WriteString(w, "<CopyObjectResult><ETag>x</ETag></CopyObjectResult>")
		case r.Header.Get("If-None-Match")+r.Header.Get("If-Match") != "":
			refuse(http.StatusNotImplemented, "NotImplemented")
		case key == "hangs":
			<-r.Context().Done()
		case key == "busy" && n == 1:
			refuse(http.StatusServiceUnavailable, "SlowDown")
		case key == "elsewhere" && !strings.Contains(r.Host, "eu-north-1"):
			w.Header().Set("X-Amz-Bucket-Region", "eu-north-1")
			refuse(http.StatusMovedPermanently, "PermanentRedirect")
		case key == "redirects":
			http.Redirect(w, r, "https://elsewhere.test/planted", http.StatusTemporaryRedirect)
		case key == "odd":
			refuse(http.StatusBadRequest, "\x1b[31m planted")
		case key == "endless":
			w.WriteHeader(http.StatusForbidden)
			for r.Context().Err() == nil {
				_, _ = io.WriteString(w, strings.Repeat(" ", 1<<16))
			}
		case key == "skewed" && !strings.HasPrefix(r.Header.Get("X-Amz-Date"), ahead.Format("20060102T15")):
			w.Header().Set("Date", ahead.Format(http.TimeFormat))
			refuse(http.StatusForbidden, "RequestTimeTooSkewed")
		case key == "html":
			w.WriteHeader(http.StatusBadGateway)
			_, _ = io.WriteString(w, "<html>planted")
		case key == "otherpart":
			w.Header().Set("Content-Range", "bytes 1-4/5")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, "1234")
		default:
			_, _ = io.WriteString(w, "01234")
		}
	})
	s := openStore(t, client, nil)
	for key, want := range map[string]string{
		"hangs": "nothing moved for 1s", "redirects": "307 Temporary Redirect", "odd": "400 Bad Request", "html": "502 Bad Gateway", "endless": "403 Forbidden: a cache needs s3:GetObject, s3:PutObject and s3:ListBucket",
		"otherpart": "the server sent another part of the object than it was asked for",
	} {
		asked.Store(0)
		_, _, err := s.Open(t.Context(), key, 2)
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", key, err, want)
		}
		// What took its time is not tried again.
		if n := asked.Load(); key == "hangs" && n != 1 {
			t.Errorf("%s: asked %d times", key, n)
		}
	}
	asked.Store(0)
	for _, key := range []string{"busy", "elsewhere", "norange", "skewed"} {
		if got, _ := read(t, s, key, 2); got != "234" {
			t.Errorf("%s: %q", key, got)
		}
	}
	if err := s.Replace(t.Context(), "doc", "application/x-test", []byte("x"), ""); err != nil {
		t.Errorf("a server without conditions: %v", err)
	}
	// A copy onto itself with other metadata is what makes an object young.
	if err := s.Touch(t.Context(), "a b/sha256:0+", "application/x-test"); err != nil || copied != "bkt/a%20b/sha256%3A0%2B REPLACE" {
		t.Errorf("touch: %v, copied %s", err, copied)
	}
}

// TestStoreRenews: the token of a service account is read from what was opened at
// the start, and read anew when credentials are.
func TestStoreRenews(t *testing.T) {
	clear(t)
	t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token")
	t.Setenv("AWS_REGION", "eu-west-1")
	var tokens []string
	client := stand(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Host, "sts.") {
			_, _ = io.WriteString(w, "x")
			return
		}
		form := body(r)
		for _, s := range []string{"first", "second"} {
			if strings.Contains(form, "WebIdentityToken="+s) {
				tokens = append(tokens, s)
			}
		}
		// They expire so soon that they are renewed at each use.
		_, _ = io.WriteString(w, `<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>session-id</AccessKeyId>`+
			`<SecretAccessKey>x</SecretAccessKey><SessionToken>session</SessionToken><Expiration>`+time.Now().Add(-time.Second).UTC().Format(time.RFC3339)+`</Expiration></Credentials>`+
			`</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`)
	})
	token := []byte("first")
	s := openStore(t, client, func(o *bucket.StoreOptions) {
		o.OpenFile = func(path string) (func() ([]byte, error), error) {
			if path != "/nowhere/token" {
				t.Errorf("opened %s", path)
			}
			return func() ([]byte, error) { return bytes.Clone(token), nil }, nil
		}
	})
	token = []byte("second")
	if got, _ := read(t, s, "doc", 0); got != "x" {
		t.Errorf("read %q", got)
	}
	if len(tokens) < 2 || tokens[0] != "first" || tokens[len(tokens)-1] != "second" {
		t.Errorf("shown were %v", tokens)
	}
}

// TestStoreParts: what is too big for one request is sent in several.
func TestStoreParts(t *testing.T) {
	dir := t.TempDir()
	client := gateway(t, dir)
	s := openStore(t, client, func(o *bucket.StoreOptions) { o.MaxPut = 40 << 20 })
	content := strings.Repeat("0123456789abcdef", 41<<16) // 41 MiB, in parts of 5
	desc, open := blob(content)
	if err := s.Put(t.Context(), "big", desc, open); err != nil {
		t.Fatal(err)
	}
	if got, _ := read(t, s, "big", 0); got != content {
		t.Errorf("%d bytes, want %d, or others", len(got), len(content))
	}
	if got, _ := read(t, s, "big", 40<<20); got != content[40<<20:] {
		t.Error("other bytes from the middle")
	}
	desc.Digest = digest.FromString("other")
	if err := s.Put(t.Context(), "other", desc, open); err == nil || !strings.Contains(err.Error(), "its bytes are others") {
		t.Errorf("put other bytes: %v", err)
	}
	if _, _, err := s.Stat(t.Context(), "other"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is there all the same: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "bkt", ".sgwtmp", "multipart", "*", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("parts were left: %v, %v", left, err)
	}
}
