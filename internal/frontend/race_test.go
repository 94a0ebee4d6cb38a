// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build race

package frontend_test

// raceEnabled: BuildKit v0.33.0 sets one field of its resolve cache to true in
// every call, from the goroutines of all stages (builder/resolvecache.go:30).
// It does no harm, but the detector reports it for Dockerfiles with more than
// one image.
const raceEnabled = true
