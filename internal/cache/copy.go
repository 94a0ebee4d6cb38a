// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"context"
	"io"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// refreshAfter is the age from which a record's last use is written anew: a build
// that finds everything writes nothing.
const refreshAfter = 24 * time.Hour

// A refresher is a place that drops blobs of a certain age, unless they are
// refreshed before.
type refresher interface {
	refreshAfter() time.Duration
	refresh(ctx context.Context, desc ocispecs.Descriptor) error
}

// export adds a record that was found, and was used last at the time was, to the
// places that may not have it.
func (c *Cache) export(r record, was time.Time, layers []docLayer, parts func(e *exported) error, from *imported) {
	for _, e := range c.exports {
		if e.Backend == from.Backend {
			c.renew(e, r, was, layers)
			continue
		}
		e.begin()
		c.jobs.Go(func() {
			defer e.end()
			err := parts(e)
			for _, dl := range layers {
				if err == nil {
					err = c.copyLayer(e, from, dl)
				}
			}
			if err == nil {
				e.addRecord(r, layers, c.opt.Key)
			} else if c.ctx.Err() == nil {
				c.stop(e, err)
			}
		})
	}
}

// renew writes down that a record of this place was of use again, if that was long
// ago.
func (c *Cache) renew(e *exported, r record, was time.Time, layers []docLayer) {
	place, ok := e.Backend.(refresher)
	after := refreshAfter
	if ok {
		after = place.refreshAfter()
	}
	if r.Used.Sub(was) <= after {
		return
	}
	e.addRecord(r, layers, c.opt.Key)
	if !ok {
		e.poke()
		return
	}
	e.begin()
	c.jobs.Go(func() {
		defer e.end()
		for _, desc := range blobsOf(&r, layers) {
			if e.isOff() || c.ctx.Err() != nil {
				return
			}
			if err := place.refresh(c.ctx, desc); err != nil {
				c.warn(e.Name(), "what was of use is not kept from expiring: "+err.Error())
				return
			}
			c.moved.beat()
		}
	})
}

// blobsOf returns the blobs that a record needs.
func blobsOf(r *record, layers []docLayer) []ocispecs.Descriptor {
	d := document{Layers: layers, Records: []record{*r}}
	return d.blobs()
}

// partBlobs returns a function that copies the lists of files of a record.
func (c *Cache) partBlobs(from *imported, r *record) func(e *exported) error {
	return func(e *exported) error {
		for _, p := range r.Parts {
			if p.Blob == nil {
				continue
			}
			if err := c.copyBlob(e, from, p.Blob.descriptor()); err != nil {
				return err
			}
		}
		return nil
	}
}

func (c *Cache) copyLayer(e *exported, from *imported, dl docLayer) error {
	if dl.Origin == "" {
		if err := c.copyBlob(e, from, ocispecs.Descriptor{MediaType: dl.MediaType, Digest: dl.Digest, Size: dl.Size}); err != nil {
			return err
		}
	}
	if dl.Index == nil {
		return nil
	}
	return c.copyBlob(e, from, dl.Index.descriptor())
}

func (c *Cache) copyBlob(e *exported, from *imported, desc ocispecs.Descriptor) error {
	if e.isOff() {
		return errOff
	}
	src := from.Blob(desc)
	err := e.Put(c.ctx, desc, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return c.moved.watch(src.Open(ctx, offset))
	}, from.Origin())
	c.moved.beat()
	return err
}
