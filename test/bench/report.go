// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// median is the middle of what get gives for each run, 0 without runs.
func median(runs []result, get func(result) float64) float64 {
	if len(runs) == 0 {
		return 0
	}
	var values []float64
	for _, r := range runs {
		values = append(values, get(r))
	}
	slices.Sort(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}

func greatest(runs []result, get func(result) float64) float64 {
	var most float64
	for _, r := range runs {
		most = max(most, get(r))
	}
	return most
}

func seconds(r result) float64   { return r.wall.Seconds() }
func cgroupMiB(r result) float64 { return float64(r.cgroup) / (1 << 20) }
func diskMB(r result) float64    { return float64(r.disk) / 1e6 }
func layersMB(r result) float64  { return float64(r.layers) / 1e6 }
func downMB(r result) float64    { return float64(r.traffic.down) / 1e6 }
func upMB(r result) float64      { return float64(r.traffic.up) / 1e6 }

func engineMiB(r result) float64 { return float64(r.engine) / (1 << 20) }
func othersMiB(r result) float64 { return float64(r.others) / (1 << 20) }

func latest(rows ...row) string {
	var parts []string
	for _, r := range rows {
		for _, runs := range []struct {
			name string
			list []result
		}{{"fetch", r.fetch}, {"hako", r.hako}, {"BuildKit", r.buildkit}} {
			if n := len(runs.list); n > 0 {
				l := runs.list[n-1]
				parts = append(parts, fmt.Sprintf("%s %.2f s %.0f MiB", runs.name, l.wall.Seconds(), engineMiB(l)+othersMiB(l)))
			}
		}
	}
	return strings.Join(parts, " · ")
}

const explanation = `hako runs as /kaniko/executor, the only file of its image, in a new podman container with exactly an ordinary pod's
capabilities and seccomp profile and the memory limit shown. BuildKit runs as root on the host with overlayfs snapshots and an
empty store. Each run has a new ext4 filesystem. Both pull from and push to the same registry (distribution, storing on disk) over loopback, in turn; seconds are
the median. Neither making the container nor starting buildkitd counts, the push does. Memory is the greatest of any run: the resident set of
hako's engine, and of buildkitd, by the kernel's high-water mark (VmHWM), program file included; + what hako's other processes (its supervisor, those that
become a RUN) have at one time for themselves, anonymous and shared memory as seen each 10 ms (RssAnon + RssShmem): the pages of the program file, which all
of them map, are counted with the engine. "container" is the cgroup's peak with page cache
and what RUN used. Disk is the greatest rise of that filesystem's use in any run. "made" is the compressed size of the
layers that the build made, down and up are bytes of blobs at the registry.

`

// report is the result as Markdown.
func (b *bench) report(ctx context.Context, rows []row) string {
	var out strings.Builder
	size := ""
	if b.options.small {
		size = ", a tenth of the size"
	}
	fmt.Fprintf(&out, "# Measurements\n\n`make bench`, %s, hako %s, %d runs of each%s.\n%s.\n\n", time.Now().Format("2006-01-02"), revision(ctx), b.options.n, size, machine())
	out.WriteString(explanation)
	out.WriteString("| workload | limit | hako s | reference s | ratio | wanted | |\n|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		out.WriteString(r.times())
	}
	out.WriteString("\n| workload | memory MiB: hako | container | BuildKit | disk MB: hako | BuildKit | made MB: hako | BuildKit | down/up MB: hako | BuildKit |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		out.WriteString(r.costs())
	}
	out.WriteString(othersTable(rows))
	return out.String()
}

func (r row) times() string {
	hako := median(r.hako, seconds)
	reference, of := median(r.buildkit, seconds), " (BuildKit)"
	if len(r.fetch) > 0 {
		reference, of = median(r.fetch, seconds), fmt.Sprintf(" (fetch and inflate; BuildKit %.2f)", reference)
	}
	if r.again {
		verdict := yes(hako < 1 && greatest(r.hako, downMB) < 0.01)
		return fmt.Sprintf("| %s: %s | %s | %.2f | – | – | < 1 s, no layer | %s |\n", r.name, r.what, r.memory, hako, verdict)
	}
	if hako == 0 || reference == 0 {
		return fmt.Sprintf("| %s: %s | %s | %.2f | %.2f%s | – | %.2f | – |\n", r.name, r.what, r.memory, hako, reference, of, r.target)
	}
	return fmt.Sprintf("| %s: %s | %s | %.2f | %.2f%s | %.2f | ≤ %.2f | %s |\n",
		r.name, r.what, r.memory, hako, reference, of, hako/reference, r.target, yes(hako/reference <= r.target))
}

func yes(b bool) string {
	if b {
		return "met"
	}
	return "missed"
}

func (r row) costs() string {
	return fmt.Sprintf("| %s | %.0f + %.0f | %.0f | %.0f | %.0f | %.0f | %s | %s | %s | %s |\n", r.name,
		greatest(r.hako, engineMiB), greatest(r.hako, othersMiB), greatest(r.hako, cgroupMiB), greatest(r.buildkit, engineMiB),
		greatest(r.hako, diskMB), greatest(r.buildkit, diskMB), megabytes(median(r.hako, layersMB)), megabytes(median(r.buildkit, layersMB)),
		megabytes(median(r.hako, downMB))+" / "+megabytes(median(r.hako, upMB)),
		megabytes(median(r.buildkit, downMB))+" / "+megabytes(median(r.buildkit, upMB)))
}

// megabytes shows small amounts too: whether a layer is bigger may be a matter
// of bytes.
func megabytes(mb float64) string {
	if mb < 1 {
		return fmt.Sprintf("%.4f", mb)
	}
	return fmt.Sprintf("%.1f", mb)
}

func revision(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty").Output()
	if err != nil {
		return "of unknown revision"
	}
	return strings.TrimSpace(string(out))
}

func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	cpu := "unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range bytes.Lines(info) {
		if k, v, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(k) == "model name" {
			cpu = strings.TrimSpace(v)
			break
		}
	}
	mem, _ := os.ReadFile("/proc/meminfo")
	var kb int64
	_, _ = fmt.Sscanf(string(mem), "MemTotal: %d kB", &kb)
	return fmt.Sprintf("%d × %s, %d GiB, Linux %s, %s", runtime.NumCPU(), cpu, (kb+1<<19)>>20, unix.ByteSliceToString(u.Release[:]), runtime.Version())
}
