// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// PutHTTP sends data to rawURL with the method PUT, as plain text. What may pass
// by itself is tried again, up to five times; any answer but success is an error,
// which has neither the query nor the credentials of the URL.
func PutHTTP(ctx context.Context, client *http.Client, rawURL string, data []byte) error {
	const attempts = 5
	delay := 500 * time.Millisecond
	for n := 1; ; n++ {
		err := putOnce(ctx, client, rawURL, data)
		if err == nil {
			return nil
		}
		var again *passingError
		if n < attempts && errors.As(err, &again) {
			select {
			case <-time.After(max(delay<<(n-1), again.after)):
				continue
			case <-ctx.Done():
			}
		}
		return fmt.Errorf("put %s: %w", redactURL(rawURL), err)
	}
}

func putOnce(ctx context.Context, client *http.Client, rawURL string, data []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, rawURL, bytes.NewReader(data))
	if err != nil {
		return withoutURL(err)
	}
	req.Header.Set("Content-Type", "text/plain")
	resp, err := client.Do(req)
	if err != nil {
		return transportError(withoutURL(err))
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // so that the connection can be used again
	if resp.StatusCode < 200 || resp.StatusCode >= 300 {
		return statusError(resp)
	}
	return nil
}
