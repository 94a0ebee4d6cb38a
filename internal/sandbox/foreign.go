// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"maps"
	"slices"
)

// exitStatus is what the programs of trialPrograms exit with: not one that an
// emulator gives when it cannot run them.
const exitStatus = 42

// A trialProgram is what it takes to exit on some architecture.
type trialProgram struct {
	machine elf.Machine
	order   binary.ByteOrder
	is32    bool
	flags   uint32 // of the ELF header: the ABI
	code    []byte
}

// trialPrograms are exit(42) for the architectures that images are made for, by
// Go's names. A program that runs is the only sure sign that others do.
func trialPrograms() map[string]trialProgram {
	little, big := binary.LittleEndian, binary.BigEndian
	return map[string]trialProgram{
		// mov eax, 60; mov edi, 42; syscall
		"amd64": {machine: elf.EM_X86_64, order: little, code: []byte{0xb8, 60, 0, 0, 0, 0xbf, exitStatus, 0, 0, 0, 0x0f, 0x05}},
		// mov eax, 1; mov ebx, 42; int 0x80
		"386": {machine: elf.EM_386, order: little, is32: true, code: []byte{0xb8, 1, 0, 0, 0, 0xbb, exitStatus, 0, 0, 0, 0xcd, 0x80}},
		// movz x8, #93; movz x0, #42; svc #0
		"arm64": {machine: elf.EM_AARCH64, order: little, code: words(0xd2800ba8, 0xd2800000|exitStatus<<5, 0xd4000001)},
		// mov r7, #1; mov r0, #42; svc #0; the ABI is EABI 5
		"arm": {machine: elf.EM_ARM, order: little, is32: true, flags: 0x05000000, code: words(0xe3a07001, 0xe3a00000|exitStatus, 0xef000000)},
		// li a7, 93; li a0, 42; ecall
		"riscv64": {machine: elf.EM_RISCV, order: little, code: words(0x05d00893, 0x00000513|exitStatus<<20, 0x00000073)},
		// li r0, 1; li r3, 42; sc; the ABI is ELFv2
		"ppc64le": {machine: elf.EM_PPC64, order: little, flags: 2, code: words(0x38000001, 0x38600000|exitStatus, 0x44000002)},
		// lghi %r2, 42; svc 1
		"s390x": {machine: elf.EM_S390, order: big, code: []byte{0xa7, 0x29, 0, exitStatus, 0x0a, 1}},
	}
}

// words returns instructions of four bytes as they lie in memory.
func words(list ...uint32) []byte {
	var b []byte
	for _, w := range list {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// file returns the program as a static executable: a header, one segment that
// is the whole file, and the code.
func (p trialProgram) file() []byte {
	const base = 0x10000 // above what a kernel lets nobody map
	var b bytes.Buffer
	ident := [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}
	if p.machine == elf.EM_S390 {
		ident[elf.EI_DATA] = byte(elf.ELFDATA2MSB)
	}
	put := func(v any) { _ = binary.Write(&b, p.order, v) } // to memory, of values of fixed size
	if p.is32 {
		ident[elf.EI_CLASS] = byte(elf.ELFCLASS32)
		const head, seg = 52, 32
		size := uint32(head + seg + len(p.code))
		put(elf.Header32{
			Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(p.machine), Version: 1, Flags: p.flags,
			Entry: base + head + seg, Phoff: head, Ehsize: head, Phentsize: seg, Phnum: 1,
		})
		put(elf.Prog32{Type: uint32(elf.PT_LOAD), Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Flags: uint32(elf.PF_R | elf.PF_X), Align: base})
	} else {
		const head, seg = 64, 56
		size := uint64(head + seg + len(p.code))
		put(elf.Header64{
			Ident: ident, Type: uint16(elf.ET_EXEC), Machine: uint16(p.machine), Version: 1, Flags: p.flags,
			Entry: base + head + seg, Phoff: head, Ehsize: head, Phentsize: seg, Phnum: 1,
		})
		put(elf.Prog64{Type: uint32(elf.PT_LOAD), Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Flags: uint32(elf.PF_R | elf.PF_X), Align: base})
	}
	b.Write(p.code)
	return b.Bytes()
}

// Architectures returns those that [Executes] can try, sorted.
func Architectures() []string { return slices.Sorted(maps.Keys(trialPrograms())) }
