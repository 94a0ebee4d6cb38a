// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hako/internal/build"
	"hako/internal/keychain"
)

// credentialHelpers reads --credential-helpers: nil stands for all of them, and
// an empty value for none.
func credentialHelpers(values []string) ([]string, error) {
	if values == nil {
		return nil, nil
	}
	list := []string{}
	for _, v := range values {
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.TrimSpace(name); name == "" {
				continue
			}
			if !slices.Contains(keychain.BuiltIn(), name) {
				return nil, usageErrorf("--credential-helpers=%s: there are %s", name, strings.Join(keychain.BuiltIn(), ", "))
			}
			list = append(list, name)
		}
	}
	return list, nil
}

func (a *App) authCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "auth",
		Short: "Show where credentials for registries come from",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.authExplainCommand())
	return cmd
}

// The exit codes of "hako auth explain": scripts tell from them what a push
// would be.
const (
	exitAnonymous = 1
	exitBroken    = 2
)

func (a *App) authExplainCommand() *cobra.Command {
	var v registryValues
	cmd := &cobra.Command{
		Use:   "explain HOST[/REPOSITORY]",
		Short: "Say which sources of credentials were looked at, and which one answers",
		Long: `Say which sources of credentials were looked at for a registry or repository, and
which one answers. Secrets are not shown, and the registry itself is not asked.

The exit code is 0 if there are credentials, 1 if the registry would be asked
without, 2 if a source is broken.`,
		Example: `  hako auth explain registry.example.com
  hako auth explain registry.example.com/team/app`,
		Args: cobra.ExactArgs(1),
	}
	f := cmd.Flags()
	v.addCredentialFlags(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := applyEnv(f, a.Env, nil); err != nil {
			return authTrouble{err}
		}
		registry, err := v.registry()
		if err != nil {
			return authTrouble{err}
		}
		e, err := build.ExplainAuth(cmd.Context(), registry, a.Env, args[0])
		if err != nil {
			return authTrouble{err}
		}
		return a.printAuth(e)
	}
	return cmd
}

// authTrouble is an error for which auth exits with 2.
type authTrouble struct{ error }

func (t authTrouble) Unwrap() error { return t.error }

// ExitCode tells trouble from "no credentials".
func (authTrouble) ExitCode() int { return exitBroken }

func (a *App) printAuth(e *build.AuthExplanation) error {
	fmt.Fprintln(a.Stdout, e.Target)
	w := tabwriter.NewWriter(a.Stdout, 0, 0, 2, ' ', 0)
	for _, name := range e.Absent {
		name, why, _ := strings.Cut(name, " (")
		fmt.Fprintf(w, "  %s\t%s\n", name, strings.TrimSuffix(why, ")"))
	}
	verdict := keychain.Account{Note: "no source has credentials for it"}
	var broken error
	for _, f := range e.Findings {
		text := "has none"
		switch {
		case !f.Asked:
			text = "not asked"
		case f.Err != nil:
			text, broken = "broken", f.Err
		case f.Kind != "":
			text, verdict = "answers: "+f.Kind, f.Account
			if !f.Expires.IsZero() {
				text += ", good until " + f.Expires.UTC().Format(time.RFC3339)
			}
		case f.Account.Note != "":
			text = f.Account.Note
		}
		fmt.Fprintf(w, "  %s\t%s\n", f.Source, text)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write explanation: %w", err)
	}
	if broken != nil {
		return authTrouble{broken}
	}
	if _, err := fmt.Fprintln(a.Stdout, verdict); err != nil {
		return fmt.Errorf("write explanation: %w", err)
	}
	if verdict.Source == "" {
		return statusError(exitAnonymous)
	}
	return nil
}

func (a *App) loginCommand() *cobra.Command {
	var l loginValues
	cmd := &cobra.Command{
		Use:   "login [flags] HOST[/PATH]",
		Short: "Write credentials for a registry into docker's config.json",
		Long: `Write credentials for a registry into $DOCKER_CONFIG/config.json, or
~/.docker/config.json. What else the file holds stays, and only its owner may read it.
The registry is not asked whether they are good: hako auth explain and hako doctor tell.

Without HOST they are for Docker Hub.`,
		Example: `  hako login registry.example.com -u ci-bot --password-stdin < password
  executor login registry.example.com -u "$USER" -p "$PASSWORD"`,
		Args: cobra.MaximumNArgs(1),
	}
	f := cmd.Flags()
	f.StringVarP(&l.user, "username", "u", "", "`NAME` of the account")
	f.StringVarP(&l.password, "password", "p", "", "`PASSWORD` or token; others see it in the list of processes")
	f.BoolVar(&l.stdin, "password-stdin", false, "read the password from standard input")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		host := "docker.io"
		if len(args) == 1 {
			host = args[0]
		}
		return a.login(cmd.Context(), host, l)
	}
	return cmd
}

type loginValues struct {
	user, password string
	stdin          bool
}

// maxPassword limits what is read from standard input.
const maxPassword = 64 << 10

func (a *App) login(_ context.Context, host string, l loginValues) error {
	switch {
	case l.user == "":
		return usageErrorf("-u is missing: the name of the account")
	case l.stdin && l.password != "":
		return usageErrorf("-p and --password-stdin contradict each other")
	case l.stdin:
		var err error
		if l.password, err = readLine(a.Stdin, maxPassword); err != nil {
			return fmt.Errorf("read the password from standard input: %w", err)
		}
	}
	if l.password == "" {
		return usageErrorf("the password is missing: -p PASSWORD, or --password-stdin and the password on standard input")
	}
	path, note, err := build.Login(a.Env, host, l.user, l.password)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stderr, "credentials of %s for %s are in %s\n", l.user, host, path)
	if note != "" {
		fmt.Fprintln(a.Stderr, note)
	}
	return nil
}

// readLine reads all of r without the newline that ends it.
func readLine(r io.Reader, limit int64) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return "", err
	}
	if int64(len(b)) > limit {
		return "", fmt.Errorf("it is longer than %d bytes", limit)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

func (v *registryValues) addCredentialFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&v.credentialHelpers, "credential-helpers", nil, "built-in `SOURCE` of credentials to ask: env, google, ecr, acr, gitlab or github; \"\" asks none (repeatable; default all)")
	f.StringVar(&v.azureConfig, "azure-container-registry-config", "", "sign in to Azure's registries as the identity in `FILE`, an azure.json of Kubernetes")
}
