// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"

	"hako/internal/sandbox"
)

// sandboxKind names failures that only a sandbox has.
func sandboxKind(err error) string {
	if _, ok := errors.AsType[*sandbox.StartError](err); ok {
		return "start"
	}
	if _, ok := errors.AsType[*sandbox.VolumeError](err); ok {
		return "volume"
	}
	return ""
}
