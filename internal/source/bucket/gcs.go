// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"cloud.google.com/go/compute/metadata"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"hako/internal/source"
)

const (
	gcsHost   = "https://storage.googleapis.com"
	gcsScope  = "https://www.googleapis.com/auth/devstorage.read_only"
	gcsLooked = "GOOGLE_APPLICATION_CREDENTIALS, gcloud's configuration, the machine's metadata server"
)

// A gcsObject is an object of Google Cloud Storage. Google's own client would add
// gRPC and 10 MB; one download is one request of its JSON API.
type gcsObject struct {
	object
	Options
}

// Open implements [source.Remote].
func (o *gcsObject) Open(ctx context.Context) (io.ReadCloser, error) {
	token, err := o.token(ctx)
	if err != nil {
		return nil, err
	}
	host := gcsHost
	if e := o.Getenv("STORAGE_EMULATOR_HOST"); e != "" { // as Google's clients have it
		if host = e; !strings.Contains(e, "://") {
			host = "http://" + e
		}
	}
	where := fmt.Sprintf("%s/storage/v1/b/%s/o/%s?alt=media", strings.TrimSuffix(host, "/"), url.PathEscape(o.bucket), url.PathEscape(o.key))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, unreachable(err)
	}
	// Objects come as they are stored, not unpacked on the way.
	req.Header.Set("Accept-Encoding", "gzip")
	if token != nil {
		token.SetAuthHeader(req)
	}
	resp, err := o.HTTP.Do(req)
	if err != nil {
		return nil, unreachable(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	return nil, o.explain(resp, token == nil)
}

// token returns the access token of the default credentials; nil if there are
// none, since a bucket can be public.
func (o *gcsObject) token(ctx context.Context) (*oauth2.Token, error) {
	if o.Getenv("STORAGE_EMULATOR_HOST") != "" {
		return nil, nil
	}
	bounded, cancel := search(context.WithValue(ctx, oauth2.HTTPClient, o.HTTP))
	defer cancel()
	creds, err := google.FindDefaultCredentials(bounded, gcsScope)
	if err != nil {
		if o.Getenv("GOOGLE_APPLICATION_CREDENTIALS") == "" {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("read GOOGLE_APPLICATION_CREDENTIALS: %w", err)
	}
	t, err := creds.TokenSource.Token()
	if _, ok := errors.AsType[metadata.NotDefinedError](err); ok {
		return nil, nil // a machine without a service account
	}
	if err != nil {
		hint := " why     Google credentials are configured, but do not work: a key may have been deleted, a token expired\n try     look at " + gcsLooked
		return nil, &source.RemoteError{What: "get an access token: " + tokenText(err), Hint: hint, Err: err}
	}
	return t, nil
}

// tokenText is what an error of the token server says.
func tokenText(err error) string {
	e, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok || e.Response == nil {
		return unreachable(err).Error()
	}
	var said struct {
		Code        string `json:"error"`
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(e.Body, &said) // or it says nothing
	return strings.Join(strings.Fields(e.Response.Status+" "+said.Code+" "+said.Description), " ")
}

func (o *gcsObject) explain(resp *http.Response, isAnonymous bool) error {
	var said struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	text := ""
	if err == nil && json.Unmarshal(b, &said) == nil {
		text = said.Error.Message
	} else if err == nil && resp.StatusCode == http.StatusNotFound {
		text = string(b) // downloads are answered in plain text
	}
	text, _, _ = strings.Cut(strings.TrimSpace(text), "\n")
	return refusal(resp.StatusCode, text[:min(len(text), 200)], o.hint(resp.StatusCode, text, isAnonymous), nil)
}

func (o *gcsObject) hint(status int, text string, isAnonymous bool) string {
	switch status {
	case http.StatusNotFound:
		if strings.Contains(text, "bucket") {
			return " why     there is no bucket " + o.bucket + "\n try     check its name"
		}
		return " try     check the names of bucket and object; gcloud storage ls gs://" + o.bucket + " lists them"
	case http.StatusUnauthorized, http.StatusForbidden:
		if isAnonymous {
			return " why     it is not public, and no Google credentials were found\n looked  " + gcsLooked
		}
		return " why     these credentials may not read it\n try     give the account roles/storage.objectViewer on the bucket"
	}
	return ""
}
