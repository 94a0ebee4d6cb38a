// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package sandbox

// Init does nothing where no command can be run in place.
func Init(args []string) ([]string, *Supervisor) { return args, nil }

// MemoryLimit returns 0: no limit is known.
func MemoryLimit() int64 { return 0 }

// Restore does nothing: nothing is ever parked here.
func Restore(string) error { return nil }

// IsAdmin is false: there is nothing to mount.
func IsAdmin() bool { return false }
