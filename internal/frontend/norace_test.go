// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package frontend_test

const raceEnabled = false
