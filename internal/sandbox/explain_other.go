// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package sandbox

func signalName(int) string { return "unknown" }

func ownMemory() int64 { return 0 }
