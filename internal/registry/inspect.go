// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"errors"

	"github.com/google/go-containerregistry/pkg/name"
)

// A Standing is what a registry makes of this client.
type Standing struct {
	Scheme  string // "https" or "http"; "" if the registry was not reached
	Account Account
	// Pull and Push are nil where they are allowed, and otherwise what was
	// answered. A repository that does not exist yet may be pulled from.
	Pull, Push error
}

// Inspect finds out how ref's registry is reached, as who, and what this
// account may do there. It leaves nothing in the registry.
func (c *Client) Inspect(ctx context.Context, ref name.Reference) Standing {
	var s Standing
	a := c.access(ref.Context(), displayRef(ref), false)
	if e, err := a.endpoint(ctx); err == nil {
		s.Scheme = e.scheme
	}
	if r, err := a.credentials(ctx); err == nil {
		s.Account = r.account
	}
	if _, err := a.manifest(ctx, ref.Identifier()); !errors.Is(err, ErrNotFound) {
		s.Pull = err
	}
	s.Push = c.CheckPushPermission(ctx, ref.Context())
	return s
}
