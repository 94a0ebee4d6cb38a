// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// ecrHost is the form of ECR's host names: account, region, and the domain of a
// partition. Nothing else is ECR, whatever its name looks like.
var ecrHost = regexp.MustCompile(`^\d{12}\.dkr[.-]ecr(-fips)?\.([a-z0-9][a-z0-9-]*)\.` +
	`(amazonaws\.com|amazonaws\.com\.cn|on\.aws|on\.amazonwebservices\.com\.cn|sc2s\.sgov\.gov|c2s\.ic\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov|amazonaws\.eu)$`)

// ecrService is where passwords for a registry are asked for.
type ecrService struct {
	endpoint string
	region   string
	signAs   string // the service's name in signatures
	target   string // the operation
	isPublic bool
}

// ecrServiceOf returns the service of a registry; ok is false for hosts that are
// not ECR's.
func ecrServiceOf(host string) (s ecrService, ok bool) {
	if host == "public.ecr.aws" || host == "ecr-public.aws.com" {
		return ecrService{
			"https://api.ecr-public.us-east-1.amazonaws.com/", "us-east-1", "ecr-public",
			"SpencerFrontendService.GetAuthorizationToken", true,
		}, true
	}
	m := ecrHost.FindStringSubmatch(host)
	if m == nil {
		return s, false
	}
	fips, region, domain := m[1], m[2], m[3]
	s = ecrService{region: region, signAs: "ecr", target: "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"}
	switch {
	case domain == "on.aws":
		s.endpoint = fmt.Sprintf("https://ecr%s.%s.api.aws/", fips, region)
	case domain == "on.amazonwebservices.com.cn":
		s.endpoint = fmt.Sprintf("https://ecr%s.%s.api.amazonwebservices.com.cn/", fips, region)
	case fips != "":
		s.endpoint = fmt.Sprintf("https://ecr-fips.%s.%s/", region, domain)
	default:
		s.endpoint = fmt.Sprintf("https://api.ecr.%s.%s/", region, domain)
	}
	return s, true
}

// NewECR returns the source for Amazon's registries. It finds AWS credentials as
// Amazon's SDK does: variables, a web identity (IRSA), the profile, the
// container's (EKS Pod Identity, ECS), the machine's role (IMDSv2).
func NewECR(c Cloud) Source {
	a := openAWS(c)
	e := &ecr{c: c, aws: a}
	return &cloud{
		name:  "ECR",
		mine:  func(host string) bool { _, ok := ecrServiceOf(host); return ok },
		fetch: e.fetch, now: c.Now,
		// The account in the name says nothing about whose password it is.
		scope: func(host string) string { s, _ := ecrServiceOf(host); return s.endpoint },
	}
}

type ecr struct {
	c   Cloud
	aws *awsCredentials
}

func (e *ecr) fetch(ctx context.Context, host string) (*Credential, error) {
	s, _ := ecrServiceOf(host)
	// Endpoints of one's own have the SDK's names (VPC endpoints, tests).
	if u := e.c.Env("AWS_ENDPOINT_URL_" + strings.ToUpper(strings.ReplaceAll(s.signAs, "-", "_"))); u != "" {
		s.endpoint = strings.TrimSuffix(u, "/") + "/"
	}
	cred, err := e.password(ctx, s)
	if err != nil && s.isPublic {
		// What is public can be pulled without.
		return none("ECR", oneLine(err.Error(), 300)), nil
	}
	if errors.Is(err, errNoAWS) {
		return none("ECR", err.Error()), nil
	}
	return cred, err
}

func (e *ecr) password(ctx context.Context, s ecrService) (*Credential, error) {
	keys, err := e.aws.retrieve(ctx, s.region)
	if err != nil {
		return nil, err
	}
	const body = "{}"
	sum := sha256.Sum256([]byte(body))
	var answer ecrAnswer
	err = exchange(ctx, e.c.Client, "ECR", func() (*http.Request, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.endpoint, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		r.Header.Set("Content-Type", "application/x-amz-json-1.1")
		r.Header.Set("X-Amz-Target", s.target)
		return r, v4.NewSigner().SignHTTP(ctx, keys.Credentials, r, hex.EncodeToString(sum[:]), s.signAs, s.region, e.c.Now())
	}, &answer)
	if refused, ok := errors.AsType[*answerError](err); ok {
		return nil, &ConfigError{
			Err:    fmt.Errorf("with the AWS credentials of %s: %w", keys.from, refused),
			Remedy: ecrRemedy(s, refused.code),
		}
	}
	if err != nil {
		return nil, err
	}
	return answer.credential("ECR, with the AWS credentials of " + keys.from)
}

func ecrRemedy(s ecrService, code string) string {
	switch code {
	case "UnrecognizedClientException", "InvalidSignatureException", "InvalidClientTokenId", "SignatureDoesNotMatch":
		return "check the access key and its secret: AWS does not know them"
	case "ExpiredTokenException", "ExpiredToken":
		return "the session's credentials have expired: get new ones, or let hako get them by a role"
	}
	return fmt.Sprintf("allow %s:GetAuthorizationToken to whose these credentials are", s.signAs)
}

// ecrAnswer is the answer to GetAuthorizationToken: of ECR a list of one, of ECR
// Public an object.
type ecrAnswer struct {
	AuthorizationData ecrData `json:"authorizationData"`
}

type ecrData struct {
	Token   string
	Expires time.Time
}

// UnmarshalJSON takes both forms.
func (d *ecrData) UnmarshalJSON(b []byte) error {
	type one struct {
		AuthorizationToken string  `json:"authorizationToken"`
		ExpiresAt          float64 `json:"expiresAt"`
	}
	list, err := decodeOneOrMany[one](b)
	if err != nil || len(list) == 0 {
		return errors.New("no authorization data")
	}
	d.Token, d.Expires = list[0].AuthorizationToken, time.Unix(int64(list[0].ExpiresAt), 0)
	return nil
}

func (a *ecrAnswer) credential(source string) (*Credential, error) {
	raw, err := base64.StdEncoding.DecodeString(a.AuthorizationData.Token)
	user, password, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok || password == "" {
		return nil, errors.New("ECR answered without a password")
	}
	c := userPassword(source, "", user, password)
	if a.AuthorizationData.Expires.Unix() > 0 {
		c.expires = a.AuthorizationData.Expires
	}
	return c, nil
}
