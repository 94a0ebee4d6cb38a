// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
)

// containerdName is where containerd and BuildKit put an image's full name.
const containerdName = "io.containerd.image.name"

// LayoutOptions say how an OCI layout names the image.
type LayoutOptions struct {
	// Names are references; with none, the image has no name, as kaniko has it.
	Names []string
	// Created, if set, is put into index.json as the time of creation, which is
	// what BuildKit does.
	Created time.Time
	// Keep leaves the other images of an existing layout directory in its
	// index. Otherwise index.json tells of this image alone.
	Keep bool
}

// WriteLayout writes the image into the directory dir as an OCI layout. An
// existing layout stays whole if that fails: files appear complete or not at
// all, and index.json is replaced last.
func (b *Bundle) WriteLayout(ctx context.Context, dir *os.Root, opt LayoutOptions) error {
	if err := b.writeLayout(ctx, dir, opt); err != nil {
		return fmt.Errorf("write OCI layout: %w", err)
	}
	return nil
}

func (b *Bundle) writeLayout(ctx context.Context, dir *os.Root, opt LayoutOptions) error {
	index, err := b.layoutIndex(opt)
	if err != nil {
		return err
	}
	if opt.Keep {
		if index.Manifests, err = keptManifests(dir, index.Manifests); err != nil {
			return err
		}
	}
	for _, x := range b.all() {
		if err := writeBlob(ctx, dir, x); err != nil {
			return err
		}
	}
	if err := replaceFile(dir, ocispecs.ImageLayoutFile, layoutFile()); err != nil {
		return err
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return err
	}
	return replaceFile(dir, ocispecs.ImageIndexFile, raw)
}

// WriteLayoutTar writes the image to w as a tar of an OCI layout, with the bytes
// that BuildKit's oci exporter writes for the same image.
func (b *Bundle) WriteLayoutTar(ctx context.Context, w io.Writer, opt LayoutOptions) error {
	index, err := b.layoutIndex(opt)
	if err == nil {
		err = b.writeArchive(ctx, w, index, nil)
	}
	if err != nil {
		return fmt.Errorf("write OCI archive: %w", err)
	}
	return nil
}

func layoutFile() []byte {
	return []byte(`{"imageLayoutVersion":"` + ocispecs.ImageLayoutVersion + `"}`)
}

// layoutIndex returns the index.json of a layout: the image once per name.
func (b *Bundle) layoutIndex(opt LayoutOptions) (ocispecs.Index, error) {
	x := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex}
	desc := b.Root().Desc
	desc.Annotations = maps.Clone(desc.Annotations)
	set := func(d *ocispecs.Descriptor, key, value string) {
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[key] = value
	}
	if _, ok := desc.Annotations[ocispecs.AnnotationCreated]; !ok && !opt.Created.IsZero() {
		set(&desc, ocispecs.AnnotationCreated, opt.Created.UTC().Format(time.RFC3339))
	}
	names, err := normalNames(opt.Names)
	if err != nil {
		return x, err
	}
	for _, n := range names {
		d := desc
		d.Annotations = maps.Clone(desc.Annotations)
		set(&d, containerdName, n.String())
		set(&d, ocispecs.AnnotationRefName, refName(n))
		x.Manifests = append(x.Manifests, d)
	}
	if len(names) == 0 {
		x.Manifests = append(x.Manifests, desc)
	}
	return x, nil
}

// normalNames reads references as docker does, with registry and tag.
func normalNames(names []string) ([]reference.Named, error) {
	var list []reference.Named
	for _, n := range names {
		r, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			return nil, fmt.Errorf("name %q: %w", n, err)
		}
		r = reference.TagNameOnly(r)
		same := func(o reference.Named) bool { return o.String() == r.String() }
		if !slices.ContainsFunc(list, same) {
			list = append(list, r)
		}
	}
	return list, nil
}

// refName returns what a layout's reference annotation holds for a name: the tag
// alone (OCI image-spec annotations.md), or the whole name without one.
func refName(n reference.Named) string {
	if t, ok := n.(reference.Tagged); ok {
		return t.Tag()
	}
	return n.String()
}

// keptManifests adds to manifests those of the directory's index that are not
// of the same name.
func keptManifests(dir *os.Root, manifests []ocispecs.Descriptor) ([]ocispecs.Descriptor, error) {
	raw, err := dir.ReadFile(ocispecs.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return manifests, nil
	}
	if err != nil {
		return nil, err
	}
	var old ocispecs.Index
	if err := json.Unmarshal(raw, &old); err != nil {
		return nil, fmt.Errorf("read %s: %w", ocispecs.ImageIndexFile, err)
	}
	replaced := func(o ocispecs.Descriptor) bool {
		return slices.ContainsFunc(manifests, func(m ocispecs.Descriptor) bool {
			return sameName(o, m) && (m.Annotations[containerdName] != "" || o.Digest == m.Digest)
		})
	}
	return append(slices.DeleteFunc(old.Manifests, replaced), manifests...), nil
}

func sameName(a, b ocispecs.Descriptor) bool {
	if n := a.Annotations[containerdName]; n != "" {
		return n == b.Annotations[containerdName]
	}
	return a.Annotations[ocispecs.AnnotationRefName] == b.Annotations[ocispecs.AnnotationRefName]
}

func blobPath(d ocispecs.Descriptor) string {
	return path.Join(ocispecs.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded())
}

// writeBlob puts a blob into a layout, unless it is there.
func writeBlob(ctx context.Context, dir *os.Root, x blob) error {
	p := blobPath(x.desc)
	if isIntact(ctx, dir, p, x.desc) {
		return nil
	}
	if err := dir.MkdirAll(path.Dir(p), 0o755); err != nil {
		return err
	}
	return replaceWith(dir, p, func(f *os.File) error { return x.copyTo(ctx, f) })
}

// isIntact tells whether a file has the bytes that its name promises. A layout
// that was there may have been cut off.
func isIntact(ctx context.Context, dir *os.Root, p string, desc ocispecs.Descriptor) bool {
	f, err := dir.Open(p)
	if err != nil {
		return false
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() || fi.Size() != desc.Size {
		return false
	}
	v := desc.Digest.Verifier()
	if _, err := io.Copy(v, &contextReader{ctx, f}); err != nil {
		return false
	}
	return v.Verified()
}

func replaceFile(dir *os.Root, p string, data []byte) error {
	return replaceWith(dir, p, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// replaceWith makes the file p of what write writes, at once or not at all.
func replaceWith(dir *os.Root, p string, write func(*os.File) error) error {
	tmp := path.Join(path.Dir(p), ".hako-"+path.Base(p))
	_ = dir.Remove(tmp) // of an earlier run that was killed
	f, err := dir.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	err = write(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = dir.Rename(tmp, p)
	}
	if err != nil {
		_ = dir.Remove(tmp)
	}
	return err
}

// A dockerManifest is an element of a docker archive's manifest.json.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// writeArchive writes a layout as a tar, with a manifest.json if docker is not
// nil. Names, modes, order and times are those of containerd's exporter.
func (b *Bundle) writeArchive(ctx context.Context, w io.Writer, index ocispecs.Index, docker []dockerManifest) error {
	type record struct {
		header *tar.Header
		blob   blob
	}
	var records []record
	add := func(name string, mode int64, x blob) {
		records = append(records, record{&tar.Header{Name: name, Mode: mode, Size: x.desc.Size, Typeflag: tar.TypeReg}, x})
	}
	file := func(name string, mode int64, v any) error {
		raw, ok := v.([]byte)
		if !ok {
			var err error
			if raw, err = json.Marshal(v); err != nil {
				return err
			}
		}
		add(name, mode, documentBlob(image.NewConfig(raw, false)))
		return nil
	}
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		records = append(records, record{header: &tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir}})
	}
	for _, x := range b.all() {
		add(blobPath(x.desc), 0o444, x)
	}
	if err := errors.Join(file(ocispecs.ImageLayoutFile, 0o444, layoutFile()), file(ocispecs.ImageIndexFile, 0o644, index)); err != nil {
		return err
	}
	if docker != nil {
		if err := file("manifest.json", 0o644, docker); err != nil {
			return err
		}
	}
	slices.SortFunc(records, func(a, b record) int { return strings.Compare(a.header.Name, b.header.Name) })
	tw := tar.NewWriter(w)
	for _, r := range records {
		if err := tw.WriteHeader(r.header); err != nil {
			return err
		}
		if r.header.Typeflag == tar.TypeReg {
			if err := r.blob.copyTo(ctx, tw); err != nil {
				return err
			}
		}
	}
	return tw.Close()
}
