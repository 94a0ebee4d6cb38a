// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import "syscall"

// errReadOnly is what a write-protected medium answers.
const errReadOnly = syscall.Errno(19)

// peakMemory is not known here.
func peakMemory() int64 { return 0 }
