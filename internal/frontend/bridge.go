// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/progress"
)

// sessionID is the same for all builds, so that graphs are the same: without a
// session the frontend puts random numbers into them.
const sessionID = "hako"

// bridge is the client that BuildKit's builder talks to.
type bridge struct {
	opt   Options
	build client.BuildOpts
}

var _ client.Client = (*bridge)(nil)

func newBridge(opt Options, opts map[string]string) *bridge {
	if opt.Sink == nil {
		opt.Sink = progress.Discard{}
	}
	return &bridge{opt: opt, build: client.BuildOpts{
		Opts:      opts,
		SessionID: sessionID,
		Workers:   []client.WorkerInfo{{ID: "hako", Platforms: opt.Platforms}},
		Product:   "hako",
		LLBCaps:   capSet(&pb.Caps, llbCaps()),
		Caps:      capSet(&gwpb.Caps, gatewayCaps()),
	}}
}

// BuildOpts implements [client.Client].
func (b *bridge) BuildOpts() client.BuildOpts { return b.build }

// Solve implements [client.Client]. The result is computed when it is read.
func (b *bridge) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	if len(req.FrontendInputs) > 0 {
		return nil, errors.New("solve: frontend inputs are not supported")
	}
	if len(req.SourcePolicies) > 0 {
		return nil, errors.New("solve: source policies are not supported")
	}
	switch req.Frontend {
	case "":
	case "gateway.v0":
		return b.forward(ctx, req)
	default:
		return nil, fmt.Errorf("solve: unknown frontend %q", req.Frontend)
	}
	def := req.Definition
	if def == nil {
		def = &pb.Definition{}
	}
	if err := checkCaps(def); err != nil {
		return nil, err
	}
	ref := &reference{def: def, solver: b.opt.Solver}
	if req.Evaluate {
		if err := ref.Evaluate(ctx); err != nil {
			return nil, err
		}
	}
	res := client.NewResult()
	res.SetRef(ref)
	return res, nil
}

// ResolveImageConfig implements [client.Client].
func (b *bridge) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	return sourceresolver.NewImageMetaResolver(b).ResolveImageConfig(ctx, ref, opt)
}

// ResolveSourceMetadata implements [sourceresolver.MetaResolver].
func (b *bridge) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	scheme, ref, _ := strings.Cut(op.GetIdentifier(), "://")
	var (
		resolve func(ocispecs.Platform) (digest.Digest, []byte, error)
		want    *ocispecs.Platform
	)
	switch scheme {
	case "docker-image":
		if o := opt.ImageOpt; o != nil {
			if o.AttestationChain || len(o.ResolveAttestations) > 0 {
				return nil, fmt.Errorf("resolve %s: attestations are not supported", ref)
			}
			want = o.Platform
		}
		resolve = func(p ocispecs.Platform) (digest.Digest, []byte, error) { return b.opt.Images.Resolve(ctx, ref, p) }
	case "git":
		return b.resolveGit(ctx, op, opt.LogName)
	case "oci-layout":
		store := op.GetAttrs()[pb.AttrOCILayoutStoreID]
		if o := opt.OCILayoutOpt; o != nil {
			want = o.Platform
		}
		resolve = func(p ocispecs.Platform) (digest.Digest, []byte, error) {
			return b.opt.Images.ResolveLayout(ctx, store, ref, p)
		}
	case "http", "https":
		return b.httpMetadata(ctx, op)
	case "local":
		return &sourceresolver.MetaResponse{Op: op}, nil // a directory says nothing of itself
	default:
		return nil, fmt.Errorf("resolve %s: metadata of %s sources is not supported; SOURCE_DATE_EPOCH has to be a number", op.GetIdentifier(), scheme)
	}
	p := b.opt.Platforms[0]
	if want != nil {
		p = *want
	}
	name := opt.LogName
	if name == "" {
		name = "resolve image config for " + op.GetIdentifier()
	}
	task := progress.Start(b.opt.Sink, digest.FromString(name+"\x00"+op.GetIdentifier()+"\x00"+platforms.FormatAll(p)), name)
	dgst, config, err := resolve(p)
	task.Done(err)
	if err != nil {
		return nil, err
	}
	return &sourceresolver.MetaResponse{Op: op, Image: &sourceresolver.ResolveImageResponse{Digest: dgst, Config: config}}, nil
}

// resolveGit tells which commit a git source is.
func (b *bridge) resolveGit(ctx context.Context, op *pb.SourceOp, name string) (*sourceresolver.MetaResponse, error) {
	if b.opt.Git == nil {
		return nil, fmt.Errorf("resolve %s: git sources are not supported", op.GetIdentifier())
	}
	if name == "" {
		name = "resolve metadata of " + op.GetIdentifier()
	}
	task := progress.Start(b.opt.Sink, digest.FromString(name+"\x00"+op.GetIdentifier()), name)
	g, err := b.opt.Git(ctx, op)
	task.Done(err)
	if err != nil {
		return nil, err
	}
	return &sourceresolver.MetaResponse{Op: op, Git: g}, nil
}

// httpMetadata fetches a URL and says when it was last modified, if its server
// told: the file's time is then not the beginning of time.
func (b *bridge) httpMetadata(ctx context.Context, op *pb.SourceOp) (*sourceresolver.MetaResponse, error) {
	def, err := llb.NewState(llb.NewSource(op.GetIdentifier(), maps.Clone(op.GetAttrs()), llb.Constraints{}).Output()).Marshal(ctx)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", op.GetIdentifier(), err)
	}
	res, err := b.Solve(ctx, client.SolveRequest{Definition: def.ToPB()})
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", op.GetIdentifier(), err)
	}
	ref, err := res.SingleRef()
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", op.GetIdentifier(), err)
	}
	files, err := ref.ReadDir(ctx, client.ReadDirRequest{Path: "/"})
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", op.GetIdentifier(), err)
	}
	md := &sourceresolver.MetaResponse{Op: op, HTTP: &sourceresolver.ResolveHTTPResponse{}}
	for _, f := range files {
		if t := time.Unix(0, f.GetModTime()).UTC(); t.Unix() != 0 {
			md.HTTP.LastModified = &t
		}
	}
	return md, nil
}

// Inputs implements [client.Client]. There are none: the capability for them
// is not advertised, so only a named context "input:…" gets here.
func (b *bridge) Inputs(context.Context) (map[string]llb.State, error) {
	return nil, errors.New("frontend inputs (input:NAME) are not supported; use a directory, an image or an OCI layout")
}

// NewContainer implements [client.Client].
func (b *bridge) NewContainer(context.Context, client.NewContainerRequest) (client.Container, error) {
	return nil, errors.New("a frontend asked for a container, which is not supported")
}

// Warn implements [client.Client].
func (b *bridge) Warn(_ context.Context, dgst digest.Digest, msg string, opts client.WarnOpts) error {
	w := progress.Warning{
		Vertex: dgst,
		Level:  max(1, opts.Level),
		Short:  msg,
		URL:    opts.URL,
		File:   opts.SourceInfo.GetFilename(),
		Source: opts.SourceInfo.GetData(),
		Lines:  lineRanges(opts.Range),
	}
	for _, d := range opts.Detail {
		w.Detail = append(w.Detail, string(d))
	}
	b.opt.Sink.Send(w)
	return nil
}
