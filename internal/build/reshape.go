// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"encoding/json"
	"fmt"
	"path"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/layer"
	"hako/internal/progress"
	"hako/internal/tree"
)

// reshapes tells whether the image has other layers than the build made. They
// are then not pushed early.
func (o *Options) reshapes() bool { return o.SingleSnapshot || len(o.IgnorePaths) > 0 }

// reshape gives the images the layers that were asked for: all new ones in one,
// and none with what is at an ignored path. What the build itself saw, in RUN
// and COPY --from, is what the Dockerfile says.
func (b *build) reshape(ctx context.Context) error {
	if !b.opt.reshapes() {
		return nil
	}
	t := progress.Start(b.sink, digest.FromString("reshape"), "[internal] "+b.opt.reshapeName())
	done := make(map[string]*layer.Ref)
	for _, p := range b.outputs.products {
		for i, r := range p.conv.Platforms {
			n, err := baseLayers(r.BaseConfig, p.refs[i])
			if err != nil {
				t.Done(err)
				return err
			}
			key := fmt.Sprint(n, p.refs[i].ChainID())
			if done[key] == nil {
				if done[key], err = b.reshapeRef(ctx, p.refs[i], n); err != nil {
					t.Done(err)
					return err
				}
			}
			p.refs[i] = done[key]
		}
	}
	t.Done(nil)
	return nil
}

func (o *Options) reshapeName() string {
	var parts []string
	if o.SingleSnapshot {
		parts = append(parts, "make one layer of all new ones")
	}
	if len(o.IgnorePaths) > 0 {
		parts = append(parts, "leave out "+strings.Join(o.IgnorePaths, ", "))
	}
	return strings.Join(parts, ", ")
}

// baseLayers returns how many of ref's layers are those of the base image.
func baseLayers(config []byte, ref *layer.Ref) (int, error) {
	if len(config) == 0 || ref == nil {
		return 0, nil
	}
	var base ocispecs.Image
	if err := json.Unmarshal(config, &base); err != nil {
		return 0, fmt.Errorf("read the base image's config: %w", err)
	}
	for i, id := range base.RootFS.DiffIDs {
		if i >= len(ref.Layers) || digest.Digest(ref.Layers[i].DiffID()) != id {
			return 0, nil // its files were copied, not built upon
		}
	}
	return len(base.RootFS.DiffIDs), nil
}

func (b *build) reshapeRef(ctx context.Context, ref *layer.Ref, n int) (*layer.Ref, error) {
	if ref == nil || len(ref.Layers) == n {
		return ref, nil
	}
	skip := ignored(b.opt.IgnorePaths)
	if b.opt.SingleSnapshot {
		top := ref.Layers[len(ref.Layers)-1]
		if len(ref.Layers) == n+1 {
			return b.withoutIgnored(ctx, ref, n, skip)
		}
		l, err := ref.Merge(ctx, b.store, n, skip, b.writeOptions(top))
		if err != nil {
			return nil, err
		}
		return &layer.Ref{Layers: append(ref.Layers[:n:n], l)}, nil
	}
	return b.withoutIgnored(ctx, ref, n, skip)
}

// withoutIgnored writes those layers anew that have something at an ignored path.
func (b *build) withoutIgnored(ctx context.Context, ref *layer.Ref, n int, skip func(string) bool) (*layer.Ref, error) {
	if skip == nil {
		return ref, nil
	}
	out := &layer.Ref{Layers: ref.Layers[:n:n]}
	for i := n; i < len(ref.Layers); i++ {
		l := ref.Layers[i]
		has, err := l.HasPath(ctx, skip)
		if err != nil {
			return nil, err
		}
		if has {
			upTo := &layer.Ref{Layers: ref.Layers[:i+1]}
			if l, err = upTo.Merge(ctx, b.store, i, skip, b.writeOptions(l)); err != nil {
				return nil, err
			}
		}
		out.Layers = append(out.Layers, l)
	}
	return out, nil
}

// writeOptions are those of a layer that takes the place of old.
func (b *build) writeOptions(old *layer.Layer) layer.WriteOptions {
	opt := b.layerOptions()
	opt.Created, opt.Description = old.Created, old.Description
	return opt
}

// layerOptions are those of all layers.
func (b *build) layerOptions() layer.WriteOptions {
	return layer.WriteOptions{
		Zstd: b.opt.Compression == "zstd", Level: max(b.opt.CompressionLevel, 0), Workers: runtime.GOMAXPROCS(0), Clamp: b.clamp(),
		Annotations: b.layerAnnotations(),
	}
}

// ignored returns what tells paths that a pattern matches, and all below them.
// As in kaniko a pattern matches name by name, with the wildcards of path.Match.
func ignored(patterns []string) func(string) bool {
	var list [][]string
	for _, p := range patterns {
		if p = tree.Clean(p); p != "" {
			list = append(list, strings.Split(p, "/"))
		}
	}
	if list == nil {
		return nil
	}
	return func(p string) bool {
		names := strings.Split(p, "/")
	next:
		for _, pattern := range list {
			if len(names) < len(pattern) {
				continue
			}
			for i, want := range pattern {
				if ok, err := path.Match(want, names[i]); err != nil || !ok {
					continue next
				}
			}
			return true
		}
		return false
	}
}
