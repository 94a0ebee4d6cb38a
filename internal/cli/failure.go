// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"

	"hako/internal/frontend"
	"hako/internal/registry"
	"hako/internal/sandbox"
	"hako/internal/solver"
)

// A failure is what there is to say about an error: one thought a line, from
// where it is in the Dockerfile to what to do about it.
type failure struct {
	file   string
	lines  [][2]int // ranges, from 1
	text   []byte   // the whole Dockerfile
	vertex digest.Digest
	cause  error // without the place
	near   string
	err    error
}

// maxSource is how many lines of one instruction are shown.
const maxSource = 12

// suggestion is how BuildKit ends an error about a name that is nearly right.
var suggestion = regexp.MustCompile(` \(did you mean ([^()]+)\?\)$`)

// newFailure finds the place and the cause in an error.
func newFailure(err error) *failure {
	f := &failure{err: err, cause: err}
	if e, ok := errors.AsType[*solver.VertexError](err); ok {
		f.file, f.lines, f.text, f.vertex, f.cause = e.File, e.Lines, e.Text, e.Digest, e.Err
		if e.File == "" {
			f.cause = fmt.Errorf("%s: %w", e.Name, e.Err)
		}
	} else if e, ok := errors.AsType[*frontend.SourceError](err); ok {
		f.file, f.lines, f.text, f.cause = e.File, e.Lines, e.Text, e.Err
	} else if s := errdefs.Sources(err); len(s) > 0 {
		f.fromSource(s[len(s)-1])
	}
	// The packages between here and the registry say once more what is pulled
	// or pushed, and why.
	if e, ok := errors.AsType[*registry.Error](err); ok {
		if m := suggestion.FindStringSubmatch(err.Error()); m != nil {
			f.near = m[1]
		}
		f.cause = e
	}
	return f
}

func (f *failure) fromSource(src *errdefs.Source) {
	if src.Info == nil {
		return
	}
	f.file, f.text = src.Info.Filename, src.Info.Data
	for _, r := range src.Ranges {
		if r.Start != nil && r.End != nil {
			f.lines = append(f.lines, [2]int{int(r.Start.Line), int(r.End.Line)})
		}
	}
}

// span returns the first and last line of the instruction; 0 if there is none.
func (f *failure) span() (first, last int) {
	for _, l := range f.lines {
		if first == 0 || l[0] < first {
			first = l[0]
		}
		last = max(last, l[1])
	}
	if first < 1 || first > len(f.source()) {
		return 0, 0
	}
	return first, last
}

func (f *failure) source() []string {
	return strings.Split(strings.TrimRight(string(f.text), "\r\n"), "\n")
}

// where returns "Dockerfile:14", "" if there is no such place.
func (f *failure) where() string {
	if first, _ := f.span(); first > 0 {
		return fmt.Sprintf("%s:%d", f.file, first)
	}
	return ""
}

// instruction returns the instruction in one line, cut to limit characters.
func (f *failure) instruction(limit int) string {
	first, last := f.span()
	if first == 0 {
		return ""
	}
	var words []string
	for _, l := range f.source()[first-1 : min(last, len(f.source()))] {
		l = strings.TrimSpace(l)
		if strings.HasPrefix(l, "#") && first != last {
			continue // a comment between the lines of an instruction
		}
		words = append(words, strings.Fields(strings.TrimSuffix(l, `\`))...)
	}
	s := []rune(strings.Join(words, " "))
	if len(s) > limit {
		return string(s[:limit-1]) + "…"
	}
	return string(s)
}

// writePlace prints the instruction and the lines around it.
func (f *failure) writePlace(b *strings.Builder) {
	first, last := f.span()
	if first == 0 {
		return
	}
	source := f.source()
	fmt.Fprintf(b, "%s: %s\n", f.where(), f.instruction(120))
	for n := max(1, first-1); n <= min(len(source), last+1); n++ {
		if n == first+maxSource && last > n {
			fmt.Fprintf(b, "    … > %d more lines\n", last-n+1)
			n = last
			continue
		}
		mark := "|"
		if n >= first && n <= last {
			mark = ">"
		}
		if text := strings.TrimRight(source[n-1], "\r"); text != "" || mark == ">" {
			fmt.Fprintf(b, " %4d %s %s\n", n, mark, text)
		}
	}
}

// message is the cause in one line.
func (f *failure) message() string {
	if e, ok := errors.AsType[*sandbox.UnsupportedError](f.cause); ok && e.What != "RUN" {
		return e.What + ": not possible here" // why is said above
	}
	msg := oneLine(f.cause.Error())
	first, _ := f.span()
	for _, p := range []string{f.where() + ": ", fmt.Sprintf("dockerfile parse error on line %d: ", first)} {
		if f.where() != "" {
			msg = strings.TrimPrefix(msg, p)
		}
	}
	return msg
}

// last is the line that ends the text: scripts look for its prefix.
func (f *failure) last(prefix string) string {
	if where := f.where(); where != "" {
		return fmt.Sprintf("%s%s: %s: %s\n", prefix, where, f.instruction(60), f.message())
	}
	return prefix + f.message() + "\n"
}

// A stater is an error that knows what it left behind.
type stater interface {
	error
	State() string
}

// A keeper is an error that knows what was saved of the work.
type keeper interface {
	error
	KeptLines() []string
}

// failureText returns all that is printed of an error. tail returns the last
// lines that a vertex printed.
func failureText(prefix string, err error, tail func(digest.Digest) []string) string {
	f := newFailure(err)
	var b strings.Builder
	f.writePlace(&b)
	if f.vertex != "" && tail != nil {
		if lines := tail(f.vertex); len(lines) > 0 {
			b.WriteString(" last lines:\n   " + strings.Join(lines, "\n   ") + "\n")
		}
	}
	if msg := strings.TrimSpace(f.cause.Error()); strings.Contains(msg, "\n") {
		b.WriteString(msg + "\n")
	}
	if f.near != "" {
		fmt.Fprintf(&b, " why     no stage has that name, so it was taken for an image's\n near    the stage %q\n", f.near)
	} else if text := explanation(err); text != "" {
		b.WriteString(strings.TrimRight(text, "\n") + "\n")
	}
	if k, ok := errors.AsType[keeper](err); ok {
		for _, line := range k.KeptLines() {
			b.WriteString(" kept    " + line + "\n")
		}
	}
	if s, ok := errors.AsType[stater](err); ok && s.State() != "" {
		b.WriteString(" state   " + s.State() + "\n")
	}
	return b.String() + f.last(prefix)
}

func oneLine(s string) string {
	var parts []string
	for line := range strings.Lines(s) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}
