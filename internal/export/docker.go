// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/distribution/reference"
)

// WriteDocker writes the image to w as an archive for "docker load", which is
// also an OCI layout, as BuildKit's docker exporter writes it. The format has no
// place for several platforms.
func (b *Bundle) WriteDocker(ctx context.Context, w io.Writer, opt LayoutOptions) error {
	if err := b.writeDocker(ctx, w, opt); err != nil {
		return fmt.Errorf("write docker archive: %w", err)
	}
	return nil
}

func (b *Bundle) writeDocker(ctx context.Context, w io.Writer, opt LayoutOptions) error {
	if b.Index != nil {
		return errors.New("it cannot hold an image of several platforms: use an OCI layout (--output type=oci)")
	}
	index, err := b.layoutIndex(opt)
	if err != nil {
		return err
	}
	names, err := normalNames(opt.Names)
	if err != nil {
		return err
	}
	img := b.Images[0]
	m := dockerManifest{Config: blobPath(img.Config.Desc)}
	for _, n := range names {
		m.RepoTags = append(m.RepoTags, reference.FamiliarString(n))
	}
	for _, l := range img.Layers {
		m.Layers = append(m.Layers, blobPath(l))
	}
	return b.writeArchive(ctx, w, index, []dockerManifest{m})
}
