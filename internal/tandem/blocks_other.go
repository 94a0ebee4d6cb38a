// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !amd64 || purego

package tandem

func hasInstructions() bool { return false }

// blocks is never called where hasInstructions is false.
func blocks(*state, *state, []byte) {}
