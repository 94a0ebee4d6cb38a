// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"net/http"

	"github.com/opencontainers/go-digest"
)

// Explain tells what the status means for an ADD.
func (e *HTTPStatusError) Explain() string {
	switch {
	case e.Status == http.StatusNotFound || e.Status == http.StatusGone:
		return " try     check the URL; the file may have moved"
	case e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden:
		return " try     --secret id=HTTP_AUTH_TOKEN_<host>,src=FILE sends a bearer token, HTTP_AUTH_HEADER_<host> a whole header"
	case e.Status == http.StatusTooManyRequests || e.Status >= 500:
		return " why     the server could not answer, several times\n try     again later, or from a mirror"
	}
	return ""
}

// A ChecksumError is returned for content that is not what its checksum says.
type ChecksumError struct {
	Size int64
	Got  digest.Digest // SHA-256, whatever Want is
	Want digest.Digest
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("content of %d bytes is %s, want %s", e.Size, e.Got, e.Want)
}

// Explain tells what to do if the change is meant.
func (e *ChecksumError) Explain() string {
	return fmt.Sprintf(" why     the file is not the one that the checksum was made of\n try     look at what is there now; if it is what you want: --checksum=%s", e.Got)
}
