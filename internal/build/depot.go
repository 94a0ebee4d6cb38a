// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"hako/internal/registry"
	"hako/internal/store"
)

// BaseOptions say where base images are kept between builds.
type BaseOptions struct {
	// Dir is a directory; "" is none. It is not made, and one that cannot be
	// written to is only read.
	Dir string
	// Asked tells that the directory was named. One that merely happens to be
	// there may be for something else: it is written to only if there are base
	// images in it already, or results of builds are to be kept as well.
	Asked bool
	// Limit is how many bytes may lie there; 0 leaves a tenth of the file system free.
	Limit int64
}

// openDepot opens the directory of base images; nil if there is none. Nothing
// about it fails a build.
func (b *build) openDepot() *store.Depot {
	o := &b.opt.Bases
	if o.Dir == "" {
		return nil
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil
	}
	isOurs := o.Asked || b.opt.Cache.isOn()
	if _, err := os.Stat(filepath.Join(dir, store.DepotDir)); err == nil {
		isOurs = true
	}
	d, err := store.OpenDepot(dir, store.DepotOptions{
		ReadOnly: !isOurs || b.opt.Call != "" && b.opt.Call != CallBuild, Limit: o.Limit,
		Warn: func(err error) { b.note("base images: nothing more is kept in %s: %v", dir, withoutPath(err)) },
	})
	switch {
	case err == nil:
		return d
	case o.Asked && errors.Is(err, fs.ErrNotExist):
		b.note("base images: there is no directory %s; none are kept", dir)
	case o.Asked:
		b.note("base images: %s is not used: %v", dir, withoutPath(err))
	}
	return nil
}

// withoutPath is an error without the names of temporary files.
func withoutPath(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	if l, ok := errors.AsType[*os.LinkError](err); ok {
		return l.Err
	}
	return err
}

// keepIn lets a registry's client keep manifests and configs.
func keepIn(d *store.Depot) func(*registry.Options) {
	return func(o *registry.Options) {
		if d != nil {
			o.Kept = d
		}
	}
}

// depotPaths are what a build writes to while commands run.
func depotPaths(d *store.Depot) []string {
	if d == nil || !d.Writable() {
		return nil
	}
	return []string{filepath.Join(d.Dir(), store.DepotDir)}
}
