// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"hako/internal/export"
	"hako/internal/image"
	"hako/internal/registry"
	"hako/internal/source"
	"hako/internal/tree"
)

// IndexOptions say which images an index is made of.
type IndexOptions struct {
	// Ref is the tag that the index gets.
	Ref string
	// Images are references in registries (with a digest or a tag, or a digest
	// alone for one in Ref's repository), or OCI layouts: "oci:DIR[:TAG]".
	Images      []string
	Annotations []Annotation
	// DigestFile receives the digest, without a newline, once the tag is set.
	DigestFile string
	// DryRun makes the index and pushes nothing.
	DryRun   bool
	Registry Registry
	Env      Env
}

// An Index is an index of images that CreateIndex made.
type Index struct {
	Ref    string // registry/repository:tag
	Digest digest.Digest
	JSON   []byte
}

// CreateIndex makes an index of images that exist already. What of them is not
// in the index's repository is brought there first; the tag comes last, and is
// read again.
func CreateIndex(ctx context.Context, opt IndexOptions) (*Index, error) {
	tag, err := destination(opt.Ref)
	if err != nil {
		return nil, err
	}
	client, err := RegistryClient(opt.Registry, opt.Env)
	if err != nil {
		return nil, err
	}
	var members []export.Member
	for _, img := range opt.Images {
		found, err := findMembers(ctx, client, tag.Context(), img)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", img, err)
		}
		members = append(members, found...)
	}
	joined, err := export.Join(members, imageAnnotations(opt.Annotations))
	if err != nil {
		return nil, fmt.Errorf("make index %s: %w", tag.Name(), err)
	}
	x := &Index{Ref: tag.Name(), Digest: joined.Index.Desc.Digest, JSON: joined.Index.Data}
	if opt.DryRun {
		return x, nil
	}
	if err := pushIndex(ctx, client, joined, tag); err != nil || opt.DigestFile == "" {
		return x, err
	}
	return x, writeResult(opt.DigestFile, export.DigestFile(x.Digest))
}

// pushIndex pushes an index and sees that the tag now has it.
func pushIndex(ctx context.Context, client *registry.Client, j *export.Joined, tag name.Tag) error {
	if err := j.Push(ctx, client, tag); err != nil {
		return err
	}
	m, err := client.FetchManifest(ctx, tag)
	if err != nil {
		return fmt.Errorf("read index %s again: %w", tag.Name(), err)
	}
	if want := j.Index.Desc.Digest; m.Digest != want {
		return fmt.Errorf("read index %s again: it is %s now and was set to %s: something else sets this tag too", tag.Name(), m.Digest, want)
	}
	return nil
}

// destination reads a reference that is to be set.
func destination(ref string) (name.Tag, error) {
	r, err := registry.ParseReference(ref)
	if err != nil {
		return name.Tag{}, err
	}
	tag, ok := r.(name.Tag)
	if !ok {
		return name.Tag{}, fmt.Errorf("push %s: a destination needs a tag, not a digest", ref)
	}
	return tag, nil
}

// findMembers reads the image, or the images of the index, that s names.
func findMembers(ctx context.Context, client *registry.Client, repo name.Repository, s string) ([]export.Member, error) {
	if path, ok := strings.CutPrefix(s, "oci:"); ok {
		return layoutMembers(ctx, path)
	}
	if d, err := digest.Parse(s); err == nil {
		return export.Members(ctx, export.Repository{Client: client, Repo: repo}, d)
	}
	ref, err := registry.ParseReference(s)
	if err != nil {
		return nil, err
	}
	// The digest is what is read from here on, even if the tag moves.
	m, err := client.FetchManifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	return export.Members(ctx, export.Repository{Client: client, Repo: ref.Context()}, m.Digest)
}

// layoutMembers reads the images in an OCI layout, DIR or DIR:TAG.
func layoutMembers(ctx context.Context, path string) ([]export.Member, error) {
	tag := ""
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if i := strings.LastIndexByte(path, ':'); i > strings.LastIndexByte(path, '/') {
			path, tag = path[:i], path[i+1:]
		}
	}
	dir, err := tree.OpenDir(path)
	if err != nil {
		return nil, err
	}
	l, err := source.OpenLayout(dir)
	if err != nil {
		return nil, err
	}
	found, err := l.Find(tag)
	if err != nil {
		return nil, err
	}
	var members []export.Member
	for _, d := range found {
		m, err := export.Members(ctx, l, d)
		if err != nil {
			return nil, err
		}
		members = append(members, m...)
	}
	return members, nil
}

func imageAnnotations(list []Annotation) []image.Annotation {
	var out []image.Annotation
	for _, a := range list {
		out = append(out, image.Annotation{Level: a.Level, Platform: a.Platform, Key: a.Key, Value: a.Value})
	}
	return out
}
