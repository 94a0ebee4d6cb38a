// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"hako/internal/source"
)

const s3Looked = "AWS_ACCESS_KEY_ID, AWS_WEB_IDENTITY_TOKEN_FILE, AWS_PROFILE and ~/.aws, EKS Pod Identity, the machine's role"

// An s3Object is an object of Amazon S3, or of a server that speaks its protocol.
type s3Object struct {
	object
	Options
}

// Open implements [source.Remote].
func (o *s3Object) Open(ctx context.Context) (io.ReadCloser, error) {
	cfg, err := o.awsConfig(ctx)
	if err != nil {
		return nil, err
	}
	isAnonymous, err := findAWSCredentials(ctx, &cfg, credentialWait)
	if err != nil {
		return nil, err
	}
	body, err := o.get(ctx, cfg)
	if region := otherRegion(err); region != "" && region != cfg.Region {
		cfg.Region = region
		body, err = o.get(ctx, cfg)
	}
	if err != nil {
		return nil, o.explain(err, isAnonymous)
	}
	return body, nil
}

func (o *s3Object) get(ctx context.Context, cfg aws.Config) (io.ReadCloser, error) {
	pathStyle, _ := strconv.ParseBool(o.Getenv("S3_FORCE_PATH_STYLE"))
	client := s3.NewFromConfig(cfg, func(opt *s3.Options) {
		opt.UsePathStyle = pathStyle
		if e := o.s3Endpoint(); e != "" {
			opt.BaseEndpoint = &e
			// Servers of other makers do not know newer checksums.
			opt.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		}
	})
	out, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: &o.bucket, Key: &o.key})
	if err != nil {
		return nil, err
	}
	return out.Body, nil
}

// s3Endpoint returns the server that S3_ENDPOINT names, as a URL.
func (o *Options) s3Endpoint() string { return endpointURL(o.Getenv("S3_ENDPOINT")) }

func endpointURL(e string) string {
	if e != "" && !strings.Contains(e, "://") {
		return "https://" + e
	}
	return e
}

// awsConfig reads what the SDK reads: the environment, and files.
func (o *Options) awsConfig(ctx context.Context, more ...func(*config.LoadOptions) error) (aws.Config, error) {
	more = append(more, config.WithHTTPClient(o.awsClient()), config.WithLogger(logging.Nop{}))
	cfg, err := config.LoadDefaultConfig(ctx, more...)
	if err != nil {
		return cfg, fmt.Errorf("read the AWS configuration: %w", err)
	}
	if cfg.Region == "" {
		cfg.Region = "us-east-1" // which knows where a bucket is
	}
	return cfg, nil
}

// awsClient returns the SDK's kind of client, which it adapts for metadata servers.
func (o *Options) awsClient() aws.HTTPClient {
	ours, ok := o.HTTP.Transport.(*http.Transport)
	if !ok {
		return o.HTTP
	}
	return awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.DialContext, t.TLSClientConfig = ours.DialContext, ours.TLSClientConfig
		t.Proxy = func(r *http.Request) (*url.URL, error) {
			if ip := net.ParseIP(r.URL.Hostname()); ours.Proxy == nil || ip != nil && (ip.IsLinkLocalUnicast() || ip.Equal(net.ParseIP("fd00:ec2::254"))) {
				return nil, nil // a metadata server
			}
			return ours.Proxy(r)
		}
	})
}

// findAWSCredentials gets the first credentials. Where none are configured, the
// bucket may be public.
func findAWSCredentials(ctx context.Context, cfg *aws.Config, wait time.Duration) (isAnonymous bool, err error) {
	bounded, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	_, err = cfg.Credentials.Retrieve(bounded)
	switch {
	case err == nil:
		return false, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case bounded.Err() != nil || isNoRole(err):
		cfg.Credentials = aws.AnonymousCredentials{}
		return true, nil
	}
	hint := " why     AWS credentials are configured, but do not work\n try     look at " + s3Looked
	return false, &source.RemoteError{What: "get AWS credentials: " + awsText(err), Hint: hint, Err: err}
}

// isNoRole reports whether the last place to look, the machine's metadata, has
// no credentials, so that there are none. The SDK has no type for it.
func isNoRole(err error) bool {
	return strings.Contains(err.Error(), "no EC2 IMDS role found")
}

// awsText is what an error of the SDK says, without requests and their ids.
func awsText(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode() + ": " + e.ErrorMessage()
	}
	return unreachable(err).Error()
}

// otherRegion returns where the bucket is, if an error says that it is elsewhere.
func otherRegion(err error) string {
	e, ok := errors.AsType[*smithyhttp.ResponseError](err)
	if !ok || e.Response == nil {
		return ""
	}
	return e.Response.Header.Get("X-Amz-Bucket-Region")
}

// explain puts an error into words. Those of the server can hold parts of keys.
func (o *s3Object) explain(err error, isAnonymous bool) error {
	resp, ok := errors.AsType[*smithyhttp.ResponseError](err)
	if !ok || resp.HTTPStatusCode() == 0 {
		return unreachable(err)
	}
	code := ""
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		code = e.ErrorCode()
	}
	return refusal(resp.HTTPStatusCode(), code, o.hint(resp.HTTPStatusCode(), code, isAnonymous), err)
}

func (o *s3Object) hint(status int, code string, isAnonymous bool) string {
	where := ""
	if e := o.s3Endpoint(); e != "" {
		where = " at S3_ENDPOINT"
	}
	switch code {
	case "NoSuchBucket":
		return " why     there is no bucket " + o.bucket + where + "\n try     check its name" + s3Where(where)
	case "NoSuchKey":
		return " why     the bucket has no object " + o.key + "\n try     check its name; aws s3 ls s3://" + o.bucket + "/ lists them"
	case "ExpiredToken", "RequestExpired", "ExpiredTokenException":
		return " why     the AWS session has expired\n try     get new credentials"
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthorizationHeaderMalformed":
		return " why     the server does not accept these keys\n try     check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the profile" + s3Where(where)
	case "PermanentRedirect":
		return " try     AWS_REGION of the bucket"
	}
	switch {
	case status == http.StatusForbidden && isAnonymous:
		return " why     it is not public, and no AWS credentials were found\n looked  " + s3Looked
	case status == http.StatusForbidden:
		return " why     these credentials may not read it; without the right to list, a missing object looks the same\n" +
			" try     allow s3:GetObject on arn:aws:s3:::" + o.bucket + "/" + o.key
	case status == http.StatusNotFound:
		return " try     check the names of bucket and object" + s3Where(where)
	}
	return ""
}

// s3Where tells where the request went, if that can be the mistake.
func s3Where(where string) string {
	if where != "" {
		return ""
	}
	return "; S3_ENDPOINT names a server other than Amazon's"
}
