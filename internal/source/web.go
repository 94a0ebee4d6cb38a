// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// A WebFile is a file on a web server. A user and password in its URL are sent.
type WebFile struct {
	Client *http.Client
	URL    string
}

// Open implements [Remote].
func (w *WebFile) Open(ctx context.Context) (io.ReadCloser, error) {
	resp, err := get(ctx, w.Client, w.URL, nil)
	if err != nil {
		return nil, remoteStatus(err, explainWeb)
	}
	return resp.Body, nil
}

// String implements [Remote].
func (w *WebFile) String() string { return redactURL(w.URL) }

func explainWeb(status int) string {
	switch status {
	case http.StatusNotFound, http.StatusGone:
		return " try     check the URL; the file may have moved"
	case http.StatusUnauthorized, http.StatusForbidden:
		return " why     the server wants credentials, or the signature in the URL has expired\n" +
			" try     https://USER:PASSWORD@HOST/…, or a newly signed URL"
	}
	return ""
}

// A RemoteError is a server's refusal to hand out a build context.
type RemoteError struct {
	What string // in its or our words, without secrets
	Hint string // what to do
	Err  error
}

func (e *RemoteError) Error() string { return e.What }

// Unwrap returns the cause.
func (e *RemoteError) Unwrap() error { return e.Err }

// Explain tells what to do.
func (e *RemoteError) Explain() string { return e.Hint }

// remoteStatus gives a status for good what explain has to say of it.
func remoteStatus(err error, explain func(status int) string) error {
	s, ok := errors.AsType[*HTTPStatusError](err)
	if _, passing := errors.AsType[*passingError](err); !ok || passing {
		return err
	}
	return &RemoteError{What: fmt.Sprint(s), Hint: explain(s.Status), Err: err}
}
