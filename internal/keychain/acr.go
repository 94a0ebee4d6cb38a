// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// acrHost is the form of Azure Container Registry's host names. The whole name
// has to match: a token for Azure must not go to registry.azurecr.io.example.com.
var acrHost = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*\.azurecr\.(io|cn|us)$`)

const (
	// acrUser is the name under which ACR takes a refresh token.
	acrUser = "00000000-0000-0000-0000-000000000000"
	// acrAudience is whom Entra's tokens for a registry are for.
	acrAudience = "https://containerregistry.azure.net"
	// acrLifetime is how long ACR's refresh tokens are good; they say so
	// themselves, but Azure documents it too.
	acrLifetime = 3 * time.Hour
)

// NewACR returns the source for Azure's registries. It finds an identity in the
// order of Azure's libraries: a client secret, a federated token (workload
// identity), a managed identity; and exchanges its token for one of the
// registry's. A file, which may be nil, names the identity instead.
func NewACR(c Cloud, file *AzureConfig) Source {
	secret := "AZURE_CLIENT_SECRET"
	if file != nil {
		c.Env, secret = file.over(c.Env), "aadClientSecret in "+file.path
	}
	a := &acr{c: c, federated: c.openEnv("AZURE_FEDERATED_TOKEN_FILE"), secret: secret}
	return &cloud{name: "ACR", mine: acrHost.MatchString, fetch: a.fetch, now: c.Now}
}

type acr struct {
	c         Cloud
	federated *tokenFile
	secret    string // how the user named the client's secret
}

func (a *acr) fetch(ctx context.Context, host string) (*Credential, error) {
	token, from, err := a.entraToken(ctx, host)
	if errors.Is(err, errNoAzure) {
		return none("ACR", err.Error()), nil
	}
	if err != nil {
		return nil, err
	}
	var answer struct {
		RefreshToken string `json:"refresh_token"`
	}
	form := url.Values{"grant_type": {"access_token"}, "service": {host}, "access_token": {token}}
	if tenant := a.c.Env("AZURE_TENANT_ID"); tenant != "" {
		form.Set("tenant", tenant)
	}
	err = a.post(ctx, "https://"+host+"/oauth2/exchange", "the registry", form, &answer)
	if refused, ok := errors.AsType[*answerError](err); ok {
		return nil, &ConfigError{
			Err:    fmt.Errorf("with %s: %w", from, refused),
			Remedy: "give this identity the role AcrPull or AcrPush in the registry",
		}
	}
	if err == nil && answer.RefreshToken == "" {
		err = errors.New("the registry gave no refresh token")
	}
	if err != nil {
		return nil, err
	}
	return &Credential{
		cfg:     authn.AuthConfig{Username: acrUser, IdentityToken: answer.RefreshToken},
		account: Account{Username: acrUser, Source: "ACR, with " + from},
		expires: a.c.Now().Add(acrLifetime),
	}, nil
}

// errNoAzure says that there is no identity of Azure's.
var errNoAzure = errors.New("there is no identity of Azure's")

// entraToken returns a token of Microsoft Entra for registries, and whose it is.
func (a *acr) entraToken(ctx context.Context, host string) (token, from string, err error) {
	tenant, client := a.c.Env("AZURE_TENANT_ID"), a.c.Env("AZURE_CLIENT_ID")
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {client}, "scope": {acrAudience + "/.default"}}
	switch {
	case tenant != "" && client != "" && a.c.Env("AZURE_CLIENT_SECRET") != "":
		form.Set("client_secret", a.c.Env("AZURE_CLIENT_SECRET"))
		from = a.secret
	case tenant != "" && client != "" && a.federated != nil:
		b, err := a.federated.bytes()
		if err != nil {
			return "", "", err
		}
		form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		form.Set("client_assertion", strings.TrimSpace(string(b)))
		from = "AZURE_FEDERATED_TOKEN_FILE"
	case a.c.Env("AZURE_CLIENT_CERTIFICATE_PATH") != "" && a.c.Env("AZURE_CLIENT_SECRET") == "":
		return "", "", &ConfigError{errors.New("AZURE_CLIENT_CERTIFICATE_PATH: hako does not sign in with a certificate"), "use a client secret, a federated token or a managed identity; or az acr login --expose-token with hako login"}
	default:
		return a.managed(ctx, client)
	}
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	err = a.post(ctx, a.authority(host)+url.PathEscape(tenant)+"/oauth2/v2.0/token", "Microsoft Entra", form, &answer)
	if refused, ok := errors.AsType[*answerError](err); ok {
		return "", "", &ConfigError{
			Err:    fmt.Errorf("with %s of the client %s: %w", from, client, refused),
			Remedy: "check AZURE_TENANT_ID and AZURE_CLIENT_ID, and that the secret, or the federated credential, is still there",
		}
	}
	if err == nil && answer.AccessToken == "" {
		err = errors.New("there is no token in what Microsoft Entra answered")
	}
	return answer.AccessToken, fmt.Sprintf("%s of the client %s", from, client), err
}

// authority returns where Entra is, which differs between Azure's clouds.
func (a *acr) authority(host string) string {
	if h := a.c.Env("AZURE_AUTHORITY_HOST"); h != "" {
		return strings.TrimSuffix(h, "/") + "/"
	}
	switch {
	case strings.HasSuffix(host, ".cn"):
		return "https://login.chinacloudapi.cn/"
	case strings.HasSuffix(host, ".us"):
		return "https://login.microsoftonline.us/"
	}
	return "https://login.microsoftonline.com/"
}

// managed asks the machine, or the service that runs this container, for the
// token of its identity.
func (a *acr) managed(ctx context.Context, client string) (token, from string, err error) {
	endpoint, header := "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01", [2]string{"Metadata", "true"}
	if e, secret := a.c.Env("IDENTITY_ENDPOINT"), a.c.Env("IDENTITY_HEADER"); e != "" && secret != "" {
		endpoint, header = e+"?api-version=2019-08-01", [2]string{"X-IDENTITY-HEADER", secret}
	}
	endpoint += "&resource=" + url.QueryEscape(acrAudience)
	if client != "" {
		endpoint += "&client_id=" + url.QueryEscape(client)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, machineTimeout, fmt.Errorf("no answer within %v", machineTimeout))
	defer cancel()
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	err = exchange(ctx, a.c.Machine, "the metadata service", func() (*http.Request, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, http.NoBody)
		if err == nil {
			r.Header.Set(header[0], header[1])
		}
		return r, err
	}, &answer)
	if err == nil && answer.AccessToken == "" {
		err = errors.New("it gave no token")
	}
	if err != nil {
		return "", "", fmt.Errorf("%w: AZURE_CLIENT_SECRET and AZURE_FEDERATED_TOKEN_FILE are not set, with AZURE_TENANT_ID and AZURE_CLIENT_ID, and there is no managed identity (%w)", errNoAzure, err)
	}
	return answer.AccessToken, "the managed identity", nil
}

func (a *acr) post(ctx context.Context, endpoint, service string, form url.Values, v any) error {
	body := form.Encode()
	return exchange(ctx, a.c.Client, service, func() (*http.Request, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(body))
		if err == nil {
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return r, err
	}, v)
}
