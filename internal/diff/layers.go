// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"strconv"

	"hako/internal/layer"
	"hako/internal/tree"
)

// layers compares what each layer does. What the trees, in which inTree was
// found, differ in is not said again.
func (c *comparer) layers(ctx context.Context, a, b *Manifest, inTree Report) error {
	la, lb := a.Ref.Layers, b.Ref.Layers
	if len(la) != len(lb) {
		c.add("manifest", "", "layers", strconv.Itoa(len(la)), strconv.Itoa(len(lb)))
	}
	said := make(map[[4]string]bool, len(inTree))
	for _, d := range inTree {
		said[[4]string{d.Path, d.Field, d.A, d.B}] = true
	}
	for i := range max(len(la), len(lb)) {
		kind := "layer " + strconv.Itoa(i+1)
		if i >= len(la) || i >= len(lb) {
			c.extra(kind, la, lb, i)
			continue
		}
		da, db := a.Manifest.Layers[i], b.Manifest.Layers[i]
		c.field(kind, "", "mediaType", da.MediaType, db.MediaType)
		c.annotations(kind, "annotations", da.Annotations, db.Annotations)
		if c.opt.Digests {
			c.blob(kind, "", da, db)
			c.field(kind, "", "diffID", la[i].DiffID().String(), lb[i].DiffID().String())
		}
		if da.Digest == db.Digest && la[i].DiffID() == lb[i].DiffID() {
			continue // the same bytes
		}
		if err := c.layer(ctx, kind, la[:i+1], lb[:i+1], said); err != nil {
			return fmt.Errorf("compare layers %d: %w", i+1, err)
		}
	}
	return nil
}

func (c *comparer) extra(kind string, la, lb []*layer.Layer, i int) {
	if i < len(la) {
		c.add(kind, "", "diffID", la[i].DiffID().String(), None)
		return
	}
	c.add(kind, "", "diffID", None, lb[i].DiffID().String())
}

// layer compares the topmost layers of two stacks.
func (c *comparer) layer(ctx context.Context, kind string, la, lb []*layer.Layer, said map[[4]string]bool) error {
	sa, err := effective(ctx, la)
	if err != nil {
		return err
	}
	sb, err := effective(ctx, lb)
	if err != nil {
		return err
	}
	nextA, stopA := iter.Pull2(sa)
	defer stopA()
	nextB, stopB := iter.Pull2(sb)
	defer stopB()
	sub := &comparer{opt: c.opt, platform: c.platform}
	linksA, linksB := links{}, links{}
	a, errA, okA := nextA()
	b, errB, okB := nextB()
	for okA || okB {
		if err := errors.Join(errA, errB); err != nil {
			return err
		}
		cmp := 0
		switch {
		case !okB:
			cmp = -1
		case !okA:
			cmp = 1
		default:
			cmp = tree.ComparePaths(a.Path, b.Path)
		}
		if cmp <= 0 {
			linksA.first(&a.Entry)
		}
		if cmp >= 0 {
			linksB.first(&b.Entry)
		}
		switch {
		case cmp < 0 && !matches(c.opt.Paths, a.Path):
			sub.add(kind, "/"+a.Path, "entry", describe(&a), None)
		case cmp > 0 && !matches(c.opt.Paths, b.Path):
			sub.add(kind, "/"+b.Path, "entry", None, describe(&b))
		case cmp == 0 && !matches(c.opt.Paths, a.Path):
			sub.item(kind, &a, &b, linksA.first(&a.Entry), linksB.first(&b.Entry))
		}
		if cmp <= 0 {
			a, errA, okA = nextA()
		}
		if cmp >= 0 {
			b, errB, okB = nextB()
		}
	}
	for _, d := range sub.report {
		if !said[[4]string{d.Path, d.Field, d.A, d.B}] {
			c.report = append(c.report, d)
		}
	}
	return nil
}

// item compares what two layers do at one path.
func (c *comparer) item(kind string, a, b *layer.Item, firstA, firstB string) {
	at := "/" + a.Path
	if describe(a) != describe(b) {
		c.add(kind, at, "entry", describe(a), describe(b))
		return
	}
	if !a.Present || a.LinkTo != "" {
		return
	}
	c.attributes(kind, &a.Entry, &b.Entry)
	if a.Mode.IsDir() {
		return
	}
	c.field(kind, at, "hardlink", "/"+firstA, "/"+firstB)
	if a.Mode.IsRegular() && a.Size == b.Size {
		c.field(kind, at, "content", a.Digest.String(), b.Digest.String())
	}
}

// describe says in a word or two what a layer does at a path.
func describe(it *layer.Item) string {
	s := ""
	switch {
	case it.LinkTo != "":
		s = "hard link to /" + it.LinkTo + " of a lower layer"
	case it.Present:
		s = typeName(it.Mode)
	}
	if it.Deleted {
		s = join("deletion", s)
	}
	if it.Opaque {
		s = join("deletion of the content", s)
	}
	return s
}

func join(a, b string) string {
	if b == "" {
		return a
	}
	return a + ", " + b
}

// effective returns what the topmost layer of a stack does, without entries for
// directories that are below it in the same form, times aside.
func effective(ctx context.Context, stack []*layer.Layer) (iter.Seq2[layer.Item, error], error) {
	top := len(stack) - 1
	items, err := stack[top].Items(ctx)
	if err != nil {
		return nil, err
	}
	below, err := (&layer.Ref{Layers: stack[:top]}).Tree(ctx)
	if err != nil {
		return nil, err
	}
	return func(yield func(layer.Item, error) bool) {
		for it, err := range items {
			if err == nil && it.Present && it.Mode.IsDir() && !it.Deleted && !it.Opaque {
				var e tree.Entry
				e, err = below.Lstat(it.Path)
				switch {
				case errors.Is(err, fs.ErrNotExist):
					err = nil
				case err == nil && e.Mode == it.Mode && e.UID == it.UID && e.GID == it.GID && maps.Equal(e.Xattrs, it.Xattrs):
					continue
				}
			}
			if !yield(it, err) || err != nil {
				return
			}
		}
	}, nil
}
