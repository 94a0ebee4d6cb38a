// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package export

import (
	"errors"
	"os"
	"time"

	"hako/internal/tree"
)

func makeNode(*os.Root, *tree.Entry, string) error {
	return errors.New("devices and FIFOs can only be written on Linux: use --output type=tar")
}

// setLinkTime leaves the time: it is no part of what a link means.
func setLinkTime(*os.Root, string, time.Time) error { return nil }

func setXattrs(*os.File, map[string]string) error { return nil }
