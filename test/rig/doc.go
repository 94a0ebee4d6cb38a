// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package rig starts the real things that hako is measured against: a
// registry, a buildkitd of the version in go.mod, base images as odd as those
// found in the wild, and containers with exactly the rights of an ordinary
// Kubernetes pod.
//
// It is for tests only. Everything it starts belongs to one [Rig] and is ended
// by [Rig.Close]: processes by their id, mounts by their path. Nothing outside
// the repository's .cache directory and the system's temporary directory is
// written.
//
// What a machine lacks is named by [Require], which skips the test there and
// fails it in CI, where nothing may be skipped.
package rig
