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

// A watch looks at a run while it goes on: at the memory of processes and at the
// disk.
type watch struct {
	crowd  *crowd
	disk   func() int64
	stop   chan struct{}
	done   sync.WaitGroup
	engine int64 // most memory of one process
	others int64 // most memory of those beside it, at a time
	most   int64
	first  int64
}

// How often a watch looks. Some processes live for a few milliseconds only; one
// that has been there for a while is looked at less often, since the kernel keeps
// its high-water mark.
const (
	memoryEvery = 10 * time.Millisecond
	diskEvery   = 100 * time.Millisecond

	youngLooks = 100 // looks at every turn
	oldTurns   = 5   // turns per look after that
)

// watchRun starts a watch. The crowd is whose memory counts, disk is how many
// bytes are in use.
func watchRun(c *crowd, disk func() int64) *watch {
	w := &watch{crowd: c, disk: disk, stop: make(chan struct{}), first: disk()}
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
	biggest, others := w.crowd.look()
	w.engine, w.others = max(w.engine, biggest), max(w.others, others)
}

// end stops the watch and puts what it saw into a result.
func (w *watch) end(r *result) {
	close(w.stop)
	w.done.Wait()
	w.crowd.close()
	r.engine, r.others, r.disk = w.engine, w.others, w.most
}

// A crowd is the processes whose memory counts: those of list that run program,
// or all of them where that is nil. It remembers what it has seen of each, since
// a bench that is busy looking slows down what it looks at.
type crowd struct {
	list    func() []int
	program os.FileInfo
	members []*member // in the order of their coming
}

// A member is one process.
type member struct {
	pid    int
	status *os.File
	apart  bool // its memory is no other member's
	turns  int
	most   int64 // resident at a time
	own    int64 // of that, what no file is behind
}

// look returns the memory of the biggest process, and that which the others have
// for themselves: what they map of the program's file is the same pages as the
// biggest one's.
func (c *crowd) look() (biggest, others int64) {
	for _, pid := range c.list() {
		if !slices.ContainsFunc(c.members, func(m *member) bool { return m.pid == pid }) && c.runs(pid) {
			if f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid)); err == nil {
				c.members = append(c.members, &member{pid: pid, status: f})
			}
		}
	}
	c.members = slices.DeleteFunc(c.members, func(m *member) bool {
		gone := !c.update(m)
		if gone {
			m.status.Close()
		}
		return gone
	})
	var own int64 // of the biggest
	for _, m := range c.members {
		if m.most > biggest {
			biggest, own = m.most, m.own
		}
		others += m.own
	}
	return biggest, others - own
}

// update looks at a member, if it is its turn. It is false for one that has ended
// or become another program.
func (c *crowd) update(m *member) bool {
	m.turns++
	if m.turns > youngLooks && m.turns%oldTurns != 0 {
		return true
	}
	if !c.runs(m.pid) {
		return false
	}
	if !m.apart {
		// A child that has yet to execute something has its parent's memory.
		if slices.ContainsFunc(c.members, func(o *member) bool { return o.apart && sameMemory(m.pid, o.pid) }) {
			return true
		}
		m.apart = true
	}
	var status [4096]byte
	n, err := m.status.ReadAt(status[:], 0)
	if n == 0 && err != nil {
		return false
	}
	text := status[:n]
	m.most = kilobytes(text, "VmHWM:")
	m.own = max(m.own, kilobytes(text, "RssAnon:")+kilobytes(text, "RssShmem:"))
	return true
}

// runs tells whether a process runs the program.
func (c *crowd) runs(pid int) bool {
	if c.program == nil {
		return true
	}
	info, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && os.SameFile(info, c.program)
}

func (c *crowd) close() {
	for _, m := range c.members {
		m.status.Close()
	}
}

// sameMemory reports whether two processes share their address space (kcmp(2),
// KCMP_VM). Where the kernel cannot tell it says no.
func sameMemory(a, b int) bool {
	const kcmpVM = 1
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
	return errno == 0 && r == 0
}

// kilobytes returns a field of /proc/PID/status in bytes, 0 if there is none.
func kilobytes(status []byte, field string) int64 {
	_, rest, _ := bytes.Cut(status, []byte("\n"+field))
	kb, _, _ := bytes.Cut(bytes.TrimLeft(rest, " \t"), []byte(" "))
	n, _ := strconv.ParseInt(string(kb), 10, 64)
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

// processOf is one process, whatever it runs.
func processOf(pid int) *crowd {
	return &crowd{list: func() []int { return []int{pid} }}
}

// processesOf is the processes of a cgroup that run the given program: hako's
// own, not those of RUN.
func processesOf(cgroup string, program os.FileInfo) *crowd {
	return &crowd{program: program, list: func() []int {
		data, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
		if err != nil {
			return nil
		}
		return numbers(strings.Fields(string(data)))
	}}
}

// processesRunning is the processes of this machine that will have been started
// by then and run a program.
func processesRunning(program os.FileInfo) *crowd {
	before := make(map[int]bool)
	for _, pid := range processes() {
		before[pid] = true
	}
	var newest string
	var pids []int
	return &crowd{program: program, list: func() []int {
		// proc(5), loadavg: the last field is the process, or thread, that was
		// created last. As long as it stays there is nobody new. One that is
		// listed too early is seen when it starts its own threads.
		load, err := os.ReadFile("/proc/loadavg")
		if last := string(load[bytes.LastIndexByte(load, ' ')+1:]); err != nil || last != newest {
			newest = last
			pids = slices.DeleteFunc(processes(), func(pid int) bool { return before[pid] })
		}
		return pids
	}}
}

// processes lists those of this machine.
func processes() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	return numbers(names)
}

// numbers picks, of names, those that are numbers.
func numbers(names []string) []int {
	var out []int
	for _, s := range names {
		if n, err := strconv.Atoi(s); err == nil {
			out = append(out, n)
		}
	}
	return out
}
