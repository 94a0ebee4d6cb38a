// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package layer

import (
	"io"
	"os"
)

// mapFile reads a whole file where mapping it is not worth the code.
func mapFile(f *os.File) ([]byte, func() error, error) {
	b, err := io.ReadAll(f)
	return b, func() error { return nil }, err
}
