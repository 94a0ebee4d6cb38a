// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"encoding/json"
	"errors"
	"fmt"
)

// An AzureConfig is a configuration file of Kubernetes' Azure provider, such as
// /etc/kubernetes/azure.json: which identity to sign in to registries with.
type AzureConfig struct {
	path                   string
	tenant, client, secret string
}

// ParseAzureConfig reads such a file. What it says of anything but the identity
// is not looked at.
func ParseAzureConfig(path string, b []byte) (*AzureConfig, error) {
	var f struct {
		TenantID    string `json:"tenantId"`
		ClientID    string `json:"aadClientId"`
		Secret      string `json:"aadClientSecret"`
		Certificate string `json:"aadClientCertPath"`
		IsManaged   bool   `json:"useManagedIdentityExtension"`
		ManagedID   string `json:"userAssignedIdentityID"`
	}
	broken := func(err error, remedy string) error {
		return &ConfigError{Err: fmt.Errorf("read %s: %w", path, err), Remedy: remedy}
	}
	if err := json.Unmarshal(b, &f); err != nil {
		// The decoder's text may repeat what is in the file.
		return nil, broken(errors.New("it is not the JSON of an Azure provider's configuration"), "give a file like /etc/kubernetes/azure.json; or leave the flag out and set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET")
	}
	// "msi" stands there where the identity is the machine's.
	isManaged := f.IsManaged || f.ClientID == "msi"
	switch {
	case isManaged:
		return &AzureConfig{path: path, client: f.ManagedID}, nil
	case f.Certificate != "" && f.Secret == "":
		return nil, broken(errors.New("aadClientCertPath: hako does not sign in with a certificate"), "use a client secret, a federated token or a managed identity")
	case f.TenantID == "" || f.ClientID == "" || f.Secret == "":
		return nil, broken(errors.New("it names no identity"), "set tenantId, aadClientId and aadClientSecret in it, or useManagedIdentityExtension; or leave the flag out and set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET")
	}
	return &AzureConfig{path: path, tenant: f.TenantID, client: f.ClientID, secret: f.Secret}, nil
}

// over returns variables in which the file's identity stands instead of any that
// there are.
func (f *AzureConfig) over(env Getenv) Getenv {
	return func(name string) string {
		switch name {
		case "AZURE_TENANT_ID":
			return f.tenant
		case "AZURE_CLIENT_ID":
			return f.client
		case "AZURE_CLIENT_SECRET":
			return f.secret
		case "AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_CERTIFICATE_PATH":
			return ""
		}
		return env(name)
	}
}
