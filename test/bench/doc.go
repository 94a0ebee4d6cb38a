// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Command bench measures hako in an ordinary pod against BuildKit as root on
// the same machine, with the same registry:
//
//	go run ./test/bench -n 5 -o docs/measurements.md
//
// The registry is the reference implementation, a process of its own that
// stores on disk. hako runs in a new container for each run, made ahead from an
// image that holds nothing else, with an ordinary pod's rights and a memory
// limit. BuildKit is a buildkitd with overlayfs snapshots that has built something
// small and holds nothing. buildah and podman, where they are installed, build as root
// with an empty storage. Each run has a new filesystem. All alternate, and each figure is the median of the runs.
//
// A time is from the start of the client to its end: of buildctl, and of
// `runc start` on a container whose process waits to be let go, to the end of
// that process. Both include the push; neither includes making the container or
// starting the daemon. Memory is the high-water mark of the resident set, of hako's
// biggest process and of buildkitd, as the kernel keeps it; of hako's other processes it is
// what they have for themselves, without the pages of the program file that all of them map. Disk is how much more of
// the run's filesystem was in use at the worst moment. Bytes up and down are those of blobs, from the registry's access log.
package main
