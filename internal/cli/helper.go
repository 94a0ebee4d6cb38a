// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"hako/internal/build"
	"hako/internal/keychain"
)

// helperPersonality returns the helper's name if the program was called as one
// of docker's credential helpers, such as "gcr" for docker-credential-gcr.
// Kaniko's image has these programs, and people copy them to other images.
func helperPersonality(args []string) (name string, ok bool) {
	if len(args) == 0 {
		return "", false
	}
	name, ok = strings.CutPrefix(strings.TrimSuffix(filepath.Base(args[0]), ".exe"), "docker-credential-")
	return name, ok && keychain.HelperNames()[name] != ""
}

// runHelper speaks the protocol of docker's credential helpers: a verb, its
// subject on standard input, and all answers, errors too, on standard output.
func (a *App) runHelper(ctx context.Context, name string, args []string) int {
	err := a.help(ctx, name, args)
	if err == nil {
		return exitOK
	}
	text := err.Error()
	if errors.Is(err, keychain.ErrNoCredentials) {
		text = keychain.HelperNotFound // docker compares it
	}
	fmt.Fprintln(a.Stdout, text)
	if e, ok := errors.AsType[*keychain.ConfigError](err); ok {
		fmt.Fprintln(a.Stderr, e.Explain())
	}
	return exitError
}

func (a *App) help(ctx context.Context, name string, args []string) error {
	verb := ""
	if len(args) == 1 {
		verb = args[0]
	}
	switch verb {
	case "get":
		server, err := readLine(a.Stdin, maxPassword)
		if err != nil {
			return fmt.Errorf("read the server from standard input: %w", err)
		}
		out, err := build.AskHelper(ctx, a.Env, name, strings.TrimSpace(server))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.Stdout, "%s\n", out)
		return err
	case "list":
		_, err := io.WriteString(a.Stdout, "{}\n") // nothing is stored
		return err
	case "store", "erase":
		return fmt.Errorf("not implemented: docker-credential-%s gets credentials and stores none", name)
	case "version", "--version":
		_, err := fmt.Fprintf(a.Stdout, "docker-credential-%s (hako) %s\n", name, a.Version)
		return err
	}
	return fmt.Errorf("Usage: docker-credential-%s <store|get|erase|list|version>", name) //nolint:staticcheck // the protocol's text
}
