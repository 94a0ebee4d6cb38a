// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/layer"
	"hako/internal/source"
)

// schemes of a SourceOp.
const (
	schemeImage  = "docker-image"
	schemeLocal  = "local"
	schemeLayout = "oci-layout"
	schemeHTTP   = "http"
	schemeHTTPS  = "https"
)

// validateSource refuses sources and attributes that are not known: leaving one
// out would build another image.
func validateSource(op *pb.SourceOp) error {
	scheme, _, _ := strings.Cut(op.Identifier, "://")
	known := map[string][]string{
		schemeImage:  {pb.AttrImageResolveMode, pb.AttrImageRecordType},
		schemeLocal:  {pb.AttrLocalSessionID, pb.AttrLocalUniqueID, pb.AttrIncludePatterns, pb.AttrFollowPaths, pb.AttrExcludePatterns, pb.AttrSharedKeyHint, pb.AttrLocalDiffer},
		schemeLayout: {pb.AttrOCILayoutSessionID, pb.AttrOCILayoutStoreID},
		schemeHTTP:   {pb.AttrHTTPChecksum, pb.AttrHTTPFilename, pb.AttrHTTPPerm, pb.AttrHTTPUID, pb.AttrHTTPGID},
	}
	known[schemeHTTPS] = known[schemeHTTP]
	known[schemeGit] = gitAttrs()
	attrs, ok := known[scheme]
	if !ok {
		return fmt.Errorf("source %q: %s sources are not supported yet", op.Identifier, scheme)
	}
	for _, k := range slices.Sorted(maps.Keys(op.Attrs)) {
		if !slices.Contains(attrs, k) {
			return fmt.Errorf("source %q: attribute %s is not supported", op.Identifier, k)
		}
	}
	return nil
}

func (in *Interpreter) source(ctx context.Context, op *pb.SourceOp, platform *pb.Platform, dgst digest.Digest) ([]*layer.Ref, error) {
	scheme, rest, _ := strings.Cut(op.Identifier, "://")
	var ref *layer.Ref
	var err error
	switch scheme {
	case schemeImage, schemeLayout:
		ref, err = in.image(ctx, scheme, rest, op.Attrs, platform)
		if err == nil && in.execBase(dgst) {
			err = in.prefetch(ctx, ref)
		}
	case schemeLocal:
		ref, err = in.local(rest, op.Attrs)
	case schemeHTTP, schemeHTTPS:
		ref, err = in.http(ctx, op)
	case schemeGit:
		ref, err = in.git(ctx, op, dgst)
	default:
		err = fmt.Errorf("%s sources are not supported", scheme)
	}
	if err != nil {
		return nil, err
	}
	return []*layer.Ref{ref}, nil
}

func (in *Interpreter) prefetch(ctx context.Context, ref *layer.Ref) error {
	sb, err := in.sandbox(ctx)
	if err != nil {
		return err
	}
	sb.Prefetch(ref)
	return nil
}

func (in *Interpreter) image(ctx context.Context, scheme, ref string, attrs map[string]string, platform *pb.Platform) (*layer.Ref, error) {
	var p *ocispecs.Platform
	if platform != nil {
		spec := platform.Spec()
		p = &spec
	}
	var layers []*layer.Layer
	var err error
	if scheme == schemeLayout {
		layers, err = in.opt.Images.LayoutLayers(ctx, attrs[pb.AttrOCILayoutStoreID], ref, p)
	} else {
		layers, err = in.opt.Images.Layers(ctx, ref, p)
	}
	if err != nil {
		return nil, err
	}
	return &layer.Ref{Layers: layers}, nil
}

func (in *Interpreter) local(name string, attrs map[string]string) (*layer.Ref, error) {
	dir, ok := in.opt.Locals[name]
	if !ok {
		return nil, fmt.Errorf("there is no build context %q", name)
	}
	opt := source.LocalOptions{RootTime: in.opt.Clock}
	for key, list := range map[string]*[]string{
		pb.AttrFollowPaths: &opt.FollowPaths, pb.AttrIncludePatterns: &opt.IncludePatterns, pb.AttrExcludePatterns: &opt.ExcludePatterns,
	} {
		if v := attrs[key]; v != "" {
			if err := json.Unmarshal([]byte(v), list); err != nil {
				return nil, fmt.Errorf("context %q: %s: %w", name, key, err)
			}
		}
	}
	view, err := source.Local(dir, opt)
	if err != nil {
		return nil, fmt.Errorf("context %q: %w", name, err)
	}
	fsys := newSummed(view)
	in.remember(name, fsys, view, opt)
	return &layer.Ref{FS: fsys}, nil
}

func (in *Interpreter) http(ctx context.Context, op *pb.SourceOp) (*layer.Ref, error) {
	opt := source.HTTPOptions{Filename: op.Attrs[pb.AttrHTTPFilename], Checksum: digest.Digest(op.Attrs[pb.AttrHTTPChecksum])}
	for key, to := range map[string]func(n uint64){
		pb.AttrHTTPPerm: func(n uint64) { opt.Mode = treeMode(n) },
		pb.AttrHTTPUID:  func(n uint64) { opt.UID = uint32(n) },
		pb.AttrHTTPGID:  func(n uint64) { opt.GID = uint32(n) },
	} {
		v := op.Attrs[key]
		if v == "" {
			continue
		}
		n, err := strconv.ParseUint(v, 0, 32)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		to(n)
	}
	if err := in.authorize(op.Identifier, &opt); err != nil {
		return nil, err
	}
	f, err := source.FetchHTTP(ctx, in.opt.HTTP, in.opt.Store, op.Identifier, opt)
	if err != nil {
		return nil, err
	}
	return &layer.Ref{FS: f.FS}, nil
}

// authorize adds the credentials that a secret holds for the host:
// HTTP_AUTH_HEADER_<host> is a whole header value, HTTP_AUTH_TOKEN_<host> a
// bearer token (BuildKit source/http).
func (in *Interpreter) authorize(rawURL string, opt *source.HTTPOptions) error {
	_, rest, _ := strings.Cut(rawURL, "://")
	host, _, _ := strings.Cut(rest, "/")
	for _, s := range []struct{ id, prefix string }{{"HTTP_AUTH_HEADER_" + host, ""}, {"HTTP_AUTH_TOKEN_" + host, "Bearer "}} {
		v, ok, err := in.opt.Secret(s.id)
		if err != nil {
			return err
		}
		if ok {
			opt.Header = http.Header{"Authorization": {s.prefix + string(v)}}
			return nil
		}
	}
	return nil
}
