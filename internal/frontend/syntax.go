// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	distref "github.com/distribution/reference"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/opencontainers/go-digest"

	"hako/internal/progress"
)

// The version of the Dockerfile language that the linked BuildKit speaks, by
// the highest "minimum version" in its reference page. Raise it with BuildKit.
const (
	syntaxMajor = 1
	syntaxMinor = 27
)

// keyCmdline is the option by which the builder knows that the syntax was
// settled.
const keyCmdline = "cmdline"

// builtinSyntax reports whether a "# syntax=" image is the Dockerfile frontend
// that is built in. Mirrors have it under their own names, so of a repository
// on another host than Docker Hub the last part of the path decides. note says
// what a reader of the log should know, or is empty.
func builtinSyntax(image string) (note string, ok bool) {
	named, err := distref.ParseNormalizedNamed(image)
	if err != nil {
		return "", false
	}
	path := "/" + distref.Path(named)
	official := strings.HasSuffix(path, "/docker/dockerfile") || strings.HasSuffix(path, "/docker/dockerfile-upstream")
	if !official && (distref.Domain(named) == "docker.io" || !strings.HasSuffix(path, "/dockerfile")) {
		return "", false
	}
	if tagged, is := named.(distref.Tagged); is && newerSyntax(tagged.Tag()) {
		return fmt.Sprintf("%s asks for a newer Dockerfile language than %d.%d, which is built in and used", image, syntaxMajor, syntaxMinor), true
	}
	if !official {
		return fmt.Sprintf("%s is taken for a mirror of docker/dockerfile; the built-in %d.%d is used", image, syntaxMajor, syntaxMinor), true
	}
	return "", true
}

// newerSyntax reports whether a tag like "1.29", "1.29.1-labs" or "2" asks for
// more than is built in. Tags that are no version ask for nothing in particular.
func newerSyntax(tag string) bool {
	tag, _, _ = strings.Cut(tag, "-")
	parts := strings.Split(tag, ".")
	major, err := strconv.Atoi(parts[0])
	if err != nil || major != syntaxMajor {
		return err == nil && major > syntaxMajor
	}
	if len(parts) < 2 {
		return false
	}
	minor, err := strconv.Atoi(parts[1])
	return err == nil && minor > syntaxMinor
}

// forward answers the builder's request to continue with another frontend,
// which it makes for a "# syntax=" line or BUILDKIT_SYNTAX.
func (b *bridge) forward(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	image := req.FrontendOpt["source"]
	note, ok := builtinSyntax(image)
	if !ok {
		return nil, fmt.Errorf("frontend %q is not built in, and frontend images cannot be run; if the file is an ordinary Dockerfile, --syntax=builtin ignores this line", image)
	}
	if note != "" {
		t := progress.Start(b.opt.Sink, digest.FromString("syntax "+image), "[internal] frontend "+image)
		t.Logf("%s", note)
		t.Done(nil)
	}
	opts := req.FrontendOpt
	if _, set := opts[keyCmdline]; !set {
		return nil, fmt.Errorf("frontend %q: the request has no %q", image, keyCmdline)
	}
	return run(ctx, b.opt, opts)
}
