// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hako/internal/source/bucket"
)

const azureKey = "cGxhbnRlZC1rZXk=" // planted-key

// azureStand answers as Azure Blob Storage does, for one account with one key, and
// as Entra ID does for workload identities. It computes signatures by Microsoft's
// description, "Authorize with Shared Key".
type azureStand struct {
	data []byte
	jwt  string // a workload's token that is trusted
}

func (s *azureStand) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, code string) {
		w.Header().Set("X-Ms-Error-Code", code)
		w.WriteHeader(status)
	}
	const tenant = "https://login.microsoftonline.com/tenant"
	switch {
	case r.Host == "login.microsoftonline.com" && strings.HasSuffix(r.URL.Path, "/token"):
		w.Header().Set("Content-Type", "application/json")
		if !strings.Contains(body(r), "client_assertion="+s.jwt) {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"error":"invalid_client","error_description":"AADSTS700024: planted assertion is not within its valid time range."}`))
			return
		}
		_, _ = w.Write([]byte(`{"access_token":"planted-bearer","expires_in":3600,"token_type":"Bearer"}`))
	case r.Host == "login.microsoftonline.com":
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"tenant_discovery_endpoint":"%[1]s/v2.0/.well-known/openid-configuration","issuer":"%[1]s/v2.0",`+
			`"token_endpoint":"%[1]s/oauth2/v2.0/token","authorization_endpoint":"%[1]s/oauth2/v2.0/authorize","metadata":[]}`, tenant)
	case !strings.HasPrefix(r.Host, "acct.blob.core."):
		w.WriteHeader(http.StatusTeapot)
	case !s.allows(r):
		refuse(http.StatusForbidden, "AuthenticationFailed")
	case r.URL.Path == "/c/dir/context.tar.gz" || r.URL.Path == "/public/a":
		_, _ = w.Write(s.data)
	case strings.HasPrefix(r.URL.Path, "/c/"):
		refuse(http.StatusNotFound, "BlobNotFound")
	default:
		refuse(http.StatusNotFound, "ContainerNotFound")
	}
}

func (s *azureStand) allows(r *http.Request) bool {
	auth := r.Header.Get("Authorization")
	switch {
	case strings.HasPrefix(r.URL.Path, "/public/"), r.URL.Query().Get("sig") == "planted-sig", auth == "Bearer planted-bearer":
		return true
	}
	var names []string
	for k := range r.Header {
		if k = strings.ToLower(k); strings.HasPrefix(k, "x-ms-") {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	text := r.Method + strings.Repeat("\n", 12)
	for _, n := range names {
		text += n + ":" + r.Header.Get(n) + "\n"
	}
	key, _ := base64.StdEncoding.DecodeString(azureKey)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text + "/acct" + r.URL.EscapedPath()))
	return auth == "SharedKey acct:"+base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func TestAzure(t *testing.T) {
	clear(t)
	s := &azureStand{data: contextTar(t), jwt: "planted-jwt"}
	client := stand(t, s.ServeHTTP)
	const at = "https://acct.blob.core.windows.net/"

	want{address: at + "public/a"}.check(t, client)
	want{at + "c/dir/context.tar.gz", "403 Forbidden (AuthenticationFailed)", "no Azure credentials were found"}.check(t, client)

	t.Setenv("AZURE_STORAGE_ACCESS_KEY", azureKey)
	for _, w := range []want{
		{address: at + "c/dir/context.tar.gz"},
		{address: "https://acct.blob.core.chinacloudapi.cn/c/dir/context.tar.gz"},
		{address: "https://acct.blob.core.cloudapi.de/c/dir/context.tar.gz"},
		{address: "https://acct.blob.core.usgovcloudapi.net/c/dir/context.tar.gz"},
		{at + "c/none", "fetch " + at + "c/none: 404 Not Found (BlobNotFound)", "check the names of container and blob"},
		{at + "none/a", "fetch " + at + "none/a: 404 Not Found (ContainerNotFound)", "check the container's name"},
	} {
		w.check(t, client, azureKey)
	}
	t.Setenv("AZURE_STORAGE_ACCESS_KEY", "d3Jvbmc=")
	want{at + "c/dir/context.tar.gz", "403 Forbidden (AuthenticationFailed)", "does not accept AZURE_STORAGE_ACCESS_KEY"}.check(t, client, "d3Jvbmc=")
	t.Setenv("AZURE_STORAGE_ACCESS_KEY", "planted!")
	want{at + "c/dir/context.tar.gz", "AZURE_STORAGE_ACCESS_KEY is no key: want base64", ""}.check(t, client, "planted")

	// A signature in the URL goes before the key, and is in no message.
	want{address: at + "c/dir/context.tar.gz?sp=r&sig=planted-sig"}.check(t, client)
	want{at + "c/dir/context.tar.gz?sp=r&sig=planted-old", "fetch " + at + "c/dir/context.tar.gz?xxxxx: 403 Forbidden (AuthenticationFailed)", "the signature in the URL"}.check(t, client, "planted")
	want{at + "c/none?sig=planted-sig", "c/none?xxxxx: 404 Not Found (BlobNotFound)", ""}.check(t, client, "planted")

	t.Setenv("AZURE_STORAGE_ACCESS_KEY", "")
	token := filepath.Join(t.TempDir(), "token")
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", token)
	t.Setenv("AZURE_TENANT_ID", "tenant")
	want{at + "c/dir/context.tar.gz", "no client ID specified. Check pod configuration or set ClientID in the options", "workload identity"}.check(t, client)
	t.Setenv("AZURE_CLIENT_ID", "client")
	write(t, token, []byte("planted-jwt"))
	want{address: at + "c/dir/context.tar.gz"}.check(t, client)
	write(t, token, []byte("planted-expired"))
	want{at + "c/dir/context.tar.gz", "workload identity: 401 Unauthorized", "it may have expired, or not be trusted"}.check(t, client, "planted-expired")
}

// Keys go to Azure's own hosts.
func TestAzureHosts(t *testing.T) {
	t.Parallel()
	for address, is := range map[string]bool{
		"https://acct.blob.core.windows.net/c/a":             true,
		"https://acct.blob.core.windows.net/":                false,
		"http://acct.blob.core.windows.net/c/a":              false,
		"https://blob.core.windows.net/c/a":                  false,
		"https://a.b.blob.core.windows.net/c/a":              false,
		"https://evil.com/acct.blob.core.windows.net/c/a":    false,
		"https://acct.blob.core.windows.net.evil.com/c/a":    false,
		"https://evil.com#acct.blob.core.windows.net/c/a":    false,
		"https://acct.blob.core.windows.net:443/c/a":         false,
		"https://user@acct.blob.core.windows.net/c/a":        false,
		"https://acct.blob.corexwindows.net/c/a":             false,
		"https://acct.blob.core.windows.net@evil.com/c/a":    false,
		"https://evil.com?.blob.core.windows.net/c/a":        false,
		`https://evil.com\.blob.core.windows.net/c/a`:        false,
		"https://acct-secondary.blob.core.windows.net/c/a/b": true,
	} {
		if got := bucket.Is(address); got != is {
			t.Errorf("%s: %t", address, got)
		}
	}
}
