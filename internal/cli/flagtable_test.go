// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"hako/internal/build"
)

// A flagRow is a line of testdata/flags.txt.
type flagRow struct {
	fate, test string
	example    []string
}

func flagRows(t *testing.T) map[string]flagRow {
	t.Helper()
	data, err := os.ReadFile("testdata/flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]flagRow)
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 4 || !slices.Contains([]string{"effect", "nothing", "refused"}, f[1]) {
			t.Errorf("testdata/flags.txt: %q: want FLAG effect|nothing|refused TEST EXAMPLE", line)
			continue
		}
		if _, twice := rows[f[0]]; twice {
			t.Errorf("testdata/flags.txt has --%s twice", f[0])
		}
		rows[f[0]] = flagRow{fate: f[1], test: f[2], example: f[3:]}
	}
	return rows
}

// executorFlags are all flags that the executor has.
func executorFlags() map[string]*pflag.Flag {
	var v buildValues
	cmd := &cobra.Command{}
	v.addFlags(cmd)
	flags := make(map[string]*pflag.Flag)
	cmd.Flags().VisitAll(func(f *pflag.Flag) { flags[f.Name] = f })
	return flags
}

// Every flag is in the table, and does what the table says.
func TestEveryFlag(t *testing.T) {
	t.Parallel()
	rows, flags := flagRows(t), executorFlags()
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		row, ok := rows[name]
		if !ok {
			t.Errorf("--%s is not in testdata/flags.txt: add it with the file of a test in which leaving it out changes the result", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			row.check(t, flags[name])
		})
	}
	for name := range rows {
		if flags[name] == nil {
			t.Errorf("testdata/flags.txt has --%s, which is no flag", name)
		}
	}
}

func (r flagRow) check(t *testing.T, f *pflag.Flag) {
	t.Helper()
	args := func(extra ...string) []string { return append([]string{"executor", "--context=."}, extra...) }
	without := run(t, build.Env{}, &build.Result{}, nil, args("--no-push")...)
	example := append(slices.Clone(r.example), "--no-push")
	switch {
	case f.Name == "push":
		example = []string{"--push", "--tag=a"} // the opposite of --no-push
	case strings.HasPrefix(f.Name, "index-"):
		example = r.example // these push
	}
	if f.Name == "no-push" { // something has to be given instead of it
		without = run(t, build.Env{}, &build.Result{}, nil, args("--destination=a")...)
		example = append(example, "--destination=a")
	}
	with := run(t, build.Env{}, &build.Result{}, nil, args(example...)...)
	switch r.fate {
	case "refused":
		if with.called || !strings.Contains(with.stderr, "--"+f.Name) {
			t.Errorf("%q: exit code %d, want an error that names the flag:\n%s", r.example, with.code, with.stderr)
		}
		return
	case "nothing":
		if !with.called || with.stderr != without.stderr {
			t.Errorf("%q: exit code %d, want silence:\n%s", r.example, with.code, with.stderr)
		}
		return
	}
	if !with.called {
		t.Fatalf("%q: exit code %d\n%s", r.example, with.code, with.stderr)
	}
	ignore := cmpopts.IgnoreFields(build.Options{}, "Stdin", "Stdout", "Stderr", "Supervisor", "Env")
	same := cmp.Equal(without.opt, with.opt, ignore, cmpopts.IgnoreUnexported(build.Target{}))
	if same && with.stderr == without.stderr {
		t.Errorf("%q changes nothing", r.example)
	}
	// How often a stream is resumed is tested in package registry, by its option.
	if f.Name != "image-fs-extract-retry" {
		r.named(t, f)
	}
}

// named checks that the test exists and uses the flag, by one of its names.
func (r flagRow) named(t *testing.T, f *pflag.Flag) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../..", r.test))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"--" + f.Name, "\n" + f.Name + ":"} // the latter in test/conformance
	for alias, canonical := range aliases() {
		if canonical == f.Name {
			names = append(names, "--"+alias)
		}
	}
	if f.Shorthand != "" {
		names = append(names, " -"+f.Shorthand)
	}
	for i, n := range names {
		names[i] = regexp.QuoteMeta(n)
	}
	if !regexp.MustCompile(`(` + strings.Join(names, "|") + `)([^a-z-]|$)`).Match(data) {
		t.Errorf("%s does not use --%s", r.test, f.Name)
	}
}

// docs/kaniko.md tells of every flag of kaniko's executor and its forks.
func TestKanikoDocument(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../docs/kaniko.md")
	if err != nil {
		t.Fatal(err)
	}
	told := make(map[string]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `--([a-z-]+)`[^|]*\\| ([a-z]+)").FindAllStringSubmatch(string(data), -1) {
		told[m[1]] = m[2]
	}
	rows := flagRows(t)
	for _, name := range kanikoFlags() {
		canonical := string(canonicalName(nil, name))
		row, ok := rows[canonical]
		switch {
		case told[name] == "":
			t.Errorf("docs/kaniko.md has no row for --%s", name)
		case !ok:
			t.Errorf("--%s of kaniko is no flag here", name)
		case told[name] != row.fate:
			t.Errorf("docs/kaniko.md says of --%s %q, and testdata/flags.txt %q", name, told[name], row.fate)
		}
	}
}

// kanikoFlags are the flags of kaniko 1.24.0 and of osscontainertools/kaniko 1.28.
func kanikoFlags() []string {
	return strings.Fields(`
		annotation azure-container-registry-config bucket build-arg cache cache-copy-layers cache-dir cache-repo cache-run-layers cache-ttl
		cleanup compressed-caching compression compression-level context context-sub-path credential-helpers custom-platform destination
		digest-file dockerfile dryrun force force-build-metadata git ignore-path ignore-var-run image-download-retry image-format
		image-fs-extract-retry image-name-tag-with-digest-file image-name-with-digest-file insecure insecure-pull insecure-registry
		kaniko-dir label log-format log-timestamp materialize no-push no-push-cache oci-layout-path pre-cleanup preserve-context
		push-ignore-immutable-tag-errors push-retry registry-certificate registry-client-cert registry-map registry-mirror reproducible
		secret single-snapshot skip-default-registry-fallback skip-push-permission-check skip-tls-verify skip-tls-verify-pull
		skip-tls-verify-registry skip-unused-stages snapshot-mode tar-path target use-new-run verbosity whitelist-var-run`)
}
