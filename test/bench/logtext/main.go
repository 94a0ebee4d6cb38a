// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Command logtext writes text like that of a log to standard output, as many
// MiB as its argument says and the same every time. It is in the base images of
// package bench, whose RUN it is.
package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
)

// chunk is what is made and then repeated: far more than the window of gzip,
// and little beside the memory of the container.
const chunk = 8 << 20

func main() {
	mib, err := strconv.Atoi(os.Args[len(os.Args)-1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "usage: logtext MIB >FILE")
		os.Exit(2)
	}
	text := logText(chunk)
	for left := mib << 20; left > 0; left -= len(text) {
		if _, err := os.Stdout.Write(text[:min(left, len(text))]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func logText(n int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 4000)
	for i := range words {
		b := make([]byte, 2+rnd.IntN(9))
		for j := range b {
			b[j] = "etaoinshrdlucmfwypvbgkqjxz"[min(rnd.IntN(26), rnd.IntN(26))]
		}
		words[i] = string(b)
	}
	var out bytes.Buffer
	out.Grow(n + 512)
	for i := 0; out.Len() < n; i++ {
		fmt.Fprintf(&out, "2026-03-%02dT%02d:%02d:%02d.%03dZ level=info id=%016x-%08x msg=\"", i/86400%28+1, i/3600%24, i/60%60, i%60, rnd.IntN(1000), rnd.Uint64(), rnd.Uint32())
		for range 3 + rnd.IntN(12) {
			out.WriteString(words[rnd.IntN(len(words))])
			out.WriteByte(' ')
		}
		out.WriteString("\"\n")
	}
	return out.Bytes()[:n]
}
