// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"hako/internal/cache"
	"hako/internal/registry"
)

// A cacheOpener opens the places of a build's cache. One that is read and written
// is opened once.
type cacheOpener struct {
	*build
	client   *registry.Client
	distrust map[string]bool
	readOnly bool                         // nothing is written, nor made
	opened   map[CachePlace]cache.Backend // nil: it cannot be used
	keysBy   time.Time                    // when the search for all places' credentials ends
	uploads  int
}

// places opens the places to read from and to write to.
func (x *cacheOpener) places(ctx context.Context) (from, to []cache.Backend, err error) {
	o := &x.opt.Cache
	defer func() {
		if err != nil {
			for _, p := range append(from, to...) {
				_ = p.Close()
			}
		}
	}()
	if o.Enabled {
		main, err := x.main(ctx)
		if err != nil {
			return nil, nil, err
		}
		if main != nil {
			from = append(from, main)
		}
		if main != nil && !x.readOnly {
			to = append(to, main)
		}
	}
	add := func(list []cache.Backend, place cache.Backend) []cache.Backend {
		if place == nil || slices.Contains(list, place) {
			return list
		}
		return append(list, place)
	}
	for _, p := range o.To {
		if x.readOnly {
			continue
		}
		place, err := x.open(ctx, p, true)
		if err != nil {
			return from, to, err
		}
		to = add(to, place)
	}
	for _, p := range o.From {
		place, err := x.open(ctx, p, false)
		if errors.Is(err, os.ErrNotExist) && p.Dir != "" {
			x.note("cache %s: it is not there", p.Dir) // the first build of a pipeline
			continue
		}
		if err != nil {
			return from, to, err
		}
		from = add(from, place)
	}
	return from, to, nil
}

// main is the one that --cache means.
func (x *cacheOpener) main(ctx context.Context) (cache.Backend, error) {
	o := &x.opt.Cache
	if o.Repo != "" {
		place, err := x.open(ctx, ParseCachePlace(o.Repo), !x.readOnly)
		if errors.Is(err, os.ErrNotExist) && !o.NoPush {
			x.note("cache %s: it is not there", o.Repo)
			return nil, nil //nolint:nilnil // a plan makes none
		}
		if errors.Is(err, os.ErrNotExist) && o.NoPush {
			return nil, fmt.Errorf("--cache-repo %s: it is not there, and --no-push-cache makes none", o.Repo)
		}
		return place, err
	}
	tags := x.outputs.tags()
	if len(tags) == 0 {
		names := x.opt.Names()
		if len(names) == 0 {
			return nil, errors.New("--cache: nothing says where it is: add --cache-repo REPOSITORY, or --cache-repo oci:DIR")
		}
		tag, err := destination(names[0])
		if err != nil {
			return nil, err
		}
		tags = append(tags, tag)
	}
	repo := tags[0].Context()
	nested, err := name.NewRepository(repo.Name() + "/cache")
	if err != nil {
		return nil, fmt.Errorf("--cache: %s/cache is no repository: add --cache-repo: %w", repo.Name(), err)
	}
	return cache.InRegistry(cache.Repository{Client: x.client, Repo: nested, Else: &repo}), nil
}

// open opens a place; nil is one that cannot be used, which was said.
func (x *cacheOpener) open(ctx context.Context, p CachePlace, write bool) (cache.Backend, error) {
	key := p
	key.S3 = p.S3.where()
	if known, ok := x.opened[key]; ok {
		return known, nil
	}
	var place cache.Backend
	var err error
	switch {
	case p.S3.Bucket != "":
		place, err = x.inBucket(ctx, p.S3)
	case p.Dir != "":
		place, err = inDirectory(p.Dir, write)
	default:
		place, err = inRegistry(x.client, p)
	}
	if err != nil {
		return nil, err
	}
	x.opened[key] = place
	x.own(p)
	return place, nil
}

// own notes what this build writes to in a directory while commands run.
func (x *cacheOpener) own(p CachePlace) {
	dir, err := filepath.Abs(p.Dir)
	if p.Dir == "" || err != nil {
		return
	}
	for _, name := range cache.DirectoryNames() {
		x.cacheDirs = append(x.cacheDirs, filepath.Join(dir, name))
	}
}

func inDirectory(path string, write bool) (cache.Backend, error) {
	dir, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	place, err := cache.InDirectory(dir, write)
	if err != nil {
		return nil, fmt.Errorf("open the cache: %w", err)
	}
	return place, nil
}

func inRegistry(client *registry.Client, p CachePlace) (cache.Backend, error) {
	r, err := registry.ParseReference(p.Ref)
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", p.Ref, err)
	}
	out := cache.Repository{Client: client, Repo: r.Context()}
	if tag, ok := r.(name.Tag); ok && strings.HasSuffix(p.Ref, ":"+tag.TagStr()) && !p.Beside {
		out.Tag = tag.TagStr()
	}
	return cache.InRegistry(out), nil
}
