// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !purego

#include "textflag.h"

// The two states, each in two registers: A0 has words F, E, B, A and A1 has words
// H, G, D, C; and so B0 and B1. SHA256RNDS2 does two rounds: its destination has
// the second four words before, and the first four after them, so that the
// registers change places each time.
#define A0 X1
#define A1 X2
#define B0 X3
#define B1 X4

// Sixteen words of the message schedule, four in each.
#define W0 X5
#define W1 X6
#define W2 X7
#define W3 X8

#define T X9
#define SWAP X10 // turns the bytes of each word round

// LOAD reads four words of the message.
#define LOAD(k, w) \
	MOVOU (k*16)(SI), w \
	PSHUFB SWAP, w

// BEGIN and END do two rounds each of the four with words w and constants k, for
// both states. X0 is where the instruction takes its words from.
#define BEGIN(k, w) \
	MOVOU (k*16)(DX), X0  \
	PADDD w, X0           \
	SHA256RNDS2 X0, A0, A1 \
	SHA256RNDS2 X0, B0, B1

#define END \
	PSHUFD $0x0e, X0, X0   \
	SHA256RNDS2 X0, A1, A0 \
	SHA256RNDS2 X0, B1, B0

// EXTEND finishes the four words of the schedule that come after w, in next, where
// EARLY has begun them; before w comes prev.
#define EXTEND(prev, w, next) \
	MOVO w, T           \
	PALIGNR $4, prev, T \
	PADDD T, next       \
	SHA256MSG2 w, next

#define EARLY(prev, w) \
	SHA256MSG1 w, prev

// ROUNDS are four rounds in the midst of the schedule.
#define ROUNDS(k, prev, w, next) \
	BEGIN(k, w)           \
	EXTEND(prev, w, next) \
	END                   \
	EARLY(prev, w)

// The K of FIPS 180-4, 4.2.2, two in each line, the first one last.
DATA constants<>+0(SB)/8, $0x71374491428a2f98
DATA constants<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+16(SB)/8, $0x59f111f13956c25b
DATA constants<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+32(SB)/8, $0x12835b01d807aa98
DATA constants<>+40(SB)/8, $0x550c7dc3243185be
DATA constants<>+48(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+64(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+96(SB)/8, $0xa831c66d983e5152
DATA constants<>+104(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+120(SB)/8, $0x1429296706ca6351
DATA constants<>+128(SB)/8, $0x2e1b213827b70a85
DATA constants<>+136(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+144(SB)/8, $0x766a0abb650a7354
DATA constants<>+152(SB)/8, $0x92722c8581c2c92e
DATA constants<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+176(SB)/8, $0xd6990624d192e819
DATA constants<>+184(SB)/8, $0x106aa070f40e3585
DATA constants<>+192(SB)/8, $0x1e376c0819a4c116
DATA constants<>+200(SB)/8, $0x34b0bcb52748774c
DATA constants<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+224(SB)/8, $0x78a5636f748f82ee
DATA constants<>+232(SB)/8, $0x8cc7020884c87814
DATA constants<>+240(SB)/8, $0xa4506ceb90befffa
DATA constants<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), NOPTR|RODATA, $256

// func blocks(a, b *state, p []byte)
TEXT ·blocks(SB), NOSPLIT, $0-40
	MOVQ a+0(FP), AX
	MOVQ b+8(FP), BX
	MOVQ p_base+16(FP), SI
	MOVQ p_len+24(FP), CX
	SHRQ $6, CX
	JZ   done
	LEAQ constants<>(SB), DX
	MOVQ $0x0405060700010203, DI
	MOVQ DI, SWAP
	MOVQ $0x0c0d0e0f08090a0b, DI
	PINSRQ $1, DI, SWAP
	MOVOU 0(AX), A0
	MOVOU 16(AX), A1
	MOVOU 0(BX), B0
	MOVOU 16(BX), B1

next:
	MOVO A0, X11
	MOVO A1, X12
	MOVO B0, X13
	MOVO B1, X14

	LOAD(0, W0)
	BEGIN(0, W0)
	END

	LOAD(1, W1)
	BEGIN(1, W1)
	END
	EARLY(W0, W1)

	LOAD(2, W2)
	BEGIN(2, W2)
	END
	EARLY(W1, W2)

	LOAD(3, W3)
	ROUNDS(3, W2, W3, W0)
	ROUNDS(4, W3, W0, W1)
	ROUNDS(5, W0, W1, W2)
	ROUNDS(6, W1, W2, W3)
	ROUNDS(7, W2, W3, W0)
	ROUNDS(8, W3, W0, W1)
	ROUNDS(9, W0, W1, W2)
	ROUNDS(10, W1, W2, W3)
	ROUNDS(11, W2, W3, W0)
	ROUNDS(12, W3, W0, W1)

	// The last words need none after them.
	BEGIN(13, W1)
	EXTEND(W0, W1, W2)
	END
	BEGIN(14, W2)
	EXTEND(W1, W2, W3)
	END
	BEGIN(15, W3)
	END

	PADDD X11, A0
	PADDD X12, A1
	PADDD X13, B0
	PADDD X14, B1

	ADDQ $64, SI
	DECQ CX
	JNZ  next

	MOVOU A0, 0(AX)
	MOVOU A1, 16(AX)
	MOVOU B0, 0(BX)
	MOVOU B1, 16(BX)

done:
	RET
