// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

const sizeEnv = "HAKO_BENCH_TEST_MIB"

// TestMain is also the program that tests look at: it takes some memory, says so
// and, told to, becomes another program.
func TestMain(m *testing.M) {
	size := os.Getenv(sizeEnv)
	if size == "" {
		os.Exit(m.Run())
	}
	taken := make([]byte, len(size)<<20)
	for i := 0; i < len(taken); i += 512 {
		taken[i] = 1
	}
	os.Stdout.WriteString("taken\n")
	var b [1]byte // no more than the line: the rest is the other program's
	for b[0] != '\n' {
		if _, err := os.Stdin.Read(b[:]); err != nil {
			return
		}
	}
	if taken[0] == 1 {
		_ = syscall.Exec("/bin/cat", []string{"cat"}, nil)
	}
}

// A looked is a process that takes mib MiB.
type looked struct {
	t    *testing.T
	in   *os.File
	line func() string
}

func startLooked(t *testing.T, mib int) *looked {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = []string{sizeEnv + "=" + strings.Repeat("x", mib)}
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = in
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	t.Cleanup(func() {
		w.Close()
		_ = cmd.Wait()
	})
	lines := bufio.NewReader(out)
	l := &looked{t: t, in: w, line: func() string { s, _ := lines.ReadString('\n'); return s }}
	if got := l.line(); got != "taken\n" {
		t.Fatalf("the process says %q", got)
	}
	return l
}

func (l *looked) tell(s string) {
	if _, err := l.in.WriteString(s + "\n"); err != nil {
		l.t.Fatal(err)
	}
}

func ownProgram(t testing.TB) os.FileInfo {
	t.Helper()
	info, err := os.Stat("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestCrowd(t *testing.T) {
	c := processesRunning(ownProgram(t))
	defer c.close()
	if biggest, others := c.look(); biggest != 0 || others != 0 {
		t.Errorf("with nobody there: %d and %d bytes", biggest, others)
	}
	startLooked(t, 60)
	biggest, others := c.look()
	if biggest < 60<<20 || biggest > 120<<20 || others != 0 {
		t.Errorf("with one of 60 MiB: %d and %d bytes", biggest, others)
	}
	// Of the smaller one counts what is its own, not what it maps of the program.
	small := startLooked(t, 20)
	_, others = c.look()
	if others < 20<<20 {
		t.Errorf("with a second of 20 MiB: others have %d bytes", others)
	}
	for _, m := range c.members {
		if m.own >= m.most-1<<20 {
			t.Errorf("process %d has %d bytes of its own of %d: none of the program's file", m.pid, m.own, m.most)
		}
	}
	// What has become another program counts no more.
	small.tell("go on")
	small.tell("said by cat")
	if got := small.line(); got != "said by cat\n" {
		t.Fatalf("cat says %q", got)
	}
	if _, others = c.look(); others != 0 || len(c.members) != 1 {
		t.Errorf("after the second became another program: others have %d bytes, %d members", others, len(c.members))
	}
}

// An old process is looked at less often, and its end is noticed all the same.
func TestCrowdTurns(t *testing.T) {
	c := processesRunning(ownProgram(t))
	defer c.close()
	p := startLooked(t, 1)
	for range youngLooks {
		c.look()
	}
	p.tell("go on")
	p.tell("said by cat")
	if got := p.line(); got != "said by cat\n" {
		t.Fatalf("cat says %q", got)
	}
	for range oldTurns {
		c.look()
	}
	if len(c.members) != 0 {
		t.Errorf("%d members that run another program", len(c.members))
	}
}

func BenchmarkLook(b *testing.B) {
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	c := processesRunning(ownProgram(b))
	defer c.close()
	for range 3 {
		cmd := exec.CommandContext(b.Context(), exe)
		cmd.Env = []string{sizeEnv + "=x"}
		if _, err := cmd.StdinPipe(); err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		c.look()
	}
}
