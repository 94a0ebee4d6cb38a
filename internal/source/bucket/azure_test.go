// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket_test

import (
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"hako/internal/source/bucket"
)

const azureKey = "cGxhbnRlZC1rZXk=" // planted-key

// azureAccount returns a client for which azurite answers as the account acct,
// whatever the host, with the test's archive in a private and in a public
// container, and a signature for the former and one that has run out.
func azureAccount(t *testing.T) (client *http.Client, signature, old string) {
	t.Helper()
	address, port := freeAddress(t)
	start(t, "azurite", "tcp", address, []string{"AZURITE_ACCOUNTS=acct:" + azureKey}, "--blobPort", port, "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent")
	client = stand(t, httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address}).ServeHTTP)

	key, err := container.NewSharedKeyCredential("acct", azureKey)
	if err != nil {
		t.Fatal(err)
	}
	opt := &container.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: client}}
	for name, access := range map[string]*container.PublicAccessType{"ccc": nil, "public": to.Ptr(container.PublicAccessTypeBlob)} {
		c, err := container.NewClientWithSharedKeyCredential("https://acct.blob.core.windows.net/"+name, key, opt)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Create(t.Context(), &container.CreateOptions{Access: access}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.NewBlockBlobClient("dir/context.tar.gz").UploadBuffer(t.Context(), contextTar(t), nil); err != nil {
			t.Fatal(err)
		}
	}
	sign := func(until time.Time) string {
		q, err := sas.BlobSignatureValues{
			Protocol: sas.ProtocolHTTPSandHTTP, ExpiryTime: until, ContainerName: "ccc",
			Permissions: to.Ptr(sas.ContainerPermissions{Read: true}).String(),
		}.SignWithSharedKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return q.Encode()
	}
	return client, sign(time.Now().Add(time.Hour)), sign(time.Now().Add(-time.Hour))
}

// TestAzure talks to azurite, which checks keys and signatures.
func TestAzure(t *testing.T) {
	clear(t)
	client, signature, old := azureAccount(t)
	const at = "https://acct.blob.core.windows.net/"

	want{address: at + "public/dir/context.tar.gz"}.check(t, client)
	want{at + "ccc/dir/context.tar.gz", "403 Forbidden (AuthorizationFailure)", "no Azure credentials were found"}.check(t, client)

	t.Setenv("AZURE_STORAGE_ACCESS_KEY", azureKey)
	for _, w := range []want{
		{address: at + "ccc/dir/context.tar.gz"},
		{address: "https://acct.blob.core.chinacloudapi.cn/ccc/dir/context.tar.gz"},
		{address: "https://acct.blob.core.cloudapi.de/ccc/dir/context.tar.gz"},
		{address: "https://acct.blob.core.usgovcloudapi.net/ccc/dir/context.tar.gz"},
		{at + "ccc/none", "fetch " + at + "ccc/none: 404 Not Found (BlobNotFound)", "check the names of container and blob"},
		{at + "none/a", "fetch " + at + "none/a: 404 Not Found (ContainerNotFound)", "check the container's name"},
	} {
		w.check(t, client, azureKey)
	}
	t.Setenv("AZURE_STORAGE_ACCESS_KEY", "d3Jvbmc=")
	want{at + "ccc/dir/context.tar.gz", "403 Forbidden (AuthorizationFailure)", "does not accept AZURE_STORAGE_ACCESS_KEY"}.check(t, client, "d3Jvbmc=")
	t.Setenv("AZURE_STORAGE_ACCESS_KEY", "planted!")
	want{at + "ccc/dir/context.tar.gz", "AZURE_STORAGE_ACCESS_KEY is no key: want base64", ""}.check(t, client, "planted")

	// A signature in the URL goes before the key, and is in no message.
	want{address: at + "ccc/dir/context.tar.gz?" + signature}.check(t, client)
	_, sig, _ := strings.Cut(old, "sig=")
	sig, _, _ = strings.Cut(sig, "&")
	want{at + "ccc/dir/context.tar.gz?" + old, "fetch " + at + "ccc/dir/context.tar.gz?xxxxx: 403 Forbidden (AuthorizationFailure)", "the signature in the URL"}.check(t, client, sig)
	want{at + "ccc/none?" + signature, "ccc/none?xxxxx: 404 Not Found (BlobNotFound)", ""}.check(t, client, "sig=")
}

// TestAzureWorkload speaks, as azurite does not, the protocol of workload
// identities: of Entra ID, and of an account that takes its tokens.
func TestAzureWorkload(t *testing.T) {
	clear(t)
	const tenant = "https://login.microsoftonline.com/tenant"
	client := stand(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.Host == "acct.blob.core.windows.net" && r.Header.Get("Authorization") == "Bearer planted-bearer":
			_, _ = w.Write(contextTar(t))
		case r.Host != "login.microsoftonline.com":
			w.WriteHeader(http.StatusTeapot)
		case !strings.HasSuffix(r.URL.Path, "/token"):
			fmt.Fprintf(w, `{"tenant_discovery_endpoint":"%[1]s/v2.0/.well-known/openid-configuration","issuer":"%[1]s/v2.0",`+
				`"token_endpoint":"%[1]s/oauth2/v2.0/token","authorization_endpoint":"%[1]s/oauth2/v2.0/authorize","metadata":[]}`, tenant)
		case !strings.Contains(body(r), "client_assertion=planted-jwt"):
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"error":"invalid_client","error_description":"AADSTS700024: planted assertion is not within its valid time range."}`))
		default:
			_, _ = w.Write([]byte(`{"access_token":"planted-bearer","expires_in":3600,"token_type":"Bearer"}`))
		}
	})
	const at = "https://acct.blob.core.windows.net/"
	token := filepath.Join(t.TempDir(), "token")
	t.Setenv("AZURE_FEDERATED_TOKEN_FILE", token)
	t.Setenv("AZURE_TENANT_ID", "tenant")
	want{at + "c/context.tar.gz", "no client ID specified. Check pod configuration or set ClientID in the options", "workload identity"}.check(t, client)
	t.Setenv("AZURE_CLIENT_ID", "client")
	write(t, token, []byte("planted-jwt"))
	want{address: at + "c/context.tar.gz"}.check(t, client)
	write(t, token, []byte("planted-expired"))
	want{at + "c/context.tar.gz", "workload identity: 401 Unauthorized", "it may have expired, or not be trusted"}.check(t, client, "planted-expired")
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
