// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package build

import (
	"context"
	"net"
)

// dialSocket returns how to reach the socket at path.
func dialSocket(path string) (func(context.Context) (net.Conn, error), error) {
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}, nil
}
