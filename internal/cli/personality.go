// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

// personalities are the names of files under which the program is another one,
// with what they are called in kaniko's image.
func personalities() []string { return []string{"executor"} }

// personalitiesCommand lists them for images/build, which makes a link for each.
func (a *App) personalitiesCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "personalities",
		Short:  "List the names under which this program is another one",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			for _, name := range personalities() {
				if _, err := fmt.Fprintln(a.Stdout, name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
