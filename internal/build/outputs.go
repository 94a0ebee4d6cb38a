// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/frontend"
	"hako/internal/image"
	"hako/internal/layer"
	"hako/internal/progress"
	"hako/internal/registry"
)

type outputs struct{ opt *Options }

func openOutputs(opt *Options, client *registry.Client, sink progress.Sink) (*outputs, error) {
	return &outputs{opt: opt}, nil
}
func (o *outputs) none() bool                           { return false }
func (o *outputs) made(d digest.Digest, l *layer.Layer) {}
func (o *outputs) chain(in map[digest.Digest]bool)      {}
func (o *outputs) close() error                         { return nil }
func (o *outputs) export(ctx context.Context, b *build, conv *frontend.Result, refs []*layer.Ref) (*Result, error) {
	dir := o.opt.OCILayoutPath
	if dir == "" {
		return &Result{}, nil
	}
	os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755)
	put := func(d digest.Digest, data []byte) {
		os.WriteFile(filepath.Join(dir, "blobs/sha256", d.Encoded()), data, 0o644)
	}
	var infos []image.LayerInfo
	var descs []ocispecs.Descriptor
	if refs[0] != nil {
		for _, l := range refs[0].Layers {
			infos = append(infos, image.LayerInfo{DiffID: l.DiffID()})
			d, err := image.LayerDescriptor(l.Descriptor(), false)
			if err != nil {
				return nil, err
			}
			descs = append(descs, d)
			rc, err := l.Open(ctx)
			if err != nil {
				return nil, err
			}
			data, err := io.ReadAll(rc)
			if err != nil {
				return nil, err
			}
			put(d.Digest, data)
		}
	}
	cfg, err := image.Finish(conv.Platforms[0].Config, infos, image.FinishOptions{})
	if err != nil {
		return nil, err
	}
	cd := image.NewConfig(cfg, false)
	put(cd.Desc.Digest, cd.Data)
	m, err := image.NewManifest(cd, descs, nil, false)
	if err != nil {
		return nil, err
	}
	put(m.Desc.Digest, m.Data)
	ix, err := image.NewIndex([]ocispecs.Descriptor{m.Desc}, nil, false)
	if err != nil {
		return nil, err
	}
	os.WriteFile(filepath.Join(dir, "index.json"), ix.Data, 0o644)
	os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
	fmt.Fprintln(os.Stderr, m.Desc.Digest)
	return &Result{Digest: m.Desc.Digest}, nil
}
