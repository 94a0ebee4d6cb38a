// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// maxLine is how much of one line is shown again.
const maxLine = 240

// escape is what terminals take for colours and movement.
var escape = regexp.MustCompile("\x1b(\\[[0-9;?]*[ -/]*[@-~]|\\][^\x07\x1b]*(\x07|\x1b\\\\)?|[@-Z\\\\^_])")

// lastLines returns the last lines of output as plain text. Of a line that was
// drawn over, like a progress bar, the last state counts.
func lastLines(data []byte, n int) []string {
	var lines []string
	for _, l := range slices.Backward(strings.Split(string(data), "\n")) {
		l = strings.TrimRight(l, "\r")
		l = l[strings.LastIndexByte(l, '\r')+1:]
		l = strings.Map(func(c rune) rune {
			if c == '\t' {
				return ' '
			}
			if !unicode.IsPrint(c) {
				return -1
			}
			return c
		}, escape.ReplaceAllString(l, ""))
		if l = strings.TrimRight(l, " "); l == "" {
			continue
		}
		if r := []rune(l); len(r) > maxLine {
			l = string(r[:maxLine]) + "…"
		}
		if lines = append(lines, l); len(lines) == n {
			break
		}
	}
	slices.Reverse(lines)
	return lines
}
