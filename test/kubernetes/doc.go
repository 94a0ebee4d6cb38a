// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package kubernetes runs hako's images as pods of a real cluster of one node:
// etcd, API server, scheduler, controllers, kubelet, containerd and runc. What
// the examples name, registry.example.com, is a registry here with that name,
// TLS and a password, so that the manifests are applied as they are.
//
// All of it lives in a mount, network and PID namespace of its own: nothing that
// listens is reached from outside, and when the first process ends, the rest,
// its mounts and interfaces go with it. make test-runtimes runs it, with the
// build tag runtimes.
package kubernetes
