// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package bucket

import (
	"errors"
	"net/http"
	"testing"
	"time"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestAnswerToTheEnd: what a server answers because the exchange was ended is no
// answer. net/http may hand it on, since it closes the connection a moment later.
func TestAnswerToTheEnd(t *testing.T) {
	transport := watchedTransport{roundTrip(func(r *http.Request) (*http.Response, error) {
		<-r.Context().Done()
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	}), time.Millisecond}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://bucket.test/key", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := transport.RoundTrip(r)
	if _, ok := errors.AsType[stalledError](err); !ok {
		t.Errorf("an answer after the end: %v, want that nothing moved", err)
	}
	if resp != nil {
		_ = resp.Body.Close()
	}
}
