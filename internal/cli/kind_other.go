// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package cli

// sandboxKind names failures that only a sandbox has.
func sandboxKind(error) string { return "" }
