// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// TestGCS talks to fake-gcs-server, which checks no credentials.
func TestGCS(t *testing.T) {
	clear(t)
	dir := t.TempDir()
	data := contextTar(t)
	write(t, filepath.Join(dir, "bkt", "context.tar.gz"), data)
	write(t, filepath.Join(dir, "bkt", "dir/a b+c.tgz"), data)
	write(t, filepath.Join(dir, "bkt", "cut"), data[:40])
	address, port := freeAddress(t)
	start(t, "fake-gcs-server", "tcp", address, nil, "-scheme", "http", "-host", "127.0.0.1", "-port", port, "-backend", "memory", "-data", dir, "-log-level", "error")
	t.Setenv("STORAGE_EMULATOR_HOST", address)
	for _, w := range []want{
		{address: "gs://bkt/context.tar.gz"},
		{address: "gs://bkt/dir/a b+c.tgz"},
		{address: "gs://bkt/"},
		{address: "gs://bkt"},
		{"gs://bkt/none", "404 Not Found", "check the names of bucket and object"},
		{"gs://none/a", "404 Not Found", "check the names of bucket and object"},
		{"gs://bkt/cut", "it ends too early", ""},
		{"gs://", "gs://: want gs://BUCKET/OBJECT", ""},
	} {
		w.check(t, http.DefaultClient)
	}
}

// serviceAccount writes a key file as Google hands them out.
func serviceAccount(t *testing.T) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "a@b.iam.gserviceaccount.com", "private_key_id": "planted-id",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), "token_uri": "https://oauth2.googleapis.com/token",
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.json")
	write(t, path, b)
	return path
}

// TestGCSCredentials speaks Google's protocol with a key file, and without one.
func TestGCSCredentials(t *testing.T) {
	clear(t)
	data := contextTar(t)
	isDeleted := false
	client := stand(t, func(w http.ResponseWriter, r *http.Request) {
		auth := r.Header.Get("Authorization")
		switch {
		case r.Host == "oauth2.googleapis.com" && isDeleted:
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`))
		case r.Host == "oauth2.googleapis.com":
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write([]byte(`{"access_token":"planted-token","expires_in":3600,"token_type":"Bearer"}`))
		case strings.Contains(r.URL.EscapedPath(), "/b/public/o/dir%2Fa"):
			_, _ = w.Write(data)
		case auth == "":
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"error":{"code":401,"message":"Anonymous caller does not have storage.objects.get access"}}`))
		case auth != "Bearer planted-token" || strings.Contains(r.URL.Path, "/b/other/"):
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"error":{"code":403,"message":"a@b.iam.gserviceaccount.com does not have storage.objects.get access"}}`))
		case strings.Contains(r.URL.Path, "/b/none/"):
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"error":{"code":404,"message":"The specified bucket does not exist."}}`))
		default:
			_, _ = w.Write(data)
		}
	})
	want{address: "gs://public/dir/a"}.check(t, client)
	want{"gs://bkt/a", "401 Unauthorized (Anonymous caller does not have storage.objects.get access)", "no Google credentials were found"}.check(t, client)
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", serviceAccount(t))
	want{address: "gs://bkt/a"}.check(t, client)
	want{"gs://other/a", "does not have storage.objects.get access)", "roles/storage.objectViewer"}.check(t, client, "planted")
	want{"gs://none/a", "404 Not Found (The specified bucket does not exist.)", "there is no bucket none"}.check(t, client, "planted")
	isDeleted = true
	want{"gs://bkt/a", "get an access token: 400 Bad Request invalid_grant Invalid JWT Signature.", "a key may have been deleted"}.check(t, client, "planted")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", "/none/key.json")
	want{"gs://bkt/a", "open /none/key.json: no such file or directory", "read GOOGLE_APPLICATION_CREDENTIALS"}.check(t, client)
}
