// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"hako/internal/keychain"
)

// personalities are the names of files under which the program is another one,
// with what they are called in kaniko's image.
func personalities() []string {
	names := []string{"executor", "warmer"}
	for _, helper := range slices.Sorted(maps.Keys(keychain.HelperNames())) {
		names = append(names, "docker-credential-"+helper)
	}
	return names
}

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
