// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Command gotest runs "go test" with the given arguments and says what "go
// test" keeps to itself: which tests were skipped, and why. It prints the output
// of what failed and a line for each package, and exits as "go test" does.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func main() {
	code, err := run(context.Background(), os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gotest:", err)
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string, w io.Writer) (code int, err error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	r := report{w: w, output: map[string][]string{}, skipped: map[string][]string{}}
	readErr := r.read(out)
	if err := cmd.Wait(); err != nil {
		r.summary()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return exit.ExitCode(), readErr
		}
		return 1, err
	}
	r.summary()
	if readErr != nil {
		return 1, readErr
	}
	return 0, nil
}

// An event is a line of "go test -json", see "go doc test2json".
type event struct {
	Action, Package, Test, Output string
}

type report struct {
	w       io.Writer
	output  map[string][]string // of the tests under way
	skipped map[string][]string // reason → "package Test"
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) == nil {
				r.add(e)
			} else {
				fmt.Fprint(r.w, line)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) add(e event) {
	key := e.Package + " " + e.Test
	switch {
	case e.Test == "" && strings.Contains(e.Output, "[no test files]"):
	case e.Test == "" && e.Output != "PASS\n":
		fmt.Fprint(r.w, e.Output) // the package's result, or what the compiler says
	case e.Action == "output":
		r.output[key] = append(r.output[key], e.Output)
	case e.Action == "fail":
		fmt.Fprint(r.w, strings.Join(r.output[key], ""))
		delete(r.output, key)
	case e.Action == "skip":
		why := reason(r.output[key])
		r.skipped[why] = append(r.skipped[why], key)
		delete(r.output, key)
	case e.Action == "pass":
		delete(r.output, key)
	}
}

// reason returns what a test said when it was skipped, without file and line.
func reason(output []string) string {
	for _, l := range output {
		l = strings.TrimSpace(l)
		if strings.HasPrefix(l, "===") || strings.HasPrefix(l, "---") {
			continue
		}
		if _, text, ok := strings.Cut(l, ": "); ok {
			return strings.TrimPrefix(text, "skipped: ")
		}
	}
	return "no reason given"
}

func (r *report) summary() {
	var reasons []string
	for why := range r.skipped {
		reasons = append(reasons, why)
	}
	slices.Sort(reasons)
	for _, why := range reasons {
		tests := r.skipped[why]
		slices.Sort(tests)
		const most = 3
		shown := strings.Join(tests[:min(most, len(tests))], ", ")
		if len(tests) > most {
			shown += fmt.Sprintf(" and %d more", len(tests)-most)
		}
		fmt.Fprintf(r.w, "skipped: %s: %s\n", shown, why)
	}
}
