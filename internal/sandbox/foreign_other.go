// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package sandbox

import (
	"context"
	"errors"
)

// Executes reports that no image's programs are executed on this system.
func Executes(context.Context, string, string) error {
	return errors.New("commands of an image need Linux")
}
