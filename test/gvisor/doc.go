// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package gvisor builds in containers whose kernel is gVisor's, and compares the
// images with those of the same builds on Linux. make test-runtimes runs it,
// with the build tag runtimes.
package gvisor
