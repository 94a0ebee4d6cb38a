// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package build

// DiskSpace is not known here.
func DiskSpace(path string) (where string, free, total int64) { return path, 0, 0 }
