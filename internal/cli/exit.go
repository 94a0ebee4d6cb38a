// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
)

// Exit codes. A failed RUN step gives its own code, as kaniko does; an
// interrupted build gives 128 and the signal's number, as a shell does.
const (
	exitOK     = 0
	exitError  = 1
	exitSignal = 128
)

// failurePrefix starts the last line of a failed build. Scripts look for it.
const failurePrefix = "error building image: "

// lastLines is how much of a failed command's output is shown again.
const lastLines = 10

// An exitCoder is an error that decides how the program exits, like a RUN step
// that failed.
type exitCoder interface {
	error
	ExitCode() int
}

// An explainer is an error with more to say than fits in a line: what is near,
// what was tried, what to do. The text is printed above the last line.
type explainer interface {
	error
	Explain() string
}

// exitCode is the one place where errors become exit codes.
func exitCode(ctx context.Context, err error) int {
	if err == nil {
		return exitOK
	}
	if sig, ok := errors.AsType[*SignalError](context.Cause(ctx)); ok {
		return sig.ExitCode()
	}
	if coder, ok := errors.AsType[exitCoder](err); ok {
		// A code of 0 would say that all went well, and one that does not fit in
		// a byte may: kaniko gives -1, which is 255, for a step killed by a signal.
		if code := coder.ExitCode() & 0xff; code != 0 {
			return code
		}
	}
	return exitError
}

// usageError is a mistake on the command line.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usageErrorf(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// statusError exits with a code after everything was said.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// ExitCode returns the code itself.
func (e statusError) ExitCode() int { return int(e) }

// printError is the one place where errors become text.
func (a *App) printError(cmd *cobra.Command, err error) {
	if errors.Is(err, errDiffer) {
		return
	}
	if _, ok := errors.AsType[statusError](err); ok {
		return
	}
	prefix := "error: "
	if cmd != nil && (cmd.Name() == "build" || cmd.Name() == "executor") {
		prefix = failurePrefix
	}
	text := ""
	if e, ok := errors.AsType[cleanError](err); ok {
		text = e.display.Clean(failureText(prefix, err, func(d digest.Digest) []string { return e.display.LastLines(d, lastLines) }))
	} else {
		text = failureText(prefix, err, nil)
	}
	io.WriteString(a.Stderr, text) //nolint:errcheck // there is nowhere left to tell
	if usage, ok := errors.AsType[*usageError](err); ok && usage != nil && prefix == "error: " && cmd != nil {
		fmt.Fprintf(a.Stderr, "see %s --help\n", cmd.CommandPath())
	}
}

// A SignalError is the cause of a context that a signal ended.
type SignalError struct{ Signal os.Signal }

// Error names the signal.
func (e *SignalError) Error() string { return "stopped by signal: " + e.Signal.String() }

// ExitCode returns 128 and the signal's number.
func (e *SignalError) ExitCode() int {
	if sig, ok := e.Signal.(syscall.Signal); ok {
		return exitSignal + int(sig)
	}
	return exitError
}

// WithSignals returns a context that ends at the first SIGINT or SIGTERM, its
// cause being a [SignalError]. At the second one exit is called at once. The
// returned function stops the handling and waits for it to end.
func WithSignals(ctx context.Context, exit func(code int)) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for count := 0; ; count++ {
			select {
			case <-stop:
				return
			case sig := <-signals:
				err := &SignalError{Signal: sig}
				if count > 0 {
					exit(err.ExitCode())
				}
				cancel(err)
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(stop)
		<-stopped
		cancel(nil)
	}
}
