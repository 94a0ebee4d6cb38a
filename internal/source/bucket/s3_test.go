// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"bytes"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestS3 talks to versitygw, which checks signatures.
func TestS3(t *testing.T) {
	clear(t)
	dir := t.TempDir()
	data := contextTar(t)
	for _, key := range []string{"context.tar.gz", "dir/a b+c.tgz", "cut.tar.gz"} {
		write(t, filepath.Join(dir, "bkt", key), data)
	}
	write(t, filepath.Join(dir, "bkt", "cut.tar.gz"), data[:len(data)/2])
	socket := filepath.Join(t.TempDir(), "s")
	start(t, "versitygw", "unix", socket, []string{"ROOT_ACCESS_KEY=key", "ROOT_SECRET_KEY=planted-secret"}, "--quiet", "--port", socket, "posix", dir)
	client := only("unix", socket)

	t.Setenv("S3_ENDPOINT", "http://s3.test")
	t.Setenv("S3_FORCE_PATH_STYLE", "true")
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
	for _, w := range []want{
		{address: "s3://bkt/context.tar.gz"},
		{address: "s3://bkt/dir/a b+c.tgz"},
		{address: "s3://bkt/dir/a%20b+c.tgz"},
		{address: "s3://bkt"},
		{address: "s3://bkt/"},
		{"s3://bkt/none", "fetch s3://bkt/none: 404 Not Found (NoSuchKey)", "the bucket has no object none"},
		{"s3://none/a", "fetch s3://none/a: 404 Not Found (NoSuchBucket)", "there is no bucket none at S3_ENDPOINT"},
		{"s3://bkt/cut.tar.gz", "fetch s3://bkt/cut.tar.gz: read tar: it ends too early", "stopped in the middle"},
		{"s3:///a", "s3://: want s3://BUCKET/OBJECT", ""},
	} {
		w.check(t, client, "planted-secret")
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "planted-other")
	want{"s3://bkt/a", "403 Forbidden (SignatureDoesNotMatch)", "does not accept these keys"}.check(t, client, "planted")
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	want{"s3://bkt/context.tar.gz", "403 Forbidden (AccessDenied)", "no AWS credentials were found"}.check(t, client)

	// Credentials can be in a profile, too.
	home := t.TempDir()
	write(t, filepath.Join(home, "credentials"), []byte("[ci]\naws_access_key_id = key\naws_secret_access_key = planted-secret\n"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(home, "credentials"))
	t.Setenv("AWS_PROFILE", "ci")
	want{address: "s3://bkt/context.tar.gz"}.check(t, client)
	t.Setenv("AWS_PROFILE", "none")
	want{"s3://bkt/context.tar.gz", "failed to get shared config profile, none", ""}.check(t, client)
}

// TestS3Answers is about answers that need Amazon.
func TestS3Answers(t *testing.T) {
	clear(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
	data := contextTar(t)
	var hosts []string
	client := stand(t, func(w http.ResponseWriter, r *http.Request) {
		hosts = append(hosts, r.Host)
		refuse := func(status int, code string) {
			w.WriteHeader(status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>planted-message</Message></Error>", code)
		}
		switch {
		case strings.Contains(r.Host, "us-east-1") && strings.HasPrefix(r.Host, "elsewhere."):
			w.Header().Set("X-Amz-Bucket-Region", "eu-north-1")
			refuse(http.StatusMovedPermanently, "PermanentRedirect")
		case strings.HasPrefix(r.Host, "old."):
			refuse(http.StatusBadRequest, "ExpiredToken")
		case strings.HasPrefix(r.Host, "gone."):
			refuse(http.StatusForbidden, "InvalidAccessKeyId")
		case strings.HasPrefix(r.Host, "closed."):
			refuse(http.StatusForbidden, "AccessDenied")
		default:
			_, _ = w.Write(data)
		}
	})
	want{address: "s3://plain/context.tar.gz"}.check(t, client)
	want{address: "s3://elsewhere/context.tar.gz"}.check(t, client)
	if got := strings.Join(hosts, " "); got != "plain.s3.us-east-1.amazonaws.com elsewhere.s3.us-east-1.amazonaws.com elsewhere.s3.eu-north-1.amazonaws.com" {
		t.Errorf("asked %s", got)
	}
	want{"s3://old/a", "400 Bad Request (ExpiredToken)", "the AWS session has expired"}.check(t, client, "planted")
	want{"s3://gone/a", "403 Forbidden (InvalidAccessKeyId)", "does not accept these keys"}.check(t, client, "planted")
	want{"s3://closed/a", "403 Forbidden (AccessDenied)", "allow s3:GetObject on arn:aws:s3:::closed/a"}.check(t, client, "planted")
}

// TestS3WebIdentity is how pods on EKS get credentials.
func TestS3WebIdentity(t *testing.T) {
	clear(t)
	token := filepath.Join(t.TempDir(), "token")
	t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/r")
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", token)
	t.Setenv("AWS_REGION", "eu-west-1")
	data := contextTar(t)
	client := stand(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !strings.HasPrefix(r.Host, "sts."):
			if !strings.Contains(r.Header.Get("Authorization"), "Credential=session-id/") || r.Header.Get("X-Amz-Security-Token") != "session" {
				w.WriteHeader(http.StatusForbidden)
				return
			}
			_, _ = w.Write(data)
		case strings.Contains(body(r), "WebIdentityToken=planted-old"):
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte("<ErrorResponse><Error><Code>ExpiredTokenException</Code><Message>Token expired</Message></Error></ErrorResponse>"))
		default:
			_, _ = w.Write([]byte(`<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>session-id</AccessKeyId>` +
				`<SecretAccessKey>x</SecretAccessKey><SessionToken>session</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>` +
				`</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`))
		}
	})
	write(t, token, []byte("planted-new"))
	want{address: "s3://b/a"}.check(t, client)
	write(t, token, []byte("planted-old"))
	want{"s3://b/a", "get AWS credentials: ExpiredTokenException: Token expired", "AWS_WEB_IDENTITY_TOKEN_FILE"}.check(t, client, "planted")
}

// A transfer that breaks in the middle begins again.
func TestS3Breaks(t *testing.T) {
	clear(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "s")
	data := bytes.Clone(contextTar(t))
	tries := 0
	client := stand(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		if tries++; tries == 1 {
			_, _ = w.Write(data[:len(data)/2])
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(data)
	})
	want{address: "s3://b/a"}.check(t, client)
	if tries != 2 {
		t.Errorf("%d tries", tries)
	}
}
