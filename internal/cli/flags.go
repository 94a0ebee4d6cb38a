// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hako/internal/build"
)

// envPrefix starts the variables that stand for flags.
const envPrefix = "HAKO_"

// aliases are further names of flags: kaniko's beside docker's.
func aliases() map[string]string {
	return map[string]string{
		"dockerfile":        "file",
		"custom-platform":   "platform",
		"whitelist-var-run": "ignore-var-run",
		"dry-run":           "dryrun",
		"kaniko-dir":        "work-dir",
		"squash":            "single-snapshot",
	}
}

// canonicalName returns the name a flag is defined under. Kaniko's old
// camelCase spellings (--snapshotMode) are those with dashes.
func canonicalName(_ *pflag.FlagSet, name string) pflag.NormalizedName {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('-')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	name = b.String()
	if canonical, ok := aliases()[name]; ok {
		name = canonical
	}
	return pflag.NormalizedName(name)
}

// envName returns the variable that stands for a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// applyEnv sets the flags that were not given from their variables. The extra
// map names further variables for a flag, in order. An empty variable is none.
func applyEnv(f *pflag.FlagSet, env build.Env, extra map[string][]string) error {
	var errs []error
	f.VisitAll(func(flag *pflag.Flag) {
		if flag.Changed {
			return
		}
		names := []string{envName(flag.Name)}
		for alias, canonical := range aliases() {
			if canonical == flag.Name {
				names = append(names, envName(alias))
			}
		}
		for _, name := range append(names, extra[flag.Name]...) {
			value := env.Get(name)
			if value == "" {
				continue
			}
			if err := setFromEnv(f, flag, value); err != nil {
				errs = append(errs, usageErrorf("%s=%q, for --%s: %v", name, value, flag.Name, err))
			}
			return
		}
	})
	return errors.Join(errs...)
}

func setFromEnv(f *pflag.FlagSet, flag *pflag.Flag, value string) error {
	if !isRepeatable(flag) {
		return setFlag(f, flag, value)
	}
	for line := range strings.Lines(value) {
		if line = strings.TrimRight(line, "\r\n"); line == "" {
			continue
		}
		if err := setFlag(f, flag, line); err != nil {
			return err
		}
	}
	return nil
}

// setFlag sets a flag and, unlike FlagSet.Set, gives only the reason of an error.
func setFlag(f *pflag.FlagSet, flag *pflag.Flag, value string) error {
	err := f.Set(flag.Name, value)
	if invalid, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return invalid.Unwrap()
	}
	return err
}

func isRepeatable(flag *pflag.Flag) bool {
	return flag.Value.Type() == "stringArray" || flag.Value.Type() == "list"
}

// flagError turns what pflag says into what helps.
func flagError(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return usageErrorf("%v", err)
	}
	if short := unknown.GetSpecifiedShortnames(); short != "" {
		return usageErrorf("unknown flag -%s in -%s", unknown.GetSpecifiedName(), short)
	}
	name := unknown.GetSpecifiedName()
	names := slices.Collect(func(yield func(string) bool) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { yield(f.Name) })
		for alias, canonical := range aliases() {
			if cmd.Flags().Lookup(canonical) != nil {
				yield(alias)
			}
		}
	})
	slices.Sort(names)
	if near := nearest(name, names); near != "" {
		return usageErrorf("unknown flag --%s; did you mean --%s?", name, near)
	}
	return usageErrorf("unknown flag --%s", name)
}

// nearest returns the name most like the given one, or "" if none is like it.
func nearest(name string, names []string) string {
	best, bestDistance := "", len(name)/3+2
	for _, n := range names {
		if d := distance(name, n); d < bestDistance {
			best, bestDistance = n, d
		}
	}
	return best
}

// distance returns the number of letters to insert, delete or replace to make b
// of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// A knownFlag is one of kaniko or docker that hako has no work for: because
// there is nothing to do, or because it is not built yet.
type knownFlag struct {
	name    string
	isBool  bool
	refuse  string // why a value other than the default is an error; "" accepts all
	neutral []string
	seen    []string
}

// String implements pflag.Value.
func (k *knownFlag) String() string { return strings.Join(k.seen, ",") }

// Type implements pflag.Value.
func (k *knownFlag) Type() string {
	if k.isBool {
		return "bool"
	}
	return "list"
}

// Set implements pflag.Value.
func (k *knownFlag) Set(value string) error {
	if k.isBool {
		if _, err := strconv.ParseBool(value); err != nil {
			return fmt.Errorf("%q is not a boolean", value)
		}
	}
	k.seen = append(k.seen, value)
	return nil
}

// check returns an error if the flag asks for something that is not done.
func (k *knownFlag) check() error {
	if k.refuse == "" {
		return nil
	}
	for _, value := range k.seen {
		if on, err := strconv.ParseBool(value); k.isBool && err == nil && !on {
			continue
		}
		if value == "" || slices.Contains(k.neutral, value) {
			continue
		}
		return usageErrorf("--%s: %s", k.name, k.refuse)
	}
	return nil
}

// note returns what --verbosity=debug says about the flag.
func (k *knownFlag) note() string {
	if len(k.seen) == 0 || k.refuse != "" {
		return ""
	}
	return fmt.Sprintf("--%s has no effect: the image is the same without it", k.name)
}

const notYet = "not supported yet"

// knownFlags returns the table of flags that are understood but not acted upon.
func knownFlags() []*knownFlag {
	harmlessBools := []string{
		// kaniko
		"cleanup", "use-new-run", "compressed-caching", "ignore-var-run", "skip-unused-stages",
		"force-build-metadata",
		"pre-cleanup", "preserve-context",
		// docker
		"rm", "force-rm",
	}
	table := []*knownFlag{
		{name: "materialize", isBool: true, refuse: "the container's own files are always put back after a build; -o type=local,dest=DIR writes the image's"},
		{name: "load", isBool: true, refuse: "there is no docker daemon here; use -o docker,dest=FILE and docker load -i FILE"},
		{name: "attest", refuse: notYet},
		{name: "provenance", refuse: notYet, neutral: []string{"false"}},
		{name: "sbom", refuse: notYet, neutral: []string{"false"}},
		{name: "cgroup-parent", refuse: notYet},
		{name: "memory", refuse: notYet + "; limit the container hako runs in"},
	}
	for _, name := range harmlessBools {
		table = append(table, &knownFlag{name: name, isBool: true})
	}
	return table
}

func addKnownFlags(f *pflag.FlagSet) []*knownFlag {
	table := knownFlags()
	for _, k := range table {
		flag := f.VarPF(k, k.name, "", "")
		flag.Hidden = true
		if k.isBool {
			flag.NoOptDefVal = "true"
		}
	}
	// These take a value or none.
	for _, name := range []string{"provenance", "sbom"} {
		f.Lookup(name).NoOptDefVal = "true"
	}
	return table
}
