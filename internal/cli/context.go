// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"hako/internal/build"
)

// contextValues are flags that say where the context is, besides --context.
type contextValues struct{ bucket string }

func (v *contextValues) addContextFlags(f *pflag.FlagSet) {
	f.StringVarP(&v.bucket, "bucket", "b", "", "")
	_ = f.MarkHidden("bucket") // it was defined in the line above
}

// bucketContext returns the context that --bucket and --context name together:
// the object context.tar.gz of the bucket, or the one that the context is the
// name of. A bucket without a scheme is one of Google Cloud Storage.
func (v *contextValues) bucketContext(context string) (string, error) {
	if v.bucket == "" {
		return context, nil
	}
	bucket := strings.TrimSuffix(v.bucket, "/")
	if !strings.Contains(bucket, "://") {
		bucket = "gs://" + bucket
	}
	switch {
	case context == "." || context == "" || path.Clean(context) == "/workspace":
		return bucket, nil // it was not given, or as good as not
	case strings.Contains(context, "://") || context == "-" || path.IsAbs(context):
		return "", usageErrorf("--bucket=%s and --context=%s contradict each other: write --context=%s/OBJECT", v.bucket, build.RedactContext(context), bucket)
	}
	return bucket + "/" + context, nil
}

// isStdin reports whether a build context is read from standard input.
func isStdin(context string) bool { return context == "-" || context == "tar://stdin" }

// stdinFile gives the names that standard input has as a file its short one.
func stdinFile(name string) string {
	if slices.Contains([]string{"/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}, name) {
		return "-"
	}
	return name
}

// hintAtStdin tells somebody who looks at a terminal what is waited for.
func (a *App) hintAtStdin(opt *build.Options) {
	if !isConsole(a.Stdin) {
		return
	}
	switch {
	case isStdin(opt.Context):
		fmt.Fprintln(a.Stderr, "reading the build context, a tar, from the terminal; usually it comes from a pipe:  tar -cz . | hako build … -")
	case opt.Dockerfile == "-":
		fmt.Fprintln(a.Stderr, "reading the Dockerfile from the terminal; Ctrl-D ends it")
	}
}
