// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package export puts finished images where they are to go: registries, OCI
// layouts, docker archives, directories and tars, and writes the files that
// tell what came of a build.
//
// [Finish] turns the results of a build into a [Bundle], all of an image's
// documents and layers. Each kind of destination is one method of it, in a file
// of its own. None opens a path: they are given writers, files and directories
// that were opened before the build could rearrange the file system.
package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/layer"
)

// An Image is the result of a build for one platform.
type Image struct {
	Platform ocispecs.Platform
	Ref      *layer.Ref // nil is an image without layers
	Config   []byte     // as the frontend made it
	Base     []byte     // the base image's config, or nil
	// Epoch limits the times in the config; nil leaves them alone. For
	// --reproducible without SOURCE_DATE_EPOCH it is the Unix epoch.
	Epoch *time.Time
	// Single says that all layers on those of the base image were made one.
	Single bool
}

// Options say what an image's documents are like.
type Options struct {
	Docker      bool // Docker's media types instead of OCI's
	Index       bool // an index even for a single platform
	Annotations []image.Annotation
}

// A Bundle is an image ready to go anywhere. It is safe for concurrent use.
type Bundle struct {
	Images []Manifest      // in the order of their platforms as asked
	Index  *image.Document // nil for the image of one platform

	options Options
}

// A Manifest is the finished image of one platform.
type Manifest struct {
	Platform ocispecs.Platform
	Document image.Document // the descriptor has platform and annotations
	Config   image.Document
	Layers   []ocispecs.Descriptor // as in the manifest

	ref *layer.Ref
}

// Finish computes configs, manifests and, for several platforms, the index.
func Finish(images []Image, opt Options) (*Bundle, error) {
	if len(images) == 0 {
		return nil, errors.New("finish image: there is no result to export")
	}
	b := &Bundle{options: opt}
	var (
		ps    []ocispecs.Platform
		descs []ocispecs.Descriptor
	)
	for _, img := range images {
		m, err := finishOne(img, opt)
		if err != nil {
			return nil, fmt.Errorf("finish image for %s: %w", platforms.FormatAll(img.Platform), err)
		}
		b.Images = append(b.Images, m)
		ps = append(ps, m.Platform)
		descs = append(descs, m.Document.Desc)
	}
	isIndex := opt.Index || len(images) > 1
	if err := image.CheckAnnotations(opt.Annotations, ps, isIndex, opt.Docker); err != nil {
		return nil, err
	}
	if !isIndex {
		return b, nil
	}
	x, err := image.NewIndex(descs, image.AnnotationsFor(opt.Annotations, image.OnIndex, nil), opt.Docker)
	if err != nil {
		return nil, err
	}
	x.Desc.Annotations = image.AnnotationsFor(opt.Annotations, image.OnIndexDescriptor, nil)
	b.Index = &x
	return b, nil
}

func finishOne(img Image, opt Options) (Manifest, error) {
	m := Manifest{Platform: platforms.Normalize(img.Platform), ref: img.Ref}
	var (
		infos []image.LayerInfo
		descs []ocispecs.Descriptor
	)
	if img.Ref != nil {
		if img.Ref.FS != nil {
			return m, errors.New("the result is a directory and not an image")
		}
		for _, l := range img.Ref.Layers {
			info := image.LayerInfo{DiffID: l.DiffID(), Description: l.Description}
			if !l.Created.IsZero() {
				t := l.Created.UTC()
				info.Created = &t
			}
			infos = append(infos, info)
			descs = append(descs, l.Descriptor())
		}
	}
	config, err := image.Finish(img.Config, infos, image.FinishOptions{Base: img.Base, Epoch: img.Epoch, Single: img.Single})
	if err != nil {
		return m, err
	}
	m.Config = image.NewConfig(config, opt.Docker)
	for _, d := range descs {
		ld, err := image.LayerDescriptor(d, opt.Docker)
		if err != nil {
			return m, err
		}
		m.Layers = append(m.Layers, ld)
	}
	annotations := image.AnnotationsFor(opt.Annotations, image.OnManifest, &m.Platform)
	if m.Document, err = image.NewManifest(m.Config, descs, annotations, opt.Docker); err != nil {
		return m, err
	}
	m.Document.Desc.Annotations = image.AnnotationsFor(opt.Annotations, image.OnManifestDescriptor, &m.Platform)
	p := m.Platform
	m.Document.Desc.Platform = &p
	return m, nil
}

// Root returns the document that an image's name stands for: the index, or the
// only manifest.
func (b *Bundle) Root() image.Document {
	if b.Index != nil {
		return *b.Index
	}
	return b.Images[0].Document
}

// A blob is a part of a bundle as it is stored: by digest.
type blob struct {
	desc   ocispecs.Descriptor
	origin string // where it can be mounted from, or ""
	// open opens the bytes from offset on; from the start they are verified.
	open func(ctx context.Context, offset int64) (io.ReadCloser, error)
}

func layerBlob(l *layer.Layer) blob {
	return blob{desc: l.Descriptor(), origin: l.Origin, open: func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		if offset == 0 {
			return l.Open(ctx)
		}
		return l.OpenAt(ctx, offset)
	}}
}

func documentBlob(d image.Document) blob {
	return blob{desc: d.Desc, open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
		if offset < 0 || offset > int64(len(d.Data)) {
			return nil, fmt.Errorf("open %s: offset %d is outside", d.Desc.Digest, offset)
		}
		return io.NopCloser(bytes.NewReader(d.Data[offset:])), nil
	}}
}

// blobs returns layers and configs of all platforms, once each.
func (b *Bundle) blobs() []blob {
	seen := map[string]bool{}
	var list []blob
	add := func(x blob) {
		if d := x.desc.Digest.String(); !seen[d] {
			seen[d] = true
			list = append(list, x)
		}
	}
	for _, m := range b.Images {
		if m.ref != nil {
			for _, l := range m.ref.Layers {
				add(layerBlob(l))
			}
		}
		add(documentBlob(m.Config))
	}
	return list
}

// all returns the blobs and the manifests and index too.
func (b *Bundle) all() []blob {
	list := b.blobs()
	seen := map[string]bool{}
	for _, m := range b.Images {
		if d := m.Document.Desc.Digest.String(); !seen[d] {
			seen[d] = true
			list = append(list, documentBlob(m.Document))
		}
	}
	if b.Index != nil {
		list = append(list, documentBlob(*b.Index))
	}
	return list
}

// copyTo writes the blob's bytes to w. Other bytes than the descriptor's are an
// error; that they are the right ones is what open verifies.
func (x blob) copyTo(ctx context.Context, w io.Writer) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("copy blob %s: %w", x.desc.Digest, err)
		}
	}()
	r, err := x.open(ctx, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(w, &contextReader{ctx, r})
	if err == nil && n != x.desc.Size {
		err = fmt.Errorf("it has %d bytes and not %d", n, x.desc.Size)
	}
	return err
}
