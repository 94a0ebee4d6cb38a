// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// A storeError says in one line, which holds no secrets, what a server answered.
type storeError struct {
	what string
	is   error // what it satisfies, or nil
}

func (e *storeError) Error() string { return e.what }

// Unwrap returns fs.ErrNotExist or fs.ErrExist, where it is one.
func (e *storeError) Unwrap() error { return e.is }

// A sourceError is about what was to be sent, not about the server.
type sourceError struct{ error }

func (e *sourceError) Unwrap() error { return e.error }

// answer returns status and code of a server's no; 0 is none.
func answer(err error) (status int, code string) {
	if e, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		status = e.HTTPStatusCode()
	}
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		code = plainCode(e.ErrorCode())
	}
	return status, code
}

// plainCode returns a code that looks like one: what a server says may be anything.
func plainCode(code string) string {
	isOther := func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '.'
	}
	if len(code) > 64 || strings.ContainsFunc(code, isOther) {
		return ""
	}
	return code
}

func isMissing(err error) bool {
	status, code := answer(err)
	return status == http.StatusNotFound && slices.Contains([]string{"", "NoSuchKey", "NotFound"}, code)
}

// isChanged tells whether a condition was not met.
func isChanged(err error) bool {
	status, _ := answer(err)
	return status == http.StatusPreconditionFailed || status == http.StatusConflict
}

// knowsNoConditions tells whether a server refused a condition as such.
func knowsNoConditions(err error) bool {
	status, code := answer(err)
	return status == http.StatusNotImplemented || status == http.StatusBadRequest && slices.Contains([]string{"NotImplemented", "InvalidArgument", "InvalidRequest"}, code)
}

// isPassing tells whether the same may succeed in a moment.
func isPassing(err error) bool {
	if _, ok := errors.AsType[stalledError](err); ok {
		return false // it took long enough
	}
	if _, ok := errors.AsType[*sourceError](err); ok {
		return false
	}
	if errors.Is(err, fs.ErrExist) {
		return false
	}
	status, code := answer(err)
	switch {
	case status == 0:
		_, ok := errors.AsType[*url.Error](err)
		return ok || errors.Is(err, io.ErrUnexpectedEOF)
	case code == "RequestTimeTooSkewed":
		return true // the client has learned the server's time
	}
	return status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status >= 500 && status != http.StatusNotImplemented && status != http.StatusInsufficientStorage
}

// explain puts an error into words. Those of the server can hold parts of keys.
func (s *Store) explain(err error) error {
	if err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	if e, ok := errors.AsType[*sourceError](err); ok {
		return e.error
	}
	if e, ok := errors.AsType[stalledError](err); ok {
		return e
	}
	status, code := answer(err)
	if status == 0 {
		return plainError(err)
	}
	e := &storeError{what: answered(status, code)}
	if why := s.why(status, code); why != "" {
		e.what += ": " + why
	}
	switch {
	case isMissing(err):
		e.is = fs.ErrNotExist
	case isChanged(err):
		e.is = fs.ErrExist
	}
	return e
}

// plainError is one of the network, or of an answer that is none.
func plainError(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*smithy.DeserializationError](err); ok && e != nil {
		return errors.New("the server's answer is not S3's")
	}
	return unreachable(err)
}

func (s *Store) why(status int, code string) string {
	switch code {
	case "NoSuchBucket":
		return "there is no bucket " + s.opt.Bucket
	case "ExpiredToken", "RequestExpired", "ExpiredTokenException":
		return "the AWS session has expired"
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthorizationHeaderMalformed", "XAdminUserNotFound":
		return "the server does not accept these keys"
	}
	switch {
	case status == http.StatusForbidden && s.isAnonymous:
		return "no AWS credentials were found"
	case status == http.StatusForbidden:
		return "a cache needs s3:GetObject, s3:PutObject and s3:ListBucket"
	}
	return ""
}

type bytesReader struct{ *bytes.Reader }

func newBytesReader(b []byte) io.ReadCloser { return bytesReader{bytes.NewReader(b)} }

// Close implements io.Closer.
func (bytesReader) Close() error { return nil }
