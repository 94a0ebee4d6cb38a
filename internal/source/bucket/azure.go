// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"

	"hako/internal/source"
)

const azureLooked = "AZURE_STORAGE_ACCESS_KEY, a signature (SAS) in the URL, AZURE_FEDERATED_TOKEN_FILE (workload identity)"

// azureHosts are the storage servers of Azure's clouds. Keys go to no others.
const azureHosts = `^https://([a-z0-9-]+)\.blob\.core\.(?:windows\.net|chinacloudapi\.cn|cloudapi\.de|usgovcloudapi\.net)/(?:.+)`

func isAzure(address string) bool { return azureAccount(address) != "" }

func azureAccount(address string) string {
	m := regexp.MustCompile(azureHosts).FindStringSubmatch(address)
	if m == nil {
		return ""
	}
	return m[1]
}

// An azureBlob is a blob of an Azure storage account.
type azureBlob struct {
	Options
	account, address, shown string
}

func openAzure(address string, opt Options) (*azureBlob, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, errors.New("the URL of the blob cannot be parsed")
	}
	shown := *u
	if shown.RawQuery != "" {
		shown.RawQuery = "xxxxx"
	}
	shown.User, shown.Fragment = nil, ""
	return &azureBlob{Options: opt, account: azureAccount(address), address: address, shown: shown.String()}, nil
}

// String implements [source.Remote].
func (b *azureBlob) String() string { return b.shown }

// Open implements [source.Remote].
func (b *azureBlob) Open(ctx context.Context) (io.ReadCloser, error) {
	client, with, err := b.client()
	if err != nil {
		return nil, err
	}
	resp, err := client.DownloadStream(ctx, nil)
	if err != nil {
		return nil, b.explain(err, with)
	}
	return resp.Body, nil
}

// client returns a client with the credentials that there are, and what they are.
func (b *azureBlob) client() (client *blob.Client, with string, err error) {
	core := azcore.ClientOptions{Transport: b.HTTP, Retry: policy.RetryOptions{MaxRetries: 2}}
	opt := &blob.ClientOptions{ClientOptions: core}
	u, err := url.Parse(b.address)
	key := b.Getenv("AZURE_STORAGE_ACCESS_KEY")
	switch {
	case err != nil:
		return nil, "", unreachable(err)
	case u.Query().Has("sig"):
		client, err = blob.NewClientWithNoCredential(b.address, opt)
		return client, "the signature in the URL", err
	case key != "":
		cred, err := blob.NewSharedKeyCredential(b.account, key)
		if err != nil {
			return nil, "", &source.RemoteError{What: "AZURE_STORAGE_ACCESS_KEY is no key: want base64", Err: err}
		}
		client, err = blob.NewClientWithSharedKeyCredential(b.address, cred, opt)
		return client, "AZURE_STORAGE_ACCESS_KEY", err
	case b.Getenv("AZURE_FEDERATED_TOKEN_FILE") != "":
		cred, err := azidentity.NewWorkloadIdentityCredential(&azidentity.WorkloadIdentityCredentialOptions{ClientOptions: core})
		if err != nil {
			return nil, "", fmt.Errorf("workload identity: %w", err)
		}
		client, err = blob.NewClient(b.address, cred, opt)
		return client, "workload identity", err
	}
	client, err = blob.NewClientWithNoCredential(b.address, opt)
	return client, "", err
}

func (b *azureBlob) explain(err error, with string) error {
	if e, ok := errors.AsType[*azidentity.AuthenticationFailedError](err); ok {
		status := ""
		if e.RawResponse != nil {
			status = ": " + e.RawResponse.Status
		}
		hint := " why     Azure gives no token for AZURE_CLIENT_ID with the token in AZURE_FEDERATED_TOKEN_FILE: it may have expired, or not be trusted\n" +
			" try     check the federated credential of the application, its issuer and subject"
		return &source.RemoteError{What: "workload identity" + status, Hint: hint, Err: err}
	}
	e, ok := errors.AsType[*azcore.ResponseError](err)
	if !ok {
		return unreachable(err)
	}
	return refusal(e.StatusCode, e.ErrorCode, azureHint(e, with), err)
}

func azureHint(e *azcore.ResponseError, with string) string {
	switch {
	case e.ErrorCode == "ContainerNotFound":
		return " try     check the container's name, the first part of the URL's path"
	case e.StatusCode == http.StatusNotFound && with != "":
		return " try     check the names of container and blob"
	case with == "" && (e.StatusCode == http.StatusNotFound || e.StatusCode == http.StatusConflict || e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden):
		return " why     it is not public, or not there, and no Azure credentials were found\n looked  " + azureLooked
	case e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden:
		return " why     the account does not accept " + with + ": it may be wrong, expired, or not allowed to read blobs\n looked  " + azureLooked
	}
	return ""
}
