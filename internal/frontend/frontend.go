// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package frontend turns a Dockerfile into build graphs. It is BuildKit's own
// Dockerfile frontend, used as a library, and the client that it talks to:
// every feature of the language is BuildKit's, the solving is ours.
package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	commonexptypes "github.com/moby/buildkit/exporter/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/layer"
	"hako/internal/progress"
)

// An ImageResolver knows what images are, without fetching their layers. It is
// safe for concurrent use.
type ImageResolver interface {
	// Resolve returns the digest of what ref names, be it a manifest or an
	// index, and the config of the image of that platform in it. ref is in
	// full: registry, repository, and tag or digest.
	Resolve(ctx context.Context, ref string, platform ocispecs.Platform) (digest.Digest, []byte, error)
	// ResolveLayout does the same for an image in an OCI layout, which is
	// known by the name store. ref has a digest.
	ResolveLayout(ctx context.Context, store, ref string, platform ocispecs.Platform) (digest.Digest, []byte, error)
}

// A Solver computes the results of definitions; nil is the empty tree.
type Solver interface {
	Evaluate(ctx context.Context, defs []*pb.Definition) ([]*layer.Ref, error)
}

// Options say what is built.
type Options struct {
	// Opts are BuildKit's frontend options: filename, target, platform,
	// "build-arg:NAME", "label:NAME", "context:NAME", no-cache, add-hosts, …
	// The build context is the local source "context", the Dockerfile and
	// its .dockerignore are in the local source "dockerfile".
	Opts map[string]string
	// Platforms are those that RUN works for here; the first is built for
	// if no other is asked for. There must be one.
	Platforms []ocispecs.Platform
	Images    ImageResolver
	// Git tells which commit a git source is; nil if there can be none.
	Git    func(ctx context.Context, op *pb.SourceOp) (*sourceresolver.ResolveGitResponse, error)
	Solver Solver
	// Sink gets what is resolved, notes and warnings; nil discards them.
	Sink progress.Sink
	// SyntaxBuiltin ignores "# syntax=" and BUILDKIT_SYNTAX.
	SyntaxBuiltin bool
}

// A Result is what the Dockerfile describes.
type Result struct {
	Platforms []PlatformResult // in the order asked for
	// Index is set if an image index was asked for, as more than one
	// platform does.
	Index bool
	// Metadata is what else the frontend returned, by BuildKit's keys.
	Metadata map[string][]byte
}

// A PlatformResult is one image, not yet computed.
type PlatformResult struct {
	ID         string // "linux/arm64"
	Platform   ocispecs.Platform
	Definition *pb.Definition // of the file system; empty for an empty tree
	Config     []byte         // image config without layers, as JSON
	BaseConfig []byte         // config of the base image, or nil
	Epoch      *time.Time     // SOURCE_DATE_EPOCH, or nil
}

// Build converts the Dockerfile. It evaluates no more than it has to read: the
// Dockerfile, ignore files and metadata of images.
func Build(ctx context.Context, opt Options) (*Result, error) {
	res, err := run(ctx, opt, opt.Opts)
	if err != nil {
		return nil, err
	}
	return newResult(res)
}

// run runs BuildKit's builder with these options.
func run(ctx context.Context, opt Options, opts map[string]string) (*client.Result, error) {
	if len(opt.Platforms) == 0 {
		return nil, errors.New("convert Dockerfile: no platform is given")
	}
	opts = maps.Clone(opts) // the builder writes to it
	if opts == nil {
		opts = map[string]string{}
	}
	if opt.SyntaxBuiltin {
		opts[keyCmdline] = ""
	}
	res, err := builder.Build(ctx, newBridge(opt, opts))
	if err != nil {
		return nil, sourceError(err)
	}
	return res, nil
}

// newResult reads the maps that the frontend returns.
func newResult(res *client.Result) (*Result, error) {
	var listed exptypes.Platforms
	if err := json.Unmarshal(res.Metadata[exptypes.ExporterPlatformsKey], &listed); err != nil {
		return nil, fmt.Errorf("read the frontend's platforms: %w", err)
	}
	if len(res.Refs) == 0 && len(listed.Platforms) != 1 {
		return nil, fmt.Errorf("the frontend returned one image for %d platforms", len(listed.Platforms))
	}
	out := &Result{Index: len(res.Refs) > 0, Metadata: map[string][]byte{}}
	known := map[string]bool{exptypes.ExporterPlatformsKey: true}
	for _, p := range listed.Platforms {
		suffix, r := "", res.Ref
		if out.Index {
			suffix = "/" + p.ID
			found, ok := res.FindRef(p.ID)
			if !ok {
				return nil, fmt.Errorf("the frontend returned no image for %s", p.ID)
			}
			r = found
		}
		get := func(key string) []byte {
			known[key+suffix] = true
			return res.Metadata[key+suffix]
		}
		pr := PlatformResult{
			ID: p.ID, Platform: p.Platform, Definition: &pb.Definition{},
			Config:     get(exptypes.ExporterImageConfigKey),
			BaseConfig: get(exptypes.ExporterImageBaseConfigKey),
		}
		if r, ok := r.(*reference); ok && r != nil {
			pr.Definition = r.def
		}
		if s := get(commonexptypes.ExporterEpochKey); s != nil {
			sec, err := strconv.ParseInt(string(s), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("read SOURCE_DATE_EPOCH: %w", err)
			}
			t := time.Unix(sec, 0).UTC()
			pr.Epoch = &t
		}
		if err := pr.fromConfig(); err != nil {
			return nil, err
		}
		out.Platforms = append(out.Platforms, pr)
	}
	for k, v := range res.Metadata {
		if !known[k] {
			out.Metadata[k] = v
		}
	}
	return out, nil
}

// fromConfig takes the platform from the config. The frontend names the
// program's own platform when none was asked for, which need not be the one
// that was built for.
func (r *PlatformResult) fromConfig() error {
	var p ocispecs.Platform
	if err := json.Unmarshal(r.Config, &p); err != nil {
		return fmt.Errorf("read the image config for %s: %w", r.ID, err)
	}
	if p.OS == "" || p.Architecture == "" {
		return fmt.Errorf("the image config for %s names no platform", r.ID)
	}
	r.Platform = platforms.Normalize(p)
	r.ID = platforms.FormatAll(r.Platform)
	return nil
}

// A SourceError is a fault found at a place in the Dockerfile.
type SourceError struct {
	File  string
	Lines [][2]int // first and last line of each range, from 1
	Text  []byte   // the whole text of File
	Err   error
}

// Error returns "file:line: cause".
func (e *SourceError) Error() string {
	if len(e.Lines) == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Lines[0][0], e.Err)
}

// Unwrap returns the cause.
func (e *SourceError) Unwrap() error { return e.Err }

// sourceError gives an error of the builder our type, if it has a place.
func sourceError(err error) error {
	var known *SourceError
	if errors.As(err, &known) {
		return err
	}
	for _, s := range errdefs.Sources(err) {
		if s.GetInfo() == nil || len(s.GetRanges()) == 0 {
			continue
		}
		return &SourceError{
			File:  s.GetInfo().GetFilename(),
			Lines: lineRanges(s.GetRanges()),
			Text:  s.GetInfo().GetData(),
			Err:   err,
		}
	}
	return err
}

func lineRanges(ranges []*pb.Range) [][2]int {
	var out [][2]int
	for _, r := range ranges {
		out = append(out, [2]int{int(r.GetStart().GetLine()), int(r.GetEnd().GetLine())})
	}
	return out
}
