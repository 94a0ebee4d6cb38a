// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A watch looks at a run while it goes on: the kernel keeps the high-water mark
// of each process's memory, the watch that of the disk.
type watch struct {
	pids   func() []int
	disk   func() int64
	stop   chan struct{}
	done   sync.WaitGroup
	engine int64 // most memory of one process
	others int64 // most memory of those beside it, at a time
	most   int64
	first  int64
}

// How often a watch looks. Memory is a high-water mark already, so looking
// seldom loses only what a process took shortly before its end.
const (
	memoryEvery = 10 * time.Millisecond
	diskEvery   = 100 * time.Millisecond
)

// watchRun starts a watch. pids lists whose memory counts, disk is how many
// bytes are in use.
func watchRun(pids func() []int, disk func() int64) *watch {
	w := &watch{pids: pids, disk: disk, stop: make(chan struct{}), first: disk()}
	w.done.Go(func() { w.every(memoryEvery, w.memory) })
	w.done.Go(func() { w.every(diskEvery, func() { w.most = max(w.most, w.disk()-w.first) }) })
	return w
}

func (w *watch) every(d time.Duration, look func()) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		look()
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
	}
}

func (w *watch) memory() {
	var sum, most int64
	var counted []int
	for _, pid := range w.pids() {
		// A child that has yet to exec has its parent's memory.
		if slices.ContainsFunc(counted, func(other int) bool { return sameMemory(pid, other) }) {
			continue
		}
		counted = append(counted, pid)
		n := highWater(pid)
		sum, most = sum+n, max(most, n)
	}
	w.engine, w.others = max(w.engine, most), max(w.others, sum-most)
}

// end stops the watch and puts what it saw into a result.
func (w *watch) end(r *result) {
	close(w.stop)
	w.done.Wait()
	r.engine, r.others, r.disk = w.engine, w.others, w.most
}

// sameMemory reports whether two processes share their address space (kcmp(2),
// KCMP_VM). Where the kernel cannot tell it says no.
func sameMemory(a, b int) bool {
	const kcmpVM = 1
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
	return errno == 0 && r == 0
}

// highWater is the most memory that a process has had resident.
func highWater(pid int) int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	kb, _, _ := strings.Cut(strings.TrimSpace(string(rest[:min(len(rest), 40)])), " ")
	n, _ := strconv.ParseInt(kb, 10, 64)
	return n << 10
}

// resetHighWater makes a process's high-water mark what it has now (proc(5),
// clear_refs).
func resetHighWater(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// filesystemUsed is how much of dir's filesystem is in use.
func filesystemUsed(dir string) int64 {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return 0
	}
	return int64(s.Blocks-s.Bfree) * s.Bsize
}

// cgroupOf is a process's directory in the memory controller's hierarchy.
func cgroupOf(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	unified := ""
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if slices.Contains(strings.Split(parts[1], ","), "memory") {
			return filepath.Join("/sys/fs/cgroup/memory", parts[2])
		}
		if parts[0] == "0" {
			unified = filepath.Join("/sys/fs/cgroup", parts[2])
		}
	}
	return unified
}

// cgroupPeak is the most memory that a cgroup has had, page cache included.
func cgroupPeak(dir string) int64 {
	for _, name := range []string{"memory.max_usage_in_bytes", "memory.peak"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
			return n
		}
	}
	return 0
}

// cgroupKills is how many processes of a cgroup its memory limit has killed.
func cgroupKills(dir string) int64 {
	for _, name := range []string{"memory.oom_control", "memory.events"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
				n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
				return n
			}
		}
	}
	return 0
}

// processesOf lists a cgroup's processes that run the given program: hako's
// own, not those of RUN.
func processesOf(cgroup string, program os.FileInfo) []int {
	data, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return nil
	}
	return running(program, strings.Fields(string(data)))
}

// processesRunning returns the processes of the machine that run a program.
func processesRunning(program os.FileInfo) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	return running(program, names)
}

// running picks, of the names of processes, those that run a program.
func running(program os.FileInfo, names []string) []int {
	var pids []int
	for _, f := range names {
		pid, err := strconv.Atoi(f)
		if err != nil {
			continue
		}
		if info, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && os.SameFile(info, program) {
			pids = append(pids, pid)
		}
	}
	return pids
}
