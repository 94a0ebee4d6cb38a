// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import "github.com/spf13/cobra"

// completeValues makes shells offer the values of flags that have few.
func completeValues(cmd *cobra.Command) {
	for name, values := range map[string][]string{
		"call":         {"build", "check", "outline", "targets"},
		"compression":  {"gzip", "zstd"},
		"image-format": {"oci", "docker"},
		"isolation":    {"auto", "inplace", "namespace"},
		"log-format":   {"color", "text", "json"},
		"network":      {"default", "host", "none"},
		"progress":     {"auto", "tty", "plain", "rawjson", "quiet", "none"},
		"verbosity":    {"error", "warn", "info", "debug", "trace"},
	} {
		if cmd.Flags().Lookup(name) != nil {
			// Its only error is a flag that is not there, or done twice.
			_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	for _, name := range []string{"build-arg", "destination", "label", "tag", "target"} {
		if cmd.Flags().Lookup(name) != nil {
			_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
		}
	}
}
