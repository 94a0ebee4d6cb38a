// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package cache

// lock does nothing: concurrent writers cost each other a miss.
func (*dirBackend) lock() (unlock func(), err error) { return func() {}, nil }
