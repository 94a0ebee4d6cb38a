// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	ecrRepo = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app"
	ecrAPI  = "api.ecr.eu-west-1.amazonaws.com"
	stsHost = "sts.eu-west-1.amazonaws.com"
	machine = "169.254.169.254"
)

// ecrStandIn answers as ECR does to whoever signs with a key that it knows. The
// password tells whose key it was.
func ecrStandIn(w *world, known ...string) http.HandlerFunc {
	n := 0
	return func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		public := strings.HasPrefix(r.URL.Host, "api.ecr-public")
		target := "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
		if public {
			target = "SpencerFrontendService.GetAuthorizationToken"
		}
		if r.Method != http.MethodPost || r.Header.Get("X-Amz-Target") != target || string(body) != "{}" {
			answerJSON(rw, 400, object{"__type": "com.amazon.coral.service#UnknownOperationException"})
			return
		}
		_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=")
		key, scope, _ := strings.Cut(rest, "/")
		if !slices.Contains(known, key) {
			answerJSON(rw, 400, object{"__type": "UnrecognizedClientException", "message": "The security token included in the request is invalid."})
			return
		}
		service := "/eu-west-1/ecr/aws4_request"
		if public {
			service = "/us-east-1/ecr-public/aws4_request"
		}
		if scope, _, _ = strings.Cut(scope, ","); !strings.HasSuffix(scope, service) {
			answerJSON(rw, 400, object{"__type": "InvalidSignatureException", "message": "Credential should be scoped to a valid region."})
			return
		}
		n++
		one := object{
			"authorizationToken": base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "AWS:pw%d-of-%s%s", n, key, r.Header.Get("X-Amz-Security-Token"))),
			"expiresAt":          float64(w.cloud().Now().Add(12 * time.Hour).Unix()),
		}
		if public {
			answerJSON(rw, 200, object{"authorizationData": one})
			return
		}
		answerJSON(rw, 200, object{"authorizationData": []object{one}})
	}
}

// stsStandIn gives the credentials of a role for a web identity's token, or to
// whoever signs with a key.
func stsStandIn(token, key string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		form, _ := url.ParseQuery(string(body))
		action := form.Get("Action")
		if action == "AssumeRoleWithWebIdentity" && form.Get("WebIdentityToken") != token ||
			action == "AssumeRole" && !strings.Contains(r.Header.Get("Authorization"), "Credential="+key+"/") {
			rw.WriteHeader(400)
			fmt.Fprint(rw, `<ErrorResponse><Error><Code>ExpiredTokenException</Code><Message>Token expired: current date/time must be before the expiration</Message></Error></ErrorResponse>`)
			return
		}
		fmt.Fprintf(rw, `<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult><Credentials><AccessKeyId>ASIAROLE</AccessKeyId>`+
			`<SecretAccessKey>s</SecretAccessKey><SessionToken>-in-%[2]s</SessionToken><Expiration>%[3]s</Expiration></Credentials></%[1]sResult></%[1]sResponse>`,
			action, form.Get("RoleArn"), time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}
}

// imdsStandIn is the instance metadata service, version 2.
func imdsStandIn(rw http.ResponseWriter, r *http.Request) {
	const token = "imds-token"
	switch {
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
		rw.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
		fmt.Fprint(rw, token)
	case r.Header.Get("X-Aws-Ec2-Metadata-Token") != token:
		rw.WriteHeader(401)
	case r.URL.Path == "/latest/meta-data/iam/security-credentials/":
		fmt.Fprint(rw, "node")
	case r.URL.Path == "/latest/meta-data/iam/security-credentials/node":
		answerJSON(rw, 200, object{"Code": "Success", "AccessKeyId": "ASIANODE", "SecretAccessKey": "s", "Token": "t", "Expiration": time.Now().Add(time.Hour).UTC()})
	default:
		rw.WriteHeader(404)
	}
}

// podIdentityStandIn is the agent of EKS Pod Identity on each node.
func podIdentityStandIn(token string) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != token {
			answerJSON(rw, 401, object{"code": "AccessDenied", "message": "no such token"})
			return
		}
		answerJSON(rw, 200, object{"AccessKeyId": "ASIAPOD", "SecretAccessKey": "s", "Token": "t", "Expiration": time.Now().Add(time.Hour).UTC()})
	}
}

func TestECR(t *testing.T) {
	t.Parallel()
	const role, irsa = "arn:aws:iam::123456789012:role/push", "/var/run/secrets/eks.amazonaws.com/serviceaccount/token"
	keys := []string{"AWS_ACCESS_KEY_ID", "AKIAENV", "AWS_SECRET_ACCESS_KEY", "s3cr3t"}
	tests := []struct {
		name  string
		env   []string
		files map[string]string
		aws   string // ~/.aws/config
		hosts map[string]http.HandlerFunc
		repo  string
		want  string
		asked []string
	}{
		{name: "environment", env: keys, want: "AWS:pw1-of-AKIAENV", asked: []string{ecrAPI}},
		{name: "session", env: append(keys, "AWS_SESSION_TOKEN", "-session"), want: "AWS:pw1-of-AKIAENV-session", asked: []string{ecrAPI}},
		{
			name: "profile", env: []string{"AWS_PROFILE", "ci"}, aws: "[profile ci]\naws_access_key_id=AKIAENV\naws_secret_access_key=x\n",
			want: "AWS:pw1-of-AKIAENV", asked: []string{ecrAPI},
		},
		{
			name: "role of a profile", env: []string{"AWS_PROFILE", "ci"},
			aws:  "[profile base]\naws_access_key_id=AKIABASE\naws_secret_access_key=x\n[profile ci]\nrole_arn=" + role + "\nsource_profile=base\nregion=eu-west-1\n",
			want: "AWS:pw1-of-ASIAROLE-in-" + role, asked: []string{ecrAPI, stsHost},
		},
		{
			name: "IRSA", env: []string{"AWS_WEB_IDENTITY_TOKEN_FILE", irsa, "AWS_ROLE_ARN", role}, files: map[string]string{irsa: "jwt"},
			want: "AWS:pw1-of-ASIAROLE-in-" + role, asked: []string{ecrAPI, stsHost},
		},
		{
			name: "Pod Identity", env: []string{"AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", irsa},
			files: map[string]string{irsa: "podjwt\n"}, hosts: map[string]http.HandlerFunc{"169.254.170.23": podIdentityStandIn("podjwt")},
			want: "AWS:pw1-of-ASIAPODt", asked: []string{"169.254.170.23", ecrAPI},
		},
		{
			name: "ECS", env: []string{"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "tok"},
			hosts: map[string]http.HandlerFunc{"169.254.170.2": podIdentityStandIn("tok")}, want: "AWS:pw1-of-ASIAPODt", asked: []string{"169.254.170.2", ecrAPI},
		},
		{name: "instance role", hosts: map[string]http.HandlerFunc{machine: imdsStandIn}, want: "AWS:pw1-of-ASIANODEt", asked: []string{machine, ecrAPI}},
		{name: "public", env: keys, repo: "public.ecr.aws/team/app", want: "AWS:pw1-of-AKIAENV", asked: []string{"api.ecr-public.us-east-1.amazonaws.com"}},

		// What goes wrong.
		{
			name: "nothing", want: "[there are no AWS credentials: not in variables, a profile, a web identity or the container, and the machine's metadata service has none either (no answer within 1s)]",
			asked: []string{machine},
		},
		{name: "not to be asked", env: []string{"AWS_EC2_METADATA_DISABLED", "true"}, want: "[there are no AWS credentials: not in variables, a profile, a web identity or the container; the machine's role is not to be asked for (AWS_EC2_METADATA_DISABLED)]"},
		{name: "unknown key", env: []string{"AWS_ACCESS_KEY_ID", "AKIAWRONG", "AWS_SECRET_ACCESS_KEY", "s3cr3t"}, asked: []string{ecrAPI}, want: "error: sign in to 123456789012.dkr.ecr.eu-west-1.amazonaws.com with ECR: with the AWS credentials of the environment: ECR answered 400 UnrecognizedClientException: The security token included in the request is invalid."},
		{name: "public with an unknown key", env: []string{"AWS_ACCESS_KEY_ID", "AKIAWRONG", "AWS_SECRET_ACCESS_KEY", "s3cr3t"}, repo: "public.ecr.aws/team/app", asked: []string{"api.ecr-public.us-east-1.amazonaws.com"}, want: "[with the AWS credentials of the environment: ECR answered 400 UnrecognizedClientException: The security token included in the request is invalid.]"},
		{
			name: "expired IRSA", env: []string{"AWS_WEB_IDENTITY_TOKEN_FILE", irsa, "AWS_ROLE_ARN", role}, files: map[string]string{irsa: "old"}, asked: []string{stsHost},
			want: "error: sign in to 123456789012.dkr.ecr.eu-west-1.amazonaws.com with ECR: get AWS credentials from the web identity of " + role + ": failed to retrieve credentials, operation error STS: AssumeRoleWithWebIdentity, https response error StatusCode: 400, RequestID: , ExpiredTokenException: Token expired: current date/time must be before the expiration",
		},
		{
			name: "IRSA without its file", env: []string{"AWS_WEB_IDENTITY_TOKEN_FILE", irsa, "AWS_ROLE_ARN", role},
			want: "error: sign in to 123456789012.dkr.ecr.eu-west-1.amazonaws.com with ECR: read AWS_WEB_IDENTITY_TOKEN_FILE=" + irsa + ": file does not exist",
		},
		{name: "IRSA without its role", env: []string{"AWS_WEB_IDENTITY_TOKEN_FILE", irsa}, files: map[string]string{irsa: "jwt"}, want: "error: sign in to 123456789012.dkr.ecr.eu-west-1.amazonaws.com with ECR: AWS_WEB_IDENTITY_TOKEN_FILE is set, but AWS_ROLE_ARN is not"},
		{name: "container elsewhere", env: []string{"AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://evil.example.com/"}, want: "error: sign in to 123456789012.dkr.ecr.eu-west-1.amazonaws.com with ECR: AWS_CONTAINER_CREDENTIALS_FULL_URI is neither HTTPS nor at an address of this machine"},
		{name: "program", env: []string{"AWS_PROFILE", "p"}, aws: "[profile p]\ncredential_process=/bin/id\n", want: `error: sign in to 123456789012.dkr.ecr.eu-west-1.amazonaws.com with ECR: the profile "p" needs a program or a browser to sign in`},
		{name: "no such profile", env: []string{"AWS_PROFILE", "p"}, want: `error: sign in to 123456789012.dkr.ecr.eu-west-1.amazonaws.com with ECR: read the AWS profile "p": failed to get shared config profile, p`},
		// Hosts that are not ECR's.
		{name: "look-alike", env: keys, repo: "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.net/team/app", want: "[]"},
		{name: "look-alike before", env: keys, repo: "x.123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app", want: "[]"},
		{name: "no account", env: keys, repo: "dkr.ecr.eu-west-1.amazonaws.com/team/app", want: "[]"},
		{name: "elsewhere", env: keys, repo: "r.example.com/team/app", want: "[]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, tt.env...)
			w.hosts[ecrAPI] = ecrStandIn(w, "AKIAENV", "ASIAROLE", "ASIAPOD", "ASIANODE")
			w.hosts["api.ecr-public.us-east-1.amazonaws.com"] = w.hosts[ecrAPI]
			w.hosts[stsHost] = stsStandIn("jwt", "AKIABASE")
			for h, f := range tt.hosts {
				w.hosts[h] = f
			}
			for p, s := range tt.files {
				w.files[p] = s
			}
			if tt.aws != "" {
				writeFile(t, filepath.Join(w.env["HOME"], ".aws", "config"), tt.aws)
			}
			repo := tt.repo
			if repo == "" {
				repo = ecrRepo
			}
			if got := find(t, NewECR(w.cloud()), repo); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if d := cmp.Diff(tt.asked, w.reset()); d != "" {
				t.Error("hosts that were asked (-want +got): ", d)
			}
		})
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestECRServices(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com":          "https://api.ecr.eu-west-1.amazonaws.com/",
		"123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com": "https://ecr-fips.us-gov-west-1.amazonaws.com/",
		"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn":      "https://api.ecr.cn-north-1.amazonaws.com.cn/",
		"123456789012.dkr-ecr.eu-west-1.on.aws":                 "https://ecr.eu-west-1.api.aws/",
		"public.ecr.aws":                                        "https://api.ecr-public.us-east-1.amazonaws.com/",
		"evil.public.ecr.aws":                                   "",
		"12345678901.dkr.ecr.eu-west-1.amazonaws.com":           "",
		"123456789012.dkr.ecr.eu-west-1.amazonaws.com:444":      "",
		"123456789012.dkr.ecr.a/b.amazonaws.com":                "",
	}
	for host, want := range tests {
		if s, _ := ecrServiceOf(host); s.endpoint != want {
			t.Errorf("%s: %q, want %q", host, s.endpoint, want)
		}
	}
}

// A password is asked for once, until it expires or is refused. A token file that
// was renewed meanwhile is read anew.
func TestECRRenewed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AWS_WEB_IDENTITY_TOKEN_FILE", "/token", "AWS_ROLE_ARN", "arn:aws:iam::1:role/r")
	w.files["/token"] = "first"
	w.hosts[ecrAPI] = ecrStandIn(w, "ASIAROLE")
	w.hosts[stsHost] = stsStandIn("first", "")
	s := NewECR(w.cloud())
	for range 3 {
		if got := find(t, s, ecrRepo); !strings.HasPrefix(got, "AWS:pw1-") {
			t.Fatal(got)
		}
	}
	w.files["/token"] = "second"
	w.hosts[stsHost] = stsStandIn("second", "")
	s.(forgetter).forget(repository(t, ecrRepo))
	if got := find(t, s, ecrRepo); !strings.HasPrefix(got, "AWS:pw2-") {
		t.Error(got)
	}
	w.pass(11*time.Hour + 50*time.Minute)
	if got := find(t, s, ecrRepo); !strings.HasPrefix(got, "AWS:pw2-") {
		t.Error(got)
	}
	w.pass(6 * time.Minute)
	if got := find(t, s, ecrRepo); !strings.HasPrefix(got, "AWS:pw3-") {
		t.Error(got)
	}
}

// A service that fails once, and one that says nothing.
func TestECRFailing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "AWS_ACCESS_KEY_ID", "AKIAENV", "AWS_SECRET_ACCESS_KEY", "s3cr3t")
	good, n := ecrStandIn(w, "AKIAENV"), 0
	w.hosts[ecrAPI] = func(rw http.ResponseWriter, r *http.Request) {
		if n++; n == 1 {
			rw.WriteHeader(503)
			return
		}
		good(rw, r)
	}
	if got := find(t, NewECR(w.cloud()), ecrRepo); got != "AWS:pw1-of-AKIAENV" {
		t.Error(got)
	}
	w.hosts[ecrAPI] = func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = rw.Write(bytes.Repeat([]byte("s3cr3t "), 1000))
	}
	if got := find(t, NewECR(w.cloud()), ecrRepo); got != "error: sign in to 123456789012.dkr.ecr.eu-west-1.amazonaws.com with ECR: ECR answered something else than expected" {
		t.Error(got)
	}
}
