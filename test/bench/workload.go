// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A workload is one Dockerfile and its context.
type workload struct {
	name, what string
	dockerfile string
	base       string // repository of the base, empty for scratch
	files      int    // in the context, beside the Dockerfile
	bytes      int
	memory     string  // limit of hako's container
	target     float64 // hako's time over the reference's, at most
	fetch      bool    // the reference is fetching and inflating the base
	namespace  bool    // hako runs on the host too, with the namespace sandbox
	cached     bool    // the second of two builds is measured
	changes    string  // a file that is another one then
}

const limit = "256m"

// sizes are how big the workloads are.
type sizes struct {
	repo      string // of the big base
	entries   int
	bytes     int64
	files     int
	fileBytes int
	logMiB    int
}

func fullSizes() sizes {
	return sizes{repo: "base", entries: 106_400, bytes: 1_730_000_000, files: 50_000, fileBytes: 100_000_000, logMiB: 1024}
}

func smallSizes() sizes {
	return sizes{repo: "base-small", entries: 10_640, bytes: 173_000_000, files: 5_000, fileBytes: 10_000_000, logMiB: 102}
}

func workloads(host string, s sizes) []workload {
	big, busybox := host+"/"+s.repo+":"+baseVersion, host+"/busybox:"+baseVersion
	var runs strings.Builder
	for i := range 10 {
		fmt.Fprintf(&runs, "RUN echo %d > /file%d\n", i, i)
	}
	text := fmt.Sprintf("FROM %s\nRUN logtext %d > /text\n", busybox, s.logMiB)
	list := []workload{
		{
			name: "W1", what: "FROM scratch, COPY one file", dockerfile: "FROM scratch\nCOPY f0/0 /\n",
			files: 1, bytes: 1000, memory: limit, target: 1,
		},
		{
			name: "W2", what: "big base, 10 × `RUN echo N > /fileN`", dockerfile: "FROM " + big + "\n" + runs.String(),
			base: s.repo, memory: limit, target: 0.4,
		},
		{
			name: "W3", what: fmt.Sprintf("COPY %d files (%d MB), RUN touch one", s.files, s.fileBytes/1_000_000),
			dockerfile: "FROM " + busybox + "\nCOPY . /src/\nRUN touch /src/f0/0\n",
			base:       "busybox", files: s.files, bytes: s.fileBytes, memory: limit, target: 0.4,
		},
		{
			name: "W2-8g", what: "W2 in a container of 8 GiB", dockerfile: "FROM " + big + "\n" + runs.String(),
			base: s.repo, memory: "8g", target: 0.4,
		},
		{
			name: "W3-8g", what: "W3 in a container of 8 GiB",
			dockerfile: "FROM " + busybox + "\nCOPY . /src/\nRUN touch /src/f0/0\n",
			base:       "busybox", files: s.files, bytes: s.fileBytes, memory: "8g", target: 0.4,
		},
		{
			name: "W4", what: fmt.Sprintf("RUN writes %d MiB of text", s.logMiB), dockerfile: text,
			base: "busybox", memory: limit, target: 0.4,
		},
		{
			name: "W4-8g", what: "the same in a container of 8 GiB", dockerfile: text,
			base: "busybox", memory: "8g", target: 0.4,
		},
		{
			name: "W8", what: "COPY one file onto the big base", dockerfile: "FROM " + big + "\nCOPY f0/0 /\n",
			base: s.repo, files: 1, bytes: 1000, memory: limit, target: 1.1, fetch: true,
		},
	}
	// The same on the host, and what only pays where stages run at the same time.
	for _, w := range list {
		if slices.Contains([]string{"W1", "W2", "W3", "W4"}, w.name) {
			w.name, w.what, w.memory, w.namespace = w.name+"-ns", w.what+", in namespaces", "", true
			list = append(list, w)
		}
	}
	list = append(list, cachedWorkloads(big, busybox, s.repo, s.logMiB)...)
	return append(list, workload{
		name: "W5", what: "three stages (5 s of CPU, then 3 s of sleep), COPY --from each, in namespaces",
		dockerfile: stages(busybox), base: "busybox", target: 1.05, namespace: true,
	})
}

// stages is a Dockerfile of three independent stages. The CPU limit ends the loop,
// so the work is the same however fast the machine is and whatever else it does.
func stages(base string) string {
	var s strings.Builder
	for i := range 3 {
		fmt.Fprintf(&s, "FROM %s AS s%d\nRUN sh -c 'ulimit -t 5; while :; do :; done'; sleep 3; echo %d > /r\n", base, i, i)
	}
	fmt.Fprintf(&s, "FROM %s\n", base)
	for i := range 3 {
		fmt.Fprintf(&s, "COPY --from=s%d /r /r%d\n", i, i)
	}
	return s.String()
}

// contextDir is the directory of a workload's context, which workloads that
// differ only in where hako runs share.
func (b *bench) contextDir(w workload) string {
	name, _, _ := strings.Cut(w.name, "-")
	return filepath.Join(b.rig.Dir, "contexts", name)
}

// writeContext writes a workload's Dockerfile and files, if they are not there.
func (b *bench) writeContext(w workload, c *content) error {
	dir, rnd := b.contextDir(w), rand.New(rand.NewPCG(13, 17))
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(w.dockerfile), 0o644); err != nil {
		return err
	}
	for i := range w.files {
		sub := filepath.Join(dir, fmt.Sprintf("f%d", i/1000))
		if i%1000 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		mean := w.bytes / w.files
		size := mean/2 + rnd.IntN(mean)
		from := rnd.IntN(poolSize - size)
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i%1000)), c.kind(rnd)[from:from+size], 0o644); err != nil {
			return err
		}
	}
	return nil
}
