// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"math"
	"runtime"
	"sort"

	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h), little-endian as all our
// platforms are.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// x32Bit marks a call of the x32 ABI, which shares amd64's architecture number.
const x32Bit = 0x40000000

// seccompFilter compiles the profile that Docker and BuildKit run containers
// with, for a process with the capabilities caps, into a program for seccomp(2).
// It is a plain list of comparisons: the kernel caches what is always allowed
// (since 5.11), so their order costs nothing.
func seccompFilter(caps []string) ([]unix.SockFilter, error) {
	spec := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
	profile, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		return nil, fmt.Errorf("read the seccomp profile: %w", err)
	}
	def, err := seccompAction(profile.DefaultAction, profile.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	native, err := arch.GetInfo(runtime.GOARCH)
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	infos := []*arch.Info{native}
	switch runtime.GOARCH { // the 32-bit programs that the same kernel runs
	case "amd64":
		infos = append(infos, arch.I386)
	case "arm64":
		infos = append(infos, arch.ARM)
	}
	p := []unix.SockFilter{load(offArch)}
	for _, info := range infos {
		block, err := seccompBlock(info, profile.Syscalls, def)
		if err != nil {
			return nil, err
		}
		// A jump reaches 255 instructions, "ja" everywhere.
		p = append(p, jump(unix.BPF_JEQ, uint32(info.ID), 1, 0),
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(block))})
		p = append(p, block...)
	}
	p = append(p, ret(def))
	if len(p) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp: the filter has %d instructions", len(p))
	}
	return p, nil
}

// seccompBlock is the part for one architecture. It always returns.
func seccompBlock(info *arch.Info, rules []specs.LinuxSyscall, def uint32) ([]unix.SockFilter, error) {
	type conditional struct {
		args   []specs.LinuxSeccompArg
		action uint32
	}
	always := make(map[int]uint32)
	sometimes := make(map[int][]conditional)
	for _, r := range rules {
		action, err := seccompAction(r.Action, r.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, name := range r.Names {
			nr, ok := info.SyscallNames[name]
			switch {
			case !ok: // of another architecture
			case len(r.Args) == 0:
				always[nr] = action
			default:
				sometimes[nr] = append(sometimes[nr], conditional{r.Args, action})
			}
		}
	}
	p := []unix.SockFilter{load(offNumber)}
	if info == arch.X86_64 {
		p = append(p, jump(unix.BPF_JGE, x32Bit, 0, 1), ret(def))
	}
	for _, nr := range sortedNumbers(always) {
		p = append(p, jump(unix.BPF_JEQ, uint32(nr), 0, 1), ret(always[nr]))
	}
	for _, nr := range sortedNumbers(sometimes) {
		if _, ok := always[nr]; ok {
			continue
		}
		var body []unix.SockFilter
		for _, c := range sometimes[nr] {
			test, err := seccompArgs(c.args)
			if err != nil {
				return nil, err
			}
			body = append(body, test...)
			body = append(body, ret(c.action))
		}
		body = append(body, ret(def))
		if len(body) > math.MaxUint8 {
			return nil, fmt.Errorf("seccomp: call %d has too many conditions", nr)
		}
		p = append(p, jump(unix.BPF_JEQ, uint32(nr), 0, uint8(len(body))))
		p = append(p, body...)
	}
	return append(p, ret(def)), nil
}

func sortedNumbers[V any](m map[int]V) []int {
	out := make([]int, 0, len(m))
	for n := range m {
		out = append(out, n)
	}
	sort.Ints(out)
	return out
}

// Where a comparison goes on: with the next instruction, behind this argument's
// (the condition holds), or behind the rule (it does not).
const (
	next = iota
	holds
	fails
)

// A test is an instruction with such targets; load and mask have next only.
type test struct {
	unix.SockFilter
	yes, no int
}

// seccompArgs tests all of args. If one does not hold, the instruction after
// the next one is where it goes on: the next one returns the rule's action.
func seccompArgs(args []specs.LinuxSeccompArg) ([]unix.SockFilter, error) {
	var p []unix.SockFilter
	var exits []int // of p, those that leave with fails
	var tests []test
	for _, a := range args {
		t, err := seccompArg(a)
		if err != nil {
			return nil, err
		}
		for i := range t {
			distance := func(to int) uint8 {
				if to == holds {
					return uint8(len(t) - i - 1)
				}
				return 0
			}
			t[i].Jt, t[i].Jf = distance(t[i].yes), distance(t[i].no)
			if t[i].yes == fails || t[i].no == fails {
				exits = append(exits, len(p))
			}
			p = append(p, t[i].SockFilter)
		}
		tests = append(tests, t...)
	}
	for _, at := range exits {
		d := uint8(len(p) - at) // over the rest and the return
		if tests[at].yes == fails {
			p[at].Jt = d
		}
		if tests[at].no == fails {
			p[at].Jf = d
		}
	}
	return p, nil
}

// seccompArg compares one argument, which is 64 bits wide, half by half.
func seccompArg(a specs.LinuxSeccompArg) ([]test, error) {
	off := offArgs + 8*uint32(a.Index)
	lo, hi := uint32(a.Value), uint32(a.Value>>32)
	low := test{SockFilter: load(off)}
	high := test{SockFilter: load(off + 4)}
	cmp := func(op uint16, k uint32, yes, no int) test { return test{jump(op, k, 0, 0), yes, no} }
	and := func(k uint32) test {
		return test{SockFilter: unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: k}}
	}
	switch a.Op {
	case specs.OpEqualTo:
		return []test{high, cmp(unix.BPF_JEQ, hi, next, fails), low, cmp(unix.BPF_JEQ, lo, next, fails)}, nil
	case specs.OpNotEqual:
		return []test{high, cmp(unix.BPF_JEQ, hi, next, holds), low, cmp(unix.BPF_JEQ, lo, fails, next)}, nil
	case specs.OpMaskedEqual: // Value is the mask
		want := a.ValueTwo
		return []test{
			high, and(hi), cmp(unix.BPF_JEQ, uint32(want>>32), next, fails),
			low, and(lo), cmp(unix.BPF_JEQ, uint32(want), next, fails),
		}, nil
	case specs.OpLessThan:
		return []test{
			high, cmp(unix.BPF_JGT, hi, fails, next), cmp(unix.BPF_JEQ, hi, next, holds),
			low, cmp(unix.BPF_JGE, lo, fails, next),
		}, nil
	case specs.OpLessEqual:
		return []test{
			high, cmp(unix.BPF_JGT, hi, fails, next), cmp(unix.BPF_JEQ, hi, next, holds),
			low, cmp(unix.BPF_JGT, lo, fails, next),
		}, nil
	case specs.OpGreaterThan:
		return []test{
			high, cmp(unix.BPF_JGT, hi, holds, next), cmp(unix.BPF_JEQ, hi, next, fails),
			low, cmp(unix.BPF_JGT, lo, next, fails),
		}, nil
	case specs.OpGreaterEqual:
		return []test{
			high, cmp(unix.BPF_JGT, hi, holds, next), cmp(unix.BPF_JEQ, hi, next, fails),
			low, cmp(unix.BPF_JGE, lo, next, fails),
		}, nil
	}
	return nil, fmt.Errorf("seccomp: the operator %s is not known", a.Op)
}

func seccompAction(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		n := uint32(unix.EPERM)
		if errno != nil {
			n = uint32(*errno)
		}
		return unix.SECCOMP_RET_ERRNO | n&unix.SECCOMP_RET_DATA, nil
	}
	return 0, fmt.Errorf("seccomp: the action %s is not known", a)
}

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func jump(op uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: yes, Jf: no, K: k}
}

func ret(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}
