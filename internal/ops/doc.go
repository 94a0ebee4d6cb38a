// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package ops knows how the operations of a build graph are done, one file per
// kind of operation.
package ops
