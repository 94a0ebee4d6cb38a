// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/ec2rolecreds"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// errNoAWS says that none of the places where AWS credentials may be has any.
var errNoAWS = errors.New("there are no AWS credentials")

// awsCredentials finds AWS credentials in the order of Amazon's SDK, whose
// parts it is made of. The SDK's own chain is not used: it opens files by
// their paths and starts programs whenever credentials are renewed.
type awsCredentials struct {
	c          Cloud
	profile    string
	shared     config.SharedConfig
	sharedErr  error
	identity   *tokenFile            // AWS_WEB_IDENTITY_TOKEN_FILE
	ofProfile  map[string]*tokenFile // web_identity_token_file of profiles
	authorizes *tokenFile            // AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE
}

// awsKeys are credentials with where they came from.
type awsKeys struct {
	aws.Credentials
	from string
}

// openAWS reads the files of profiles and opens those of tokens.
func openAWS(c Cloud) *awsCredentials {
	a := &awsCredentials{c: c, profile: "default", ofProfile: make(map[string]*tokenFile)}
	if p := firstOf(c.Env, "AWS_PROFILE", "AWS_DEFAULT_PROFILE"); p != "" {
		a.profile = p
	}
	file := func(variable, base string) []string {
		switch {
		case c.Env(variable) != "":
			return []string{c.Env(variable)}
		case c.Env("HOME") != "":
			return []string{filepath.Join(c.Env("HOME"), ".aws", base)}
		}
		return []string{}
	}
	a.shared, a.sharedErr = config.LoadSharedConfigProfile(context.Background(), a.profile, func(o *config.LoadSharedConfigOptions) {
		o.ConfigFiles, o.CredentialsFiles = file("AWS_CONFIG_FILE", "config"), file("AWS_SHARED_CREDENTIALS_FILE", "credentials")
	})
	if _, ok := errors.AsType[config.SharedConfigProfileNotExistError](a.sharedErr); ok && a.profile == "default" {
		a.sharedErr = nil
	}
	for p := &a.shared; p != nil; p = p.Source {
		if f := p.WebIdentityTokenFile; f != "" {
			a.ofProfile[f] = c.open("web_identity_token_file", f)
		}
	}
	a.identity = c.openEnv("AWS_WEB_IDENTITY_TOKEN_FILE")
	a.authorizes = c.openEnv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
	return a
}

func firstOf(env Getenv, names ...string) string {
	for _, n := range names {
		if v := env(n); v != "" {
			return v
		}
	}
	return ""
}

// retrieve returns credentials. The region is the registry's, for when no other
// is set.
func (a *awsCredentials) retrieve(ctx context.Context, region string) (awsKeys, error) {
	if r := firstOf(a.c.Env, "AWS_REGION", "AWS_DEFAULT_REGION"); r != "" {
		region = r
	} else if a.shared.Region != "" {
		region = a.shared.Region
	}
	if a.environment() != nil {
		return a.take(ctx, "the environment", a.environment())
	}
	if a.identity != nil {
		role := a.c.Env("AWS_ROLE_ARN")
		if role == "" {
			return awsKeys{}, &ConfigError{errors.New("AWS_WEB_IDENTITY_TOKEN_FILE is set, but AWS_ROLE_ARN is not"), "set AWS_ROLE_ARN, or annotate the service account with eks.amazonaws.com/role-arn"}
		}
		return a.take(ctx, "the web identity of "+role, a.webIdentity(region, role, a.c.Env("AWS_ROLE_SESSION_NAME"), a.identity))
	}
	if a.sharedErr != nil {
		return awsKeys{}, &ConfigError{
			Err:    fmt.Errorf("read the AWS profile %q: %s", a.profile, oneLine(a.sharedErr.Error(), 200)),
			Remedy: "correct ~/.aws/config and ~/.aws/credentials, or AWS_PROFILE",
		}
	}
	p, from, err := a.fromProfile(region, &a.shared)
	if err != nil {
		return awsKeys{}, err
	}
	return a.take(ctx, from, p)
}

// take asks a provider, and says in its error where that looks.
func (a *awsCredentials) take(ctx context.Context, from string, p aws.CredentialsProvider) (awsKeys, error) {
	keys, err := p.Retrieve(ctx)
	if err == nil {
		return awsKeys{keys, from}, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if e, ok := errors.AsType[*ConfigError](err); ok {
		return awsKeys{}, e
	}
	if errors.Is(err, errNoAWS) {
		return awsKeys{}, err
	}
	return awsKeys{}, &ConfigError{
		Err:    fmt.Errorf("get AWS credentials from %s: %s", from, oneLine(err.Error(), 400)),
		Remedy: "check that this role exists and trusts whom hako runs as",
	}
}

// environment returns the keys that variables hold, nil if there are none.
func (a *awsCredentials) environment() aws.CredentialsProvider {
	key, secret := firstOf(a.c.Env, "AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"), firstOf(a.c.Env, "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY")
	if key == "" || secret == "" {
		return nil
	}
	return fixedKeys(aws.Credentials{AccessKeyID: key, SecretAccessKey: secret, SessionToken: a.c.Env("AWS_SESSION_TOKEN")})
}

func fixedKeys(k aws.Credentials) aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return k, nil })
}

// fromProfile returns the provider of a profile, or of what there is where no
// profile says anything, with its name.
func (a *awsCredentials) fromProfile(region string, p *config.SharedConfig) (aws.CredentialsProvider, string, error) {
	name := fmt.Sprintf("the profile %q", p.Profile)
	var base aws.CredentialsProvider
	switch {
	case p.Source != nil:
		var err error
		if base, _, err = a.fromProfile(region, p.Source); err != nil {
			return nil, "", err
		}
	case p.Credentials.HasKeys():
		base = fixedKeys(p.Credentials)
	case p.CredentialSource == "Environment":
		if base = a.environment(); base == nil {
			return nil, "", &ConfigError{fmt.Errorf("%s takes its credentials from the environment, which has none", name), "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"}
		}
	case p.CredentialSource == "Ec2InstanceMetadata":
		base = a.machine()
	case p.CredentialSource == "EcsContainer":
		base = a.container()
	case p.WebIdentityTokenFile != "":
		return a.webIdentity(region, p.RoleARN, p.RoleSessionName, a.ofProfile[p.WebIdentityTokenFile]), name, nil
	case p.CredentialProcess != "", p.SSOStartURL != "", p.SSOSessionName != "":
		return nil, "", &ConfigError{
			Err:    fmt.Errorf("%s needs a program or a browser to sign in", name),
			Remedy: "aws ecr get-login-password | hako login HOST -u AWS --password-stdin, or docker-credential-ecr-login in credHelpers",
		}
	case a.c.Env("AWS_CONTAINER_CREDENTIALS_FULL_URI") != "" || a.c.Env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") != "":
		return a.container(), "the container", nil
	default:
		return a.machine(), "the machine's role", nil
	}
	if p.RoleARN == "" {
		return base, name, nil
	}
	if p.MFASerial != "" {
		return nil, "", &ConfigError{fmt.Errorf("%s asks for a code of %s", name, p.MFASerial), "sign in elsewhere and hand over the session's credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN"}
	}
	return stscreds.NewAssumeRoleProvider(a.sts(region, base), p.RoleARN, func(o *stscreds.AssumeRoleOptions) {
		o.RoleSessionName = p.RoleSessionName
		if o.RoleSessionName == "" {
			o.RoleSessionName = "hako"
		}
		if p.ExternalID != "" {
			o.ExternalID = &p.ExternalID
		}
		if p.RoleDurationSeconds != nil {
			o.Duration = *p.RoleDurationSeconds
		}
	}), name, nil
}

// sts returns the client of the service that gives credentials of roles.
func (a *awsCredentials) sts(region string, keys aws.CredentialsProvider) *sts.Client {
	o := sts.Options{Region: region, HTTPClient: a.c.Client, Credentials: keys}
	o.Retryer = retry.NewStandard(func(r *retry.StandardOptions) { r.MaxAttempts, r.MaxBackoff = 2, 500*time.Millisecond })
	if u := a.c.Env("AWS_ENDPOINT_URL_STS"); u != "" {
		o.BaseEndpoint = &u
	}
	return sts.New(o)
}

// webIdentity is how a pod with a service account becomes a role (IRSA).
func (a *awsCredentials) webIdentity(region, role, session string, token *tokenFile) aws.CredentialsProvider {
	return stscreds.NewWebIdentityRoleProvider(a.sts(region, nil), role, identityToken{token}, func(o *stscreds.WebIdentityRoleOptions) {
		o.RoleSessionName = session
		if session == "" {
			o.RoleSessionName = "hako"
		}
	})
}

type identityToken struct{ file *tokenFile }

// GetIdentityToken implements stscreds.IdentityTokenRetriever.
func (t identityToken) GetIdentityToken() ([]byte, error) { return t.file.bytes() }

// container asks the endpoint that ECS and EKS Pod Identity give to a container.
func (a *awsCredentials) container() aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		endpoint := a.c.Env("AWS_CONTAINER_CREDENTIALS_FULL_URI")
		if rel := a.c.Env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"); rel != "" {
			endpoint = "http://169.254.170.2" + rel
		}
		if err := checkContainerEndpoint(endpoint); err != nil {
			return aws.Credentials{}, err
		}
		token := a.c.Env("AWS_CONTAINER_AUTHORIZATION_TOKEN")
		if a.authorizes != nil {
			b, err := a.authorizes.bytes()
			if err != nil {
				return aws.Credentials{}, err
			}
			token = strings.TrimSpace(string(b))
		}
		if strings.ContainsAny(token, "\r\n") {
			return aws.Credentials{}, errors.New("the authorization token has several lines")
		}
		p := endpointcreds.New(endpoint, func(o *endpointcreds.Options) {
			o.HTTPClient, o.AuthorizationToken, o.Retryer = a.c.Machine, token, aws.NopRetryer{}
		})
		ctx, cancel := context.WithTimeoutCause(ctx, machineTimeout, fmt.Errorf("no answer within %v", machineTimeout))
		defer cancel()
		return retrieveWithin(ctx, p)
	})
}

// checkContainerEndpoint keeps the token from hosts that no container's runtime
// is at. These are the ones that the SDK takes.
func checkContainerEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	local := []string{"localhost", "127.0.0.1", "::1", "169.254.170.2", "169.254.170.23", "fd00:ec2::23"}
	if err != nil || u.Scheme != "https" && !slices.Contains(local, u.Hostname()) {
		return &ConfigError{errors.New("AWS_CONTAINER_CREDENTIALS_FULL_URI is neither HTTPS nor at an address of this machine"), "unset the variable, or correct it"}
	}
	return nil
}

// machine asks the instance metadata service, version 2, for its role.
func (a *awsCredentials) machine() aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		const nowhere = "not in variables, a profile, a web identity or the container"
		if strings.EqualFold(a.c.Env("AWS_EC2_METADATA_DISABLED"), "true") {
			return aws.Credentials{}, fmt.Errorf("%w: %s; the machine's role is not to be asked for (AWS_EC2_METADATA_DISABLED)", errNoAWS, nowhere)
		}
		client := imds.New(imds.Options{
			HTTPClient: a.c.Machine, Endpoint: a.c.Env("AWS_EC2_METADATA_SERVICE_ENDPOINT"),
			EnableFallback: aws.FalseTernary, Retryer: aws.NopRetryer{},
		})
		ctx, cancel := context.WithTimeoutCause(ctx, machineTimeout, fmt.Errorf("no answer within %v", machineTimeout))
		defer cancel()
		keys, err := retrieveWithin(ctx, ec2rolecreds.New(func(o *ec2rolecreds.Options) { o.Client = client }))
		if err != nil {
			return keys, fmt.Errorf("%w: %s, and the machine's metadata service has none either (%s)", errNoAWS, nowhere, oneLine(err.Error(), 120))
		}
		return keys, nil
	})
}

// retrieveWithin replaces the error of a context that ended by its cause.
func retrieveWithin(ctx context.Context, p aws.CredentialsProvider) (aws.Credentials, error) {
	keys, err := p.Retrieve(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return keys, err
}
