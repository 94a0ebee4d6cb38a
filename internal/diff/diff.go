// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package diff compares two images field by field: their configs, histories and
// manifests, the file trees that they come to, and what each layer does.
//
// It is made to be believed. Layers are read and verified against their digests
// and diffIDs, one image knows nothing of what the other's blobs were found to
// hold, and what cannot be read is an error and never a difference left out.
// Both trees are walked side by side, so that memory is needed for one directory
// per level and for the names of hard links.
//
// Digests and sizes of compressed blobs are not compared unless asked for: two
// gzip writers give different bytes for the same layer. Neither is an entry for
// a directory that the layers below already have just so, which writers of
// layers may put in or leave out.
package diff

import (
	"context"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/tree"
)

// None stands for a value that one of the images does not have.
const None = "(none)"

// A Difference is one field in which two images differ.
type Difference struct {
	Platform string `json:"platform,omitempty"` // if one of the images has several
	// Kind is what differs: "image", "index", "manifest", "config", "history N",
	// "tree" or "layer N", counted from 1.
	Kind  string `json:"kind"`
	Path  string `json:"path"`  // of a file, with a leading slash; else ""
	Field string `json:"field"` // its name, in configs with dots
	A     string `json:"a"`
	B     string `json:"b"`
	// Dir: the path is a directory in both.
	Dir bool `json:"dir,omitempty"`
}

// String returns the difference as a line of text.
func (d Difference) String() string {
	var b strings.Builder
	for _, s := range []string{d.Platform, d.Kind, d.Path} {
		if s != "" {
			b.WriteString(s + " ")
		}
	}
	fmt.Fprintf(&b, "%s: %s | %s", d.Field, d.A, d.B)
	return b.String()
}

// A Report lists differences: by platform, then image, config, history, tree and
// layers, each sorted. As JSON it is an array, empty if the images are equal.
type Report []Difference

// WriteText writes a line per difference.
func (r Report) WriteText(w io.Writer) error {
	for _, d := range r {
		// Names in images may hold anything, and end in a terminal.
		line := strings.Map(func(c rune) rune {
			if !strconv.IsPrint(c) {
				return '?'
			}
			return c
		}, d.String())
		if _, err := io.WriteString(w, line+"\n"); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	return nil
}

// Options say what to leave out. The zero value compares all but digests.
type Options struct {
	Platform *ocispecs.Platform // only this platform; nil means all

	IgnoreCreated bool     // times in config and history
	IgnoreHistory bool     // the history as a whole
	IgnoreLayers  bool     // what each layer does, and how many there are
	IgnoreMtimes  bool     // modification times of files
	MtimesOf      []string // ignore those of these paths: globs, and all below
	Paths         []string // ignore these paths: globs, and all below

	Digests bool // compare digests and sizes of blobs too
}

// ParseIgnore reads what users say is to be ignored: created, history, layers,
// mtime, digest (which is so anyway), mtime:GLOB or path:GLOB.
func ParseIgnore(names []string) (Options, error) {
	var opt Options
	for _, n := range names {
		kind, glob, hasGlob := strings.Cut(n, ":")
		glob = tree.Clean(glob)
		if _, err := path.Match(glob, ""); err != nil {
			return opt, fmt.Errorf("ignore %q: %w", n, err)
		}
		switch {
		case n == "created":
			opt.IgnoreCreated = true
		case n == "history":
			opt.IgnoreHistory = true
		case n == "layers":
			opt.IgnoreLayers = true
		case n == "mtime":
			opt.IgnoreMtimes = true
		case n == "digest":
		case kind == "mtime" && hasGlob && glob != "":
			opt.MtimesOf = append(opt.MtimesOf, glob)
		case kind == "path" && hasGlob && glob != "":
			opt.Paths = append(opt.Paths, glob)
		default:
			return opt, fmt.Errorf("ignore %q: there are created, history, layers, mtime, digest, mtime:GLOB and path:GLOB", n)
		}
	}
	return opt, nil
}

// matches tells whether one of the globs matches p or a directory it is in.
func matches(globs []string, p string) bool {
	for _, g := range globs {
		for q := p; q != ""; q = tree.Parent(q) {
			if ok, _ := path.Match(g, q); ok {
				return true
			}
		}
	}
	return false
}

// A comparer compares the images of one platform.
type comparer struct {
	opt      Options
	platform string
	report   Report
}

func (c *comparer) add(kind, p, field, a, b string) {
	c.report = append(c.report, Difference{Platform: c.platform, Kind: kind, Path: p, Field: field, A: a, B: b})
}

// field adds a difference if the two values differ.
func (c *comparer) field(kind, p, field, a, b string) {
	if a != b {
		c.add(kind, p, field, a, b)
	}
}

// Compare returns the differences between two images.
func Compare(ctx context.Context, a, b *Image, opt Options) (Report, error) {
	c := &comparer{opt: opt}
	c.field("image", "", "mediaType", a.MediaType, b.MediaType)
	c.annotations("index", "annotations", a.Annotations, b.Annotations)
	c.field("index", "", "other manifests", strconv.Itoa(a.Others), strconv.Itoa(b.Others))
	if opt.Digests {
		c.field("image", "", "digest", a.Digest.String(), b.Digest.String())
	}
	pa, err := selectPlatform(a, opt.Platform)
	if err != nil {
		return nil, err
	}
	pb, err := selectPlatform(b, opt.Platform)
	if err != nil {
		return nil, err
	}
	if len(pa) == 1 && len(pb) == 1 {
		c.field("image", "", "platform", pa[0].Name, pb[0].Name)
		return c.report, c.manifest(ctx, &pa[0], &pb[0])
	}
	for i := range pa {
		j := indexOf(pb, pa[i].Name)
		if j < 0 {
			c.add("image", "", "platform", pa[i].Name, None)
			continue
		}
		sub := &comparer{opt: opt, platform: pa[i].Name}
		if err := sub.manifest(ctx, &pa[i], &pb[j]); err != nil {
			return nil, err
		}
		c.report = append(c.report, sub.report...)
	}
	for _, m := range pb {
		if indexOf(pa, m.Name) < 0 {
			c.add("image", "", "platform", None, m.Name)
		}
	}
	return c.report, nil
}

func indexOf(list []Manifest, name string) int {
	for i := range list {
		if list[i].Name == name {
			return i
		}
	}
	return -1
}

func selectPlatform(img *Image, p *ocispecs.Platform) ([]Manifest, error) {
	if p == nil {
		return img.Manifests, nil
	}
	want := platforms.FormatAll(platforms.Normalize(*p))
	if i := indexOf(img.Manifests, want); i >= 0 {
		return img.Manifests[i : i+1], nil
	}
	return nil, fmt.Errorf("%s has no image for %s", img.Name, want)
}
