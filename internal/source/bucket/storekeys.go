// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
)

// findKeys reads the SDK's configuration and gets the first credentials.
func (s *Store) findKeys(ctx context.Context) error {
	o := &s.opt
	more := []func(*config.LoadOptions) error{
		config.WithWebIdentityRoleCredentialOptions(o.openIdentity),
		config.WithEndpointCredentialOptions(o.openAuthorization),
	}
	if o.Region != "" {
		more = append(more, config.WithRegion(o.Region))
	}
	if o.AccessKeyID != "" {
		more = append(more, config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider(o.AccessKeyID, o.SecretKey, o.SessionToken)))
	}
	cfg, err := o.awsConfig(ctx, more...)
	if err != nil {
		return err
	}
	if s.isAnonymous, err = findAWSCredentials(ctx, &cfg, o.Wait); err != nil {
		return err
	}
	if !s.isAnonymous {
		if cfg.Credentials, err = renewable(ctx, cfg.Credentials); err != nil {
			return err
		}
	}
	s.cfg = cfg
	return nil
}

// renewable returns credentials that nobody renews by opening files or starting
// programs where their paths lead then: those stay as they are.
func renewable(ctx context.Context, p aws.CredentialsProvider) (aws.CredentialsProvider, error) {
	now, err := p.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("get AWS credentials: %s", awsText(err))
	}
	if slices.Contains([]string{stscreds.WebIdentityProviderName, endpointcreds.ProviderName, ec2rolecreds.ProviderName}, now.Source) {
		return p, nil
	}
	return credentials.NewStaticCredentialsProvider(now.AccessKeyID, now.SecretAccessKey, now.SessionToken), nil
}

// openIdentity opens the token of a pod's service account.
func (o *StoreOptions) openIdentity(w *stscreds.WebIdentityRoleOptions) {
	path, ok := w.TokenRetriever.(stscreds.IdentityTokenFile)
	if !ok || o.OpenFile == nil {
		return
	}
	read, err := o.OpenFile(string(path))
	w.TokenRetriever = openedToken{read, err}
}

type openedToken struct {
	read func() ([]byte, error)
	err  error
}

// GetIdentityToken implements stscreds.IdentityTokenRetriever.
func (t openedToken) GetIdentityToken() ([]byte, error) {
	if t.err != nil {
		return nil, t.err
	}
	return t.read()
}

// openAuthorization opens the token that EKS Pod Identity gives to a pod.
func (o *StoreOptions) openAuthorization(e *endpointcreds.Options) {
	path := o.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
	if path == "" || o.OpenFile == nil {
		return
	}
	read, err := o.OpenFile(path)
	e.AuthorizationTokenProvider = endpointcreds.TokenProviderFunc(func() (string, error) {
		if err != nil {
			return "", err
		}
		b, err := read()
		return string(b), err
	})
}

// copySource names an object as the header of a copy does, in which some servers
// read a plus sign as a space.
func copySource(bucket, key string) string {
	plain := strings.NewReplacer("%2F", "/", "+", "%20")
	return bucket + "/" + plain.Replace(url.QueryEscape(key))
}
