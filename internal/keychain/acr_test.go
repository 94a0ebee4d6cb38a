// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	acrRepo = "registry.azurecr.io/team/app"
	entra   = "login.microsoftonline.com"
)

// entraStandIn gives a token to the client of a tenant with its secret or its
// federated token.
func entraStandIn(rw http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(body))
	secret := form.Get("client_secret") == "s3cr3t"
	assertion := form.Get("client_assertion") == "jwt" && form.Get("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	switch {
	case r.URL.Path != "/tenant/oauth2/v2.0/token" || form.Get("client_id") != "client":
		answerJSON(rw, 400, object{"error": "unauthorized_client", "error_description": "AADSTS700016: Application not found."})
	case form.Get("grant_type") != "client_credentials" || form.Get("scope") != "https://containerregistry.azure.net/.default":
		answerJSON(rw, 400, object{"error": "invalid_scope"})
	case !secret && !assertion:
		answerJSON(rw, 401, object{"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret provided."})
	default:
		answerJSON(rw, 200, object{"access_token": "entra-token", "expires_in": 3599, "token_type": "Bearer"})
	}
}

// acrStandIn exchanges Entra's tokens, and knows one that has no rights here.
func acrStandIn(rw http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(body))
	if r.URL.Scheme != "https" || r.URL.Path != "/oauth2/exchange" || form.Get("grant_type") != "access_token" || form.Get("service") != r.URL.Host || form.Get("access_token") != "entra-token" {
		answerJSON(rw, 401, object{"errors": []object{{"code": "UNAUTHORIZED", "message": "authentication required, visit https://aka.ms/acr/authorization for more information."}}})
		return
	}
	answerJSON(rw, 200, object{"refresh_token": "acr-refresh"})
}

func managedStandIn(token string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata") != "true" && r.Header.Get("X-Identity-Header") != "hdr" || r.URL.Query().Get("resource") != "https://containerregistry.azure.net" {
			answerJSON(rw, 400, object{"error": "invalid_request"})
			return
		}
		answerJSON(rw, 200, object{"access_token": token, "expires_in": "3599"})
	}
}

func TestACR(t *testing.T) {
	t.Parallel()
	const refresh = "00000000-0000-0000-0000-000000000000 token acr-refresh"
	const failed = "error: sign in to registry.azurecr.io with ACR: "
	client := []string{"AZURE_TENANT_ID", "tenant", "AZURE_CLIENT_ID", "client"}
	with := func(more ...string) []string { return append(append([]string{}, client...), more...) }
	tests := []struct {
		name  string
		env   []string
		file  string // an azure.json
		hosts map[string]http.HandlerFunc
		repo  string
		want  string
		asked []string
	}{
		{name: "client secret", env: with("AZURE_CLIENT_SECRET", "s3cr3t"), want: refresh, asked: []string{entra, "registry.azurecr.io"}},
		{name: "workload identity", env: with("AZURE_FEDERATED_TOKEN_FILE", "/token"), want: refresh, asked: []string{entra, "registry.azurecr.io"}},
		{name: "managed identity", hosts: map[string]http.HandlerFunc{machine: managedStandIn("entra-token")}, want: refresh, asked: []string{machine, "registry.azurecr.io"}},
		{name: "App Service", env: []string{"IDENTITY_ENDPOINT", "http://127.0.0.1:41/msi/token", "IDENTITY_HEADER", "hdr"}, hosts: map[string]http.HandlerFunc{"127.0.0.1:41": managedStandIn("entra-token")}, want: refresh, asked: []string{"127.0.0.1:41", "registry.azurecr.io"}},
		{name: "another cloud", env: with("AZURE_CLIENT_SECRET", "s3cr3t"), repo: "registry.azurecr.cn/team/app", want: refresh, asked: []string{"login.chinacloudapi.cn", "registry.azurecr.cn"}},
		{name: "another authority", env: with("AZURE_CLIENT_SECRET", "s3cr3t", "AZURE_AUTHORITY_HOST", "https://login.example.com"), want: refresh, asked: []string{"login.example.com", "registry.azurecr.io"}},

		{name: "wrong secret", env: with("AZURE_CLIENT_SECRET", "hunter2"), want: failed + "with AZURE_CLIENT_SECRET of the client client: Microsoft Entra answered 401 invalid_client: AADSTS7000215: Invalid client secret provided.", asked: []string{entra}},
		{name: "expired token", env: with("AZURE_FEDERATED_TOKEN_FILE", "/old"), want: failed + "with AZURE_FEDERATED_TOKEN_FILE of the client client: Microsoft Entra answered 401 invalid_client: AADSTS7000215: Invalid client secret provided.", asked: []string{entra}},
		{name: "no token", env: with("AZURE_FEDERATED_TOKEN_FILE", "/nowhere"), want: failed + "read AZURE_FEDERATED_TOKEN_FILE=/nowhere: file does not exist"},
		{name: "no rights", hosts: map[string]http.HandlerFunc{machine: managedStandIn("weak-token")}, want: failed + "with the managed identity: the registry answered 401 UNAUTHORIZED: authentication required, visit https://aka.ms/acr/authorization for more information.", asked: []string{machine, "registry.azurecr.io"}},
		{name: "certificate", env: with("AZURE_CLIENT_CERTIFICATE_PATH", "/cert.pem"), want: failed + "AZURE_CLIENT_CERTIFICATE_PATH: hako does not sign in with a certificate"},
		{name: "nothing", want: "[there is no identity of Azure's: AZURE_CLIENT_SECRET and AZURE_FEDERATED_TOKEN_FILE are not set, with AZURE_TENANT_ID and AZURE_CLIENT_ID, and there is no managed identity (ask the metadata service: no answer within 1s)]", asked: []string{machine}},

		// The file's identity stands before that of the environment.
		{name: "file", env: []string{"AZURE_CLIENT_ID", "other"}, file: `{"cloud":"AzurePublicCloud","tenantId":"tenant","aadClientId":"client","aadClientSecret":"s3cr3t","resourceGroup":"g"}`, want: refresh, asked: []string{entra, "registry.azurecr.io"}},
		{name: "file with a wrong secret", file: `{"tenantId":"tenant","aadClientId":"client","aadClientSecret":"hunter2"}`, want: failed + "with aadClientSecret in azure.json of the client client: Microsoft Entra answered 401 invalid_client: AADSTS7000215: Invalid client secret provided.", asked: []string{entra}},
		{name: "file of a machine", env: with("AZURE_CLIENT_SECRET", "s3cr3t"), file: `{"tenantId":"tenant","aadClientId":"msi","aadClientSecret":"msi","useManagedIdentityExtension":true}`, hosts: map[string]http.HandlerFunc{machine: managedStandIn("entra-token")}, want: refresh, asked: []string{machine, "registry.azurecr.io"}},

		// To these kaniko's helper once sent its token.
		{name: "look-alike", env: with("AZURE_CLIENT_SECRET", "s3cr3t"), repo: "registry.azurecr.io.evil.net/team/app", want: "[]"},
		{name: "look-alike before", env: with("AZURE_CLIENT_SECRET", "s3cr3t"), repo: "evil-azurecr.io/team/app", want: "[]"},
		{name: "look-alike below", env: with("AZURE_CLIENT_SECRET", "s3cr3t"), repo: "a.b.azurecr.io/team/app", want: "[]"},
		{name: "with a port", env: with("AZURE_CLIENT_SECRET", "s3cr3t"), repo: "registry.azurecr.io:8443/team/app", want: "[]"},
		{name: "public", env: with("AZURE_CLIENT_SECRET", "s3cr3t"), repo: "mcr.microsoft.com/app", want: "[]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, tt.env...)
			w.files["/token"], w.files["/old"] = "jwt\n", "expired"
			for _, h := range []string{entra, "login.chinacloudapi.cn", "login.example.com"} {
				w.hosts[h] = entraStandIn
			}
			w.hosts["registry.azurecr.io"], w.hosts["registry.azurecr.cn"] = acrStandIn, acrStandIn
			for h, f := range tt.hosts {
				w.hosts[h] = f
			}
			repo := tt.repo
			if repo == "" {
				repo = acrRepo
			}
			var file *AzureConfig
			if tt.file != "" {
				var err error
				if file, err = ParseAzureConfig("azure.json", []byte(tt.file)); err != nil {
					t.Fatal(err)
				}
			}
			if got := find(t, NewACR(w.cloud(), file), repo); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if d := cmp.Diff(tt.asked, w.reset()); d != "" {
				t.Error("hosts that were asked (-want +got): ", d)
			}
		})
	}
}

// A file without an identity is refused, and its text is in no message.
func TestAzureConfigBroken(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`tenantId: planted`:                  "read azure.json: it is not the JSON of an Azure provider's configuration",
		`{"tenantId":7}`:                     "read azure.json: it is not the JSON of an Azure provider's configuration",
		`{"tenantId":"t","aadClientId":"c"}`: "read azure.json: it names no identity",
		`{"tenantId":"t","aadClientId":"c","aadClientCertPath":"/c.pfx"}`: "read azure.json: aadClientCertPath: hako does not sign in with a certificate",
	} {
		_, err := ParseAzureConfig("azure.json", []byte(text))
		e, ok := errors.AsType[*ConfigError](err)
		if !ok || e.Error() != want || e.Remedy == "" {
			t.Errorf("%s: %v, want %s and a remedy", text, err, want)
		}
	}
}
