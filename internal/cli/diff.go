// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"

	"github.com/spf13/cobra"
)

// errDiffer makes "hako diff" exit with 1 and print no error; trouble exits
// with 2, as diff(1) does.
var errDiffer = errors.New("the images differ")

func (a *App) diffCommand() *cobra.Command {
	var v buildValues
	var opt DiffOptions
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Show what differs between two images, file by file and field by field",
		Long: `Show what differs between two images, file by file and field by field: the
flattened file tree, the layers, the config and the history.

A and B are references in a registry, OCI layout directories (oci:PATH), or
archives (docker-archive:PATH, oci-archive:PATH, or any existing path).
The exit code is 0 if they are equal, 1 if they differ, 2 if they cannot be compared.`,
		Example: `  hako diff registry.example.com/app:1.3 registry.example.com/app:1.4
  hako diff --ignore created --ignore mtime app.tar oci:layout`,
		Args: cobra.ExactArgs(2),
	}
	f := cmd.Flags()
	f.StringVar(&opt.Format, "format", "text", "text or json")
	f.StringArrayVar(&opt.Ignore, "ignore", nil, "leave out what `NAME` says: created, history, layers, mtime, digest … (repeatable)")
	f.StringVar(&opt.Platform, "platform", "", "compare the images of this `os/arch`")
	v.addRegistryFlags(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if a.Diff == nil {
			return diffTrouble{errors.New("diff is not part of this program yet")}
		}
		if err := applyEnv(f, a.Env, nil); err != nil {
			return diffTrouble{err}
		}
		if opt.Format != "text" && opt.Format != "json" {
			return diffTrouble{usageErrorf("--format=%s: there are text and json", opt.Format)}
		}
		registry, err := v.registry()
		if err != nil {
			return diffTrouble{err}
		}
		opt.A, opt.B, opt.Registry, opt.Env, opt.Stdout = args[0], args[1], registry, a.Env, a.Stdout
		equal, err := a.Diff(cmd.Context(), opt)
		switch {
		case err != nil:
			return diffTrouble{err}
		case !equal:
			return errDiffer
		}
		return nil
	}
	return cmd
}

// diffTrouble is an error for which diff exits with 2.
type diffTrouble struct{ error }

func (d diffTrouble) Unwrap() error { return d.error }

// ExitCode tells trouble from a difference.
func (diffTrouble) ExitCode() int { return 2 }
