// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package build

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// errReadOnly is what a read-only file system answers.
const errReadOnly = unix.EROFS

// peakMemory returns the most memory this process has had resident, in bytes.
func peakMemory() int64 {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		return 0
	}
	if runtime.GOOS == "darwin" {
		return int64(ru.Maxrss) //nolint:unconvert // differs by system
	}
	return int64(ru.Maxrss) << 10 //nolint:unconvert // differs by system
}
