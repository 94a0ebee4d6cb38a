// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"io"
)

// A contextReader fails once its context is done, so that a long copy from
// disk to disk can be stopped.
type contextReader struct {
	ctx context.Context //nolint:containedctx // lives for one copy
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
