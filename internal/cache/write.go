// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/layer"
	"hako/internal/store"
)

// An exported is a place that is written to.
type exported struct {
	Backend
	wake chan struct{} // there is something new, or no more will come

	mu      sync.Mutex
	doc     *document // what this build adds
	dirty   bool
	pending int  // records whose blobs are on their way
	ended   bool // no more records will come
	done    bool
	off     bool // it does not work
	revoked bool // what this build made is not to be used
}

func (e *exported) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *exported) finish() {
	e.mu.Lock()
	e.ended = true
	e.mu.Unlock()
	e.poke()
}

func (e *exported) isDone() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.done
}

// flushEvery is how often a document is written while a build goes on: a build
// that is evicted leaves what it had made.
const flushEvery = 3 * time.Second

// write keeps the place's document up to date until the build ends.
func (c *Cache) write(e *exported) {
	var last time.Time
	for {
		select {
		case <-e.wake:
		case <-c.ctx.Done():
			return
		}
		e.mu.Lock()
		dirty, ended := e.dirty && !e.off, e.ended && e.pending == 0
		e.mu.Unlock()
		if dirty && (ended || c.rest(e, last)) {
			c.flush(e)
			last = time.Now()
		}
		if ended {
			e.mu.Lock()
			e.done = true
			e.mu.Unlock()
			return
		}
	}
}

// rest waits until the document may be written again. It is false if the build
// ended meanwhile, which is another reason to write.
func (c *Cache) rest(e *exported, last time.Time) bool {
	d := flushEvery - time.Since(last)
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-e.wake:
		e.poke()
	case <-c.ctx.Done():
	}
	return false
}

// flush merges what this build made into the document.
func (c *Cache) flush(e *exported) {
	e.mu.Lock()
	e.dirty = false
	revoked := e.revoked
	mine := &document{Version: version}
	mine.merge(e.doc, c.opt.Key)
	e.mu.Unlock()
	err := e.Update(c.ctx, c.opt.Tag, func(old []byte) ([]byte, []ocispecs.Descriptor, error) {
		d := &document{Version: version}
		if old != nil {
			if known, err := parse(old, c.opt.Key); err == nil {
				d = known // else: what cannot be read is replaced
			}
		}
		if revoked {
			d.drop(mine)
		} else {
			d.addAll(mine, c.opt.Key)
		}
		packed, err := d.pack()
		return packed, d.blobs(), err
	})
	c.moved.beat()
	if err != nil {
		c.stop(e, err)
	}
}

// stop gives a place up.
func (c *Cache) stop(e *exported, err error) {
	e.mu.Lock()
	e.off = true
	e.mu.Unlock()
	c.warn(e.Name(), "nothing more is written to it: "+err.Error())
}

// Kept returns how many results of this build, or found by it, are in a place that
// was written, and what the place is called.
func (c *Cache) Kept() (steps int, place string) {
	for _, e := range c.exports {
		e.mu.Lock()
		off := e.off
		n := len(e.doc.Records)
		e.mu.Unlock()
		if !off && n > steps {
			steps, place = n, e.Name()
		}
	}
	return steps, place
}

// Revoke takes back what this build has written: it turned out to be wrong.
func (c *Cache) Revoke() {
	for _, e := range c.exports {
		e.mu.Lock()
		e.revoked, e.dirty = true, true
		e.mu.Unlock()
	}
}

// Keep remembers that s made ref, or, adopted, that it was found under one of its
// keys and goes by the others too. The work is done beside the build.
func (c *Cache) Keep(s *Step, ref *layer.Ref, adopted bool) {
	if ref == nil || ref.FS != nil || len(ref.Layers) == 0 || len(s.Keys) == 0 {
		return
	}
	now := c.opt.Now().UTC().Truncate(time.Second)
	c.mu.Lock()
	for i := range c.outcomes {
		if o := &c.outcomes[i]; !o.Hit && o.Step.Name == s.Name && o.Step.Line == s.Line {
			o.Step.Took = s.Took
		}
	}
	c.mu.Unlock()
	r := record{
		Keys: s.Keys, Made: now, Used: now, Took: s.Took.Milliseconds(), Step: s.place(), Line: s.Line, Salt: newSalt(),
	}
	if adopted {
		r.Made, r.Took = c.madeOf(s, now)
	}
	for _, e := range c.exports {
		e.begin()
		c.jobs.Go(func() {
			defer e.end()
			if err := c.put(e, s, r, ref); err != nil && c.ctx.Err() == nil {
				c.stop(e, err)
			}
		})
	}
}

// madeOf returns when what goes by one of the keys was made, and the time it took.
func (c *Cache) madeOf(s *Step, now time.Time) (time.Time, int64) {
	for _, im := range c.imports {
		if im.doc == nil {
			continue
		}
		for _, k := range s.Keys {
			if r := im.doc.find(k); r != nil {
				return r.Made, r.Took
			}
		}
	}
	return now, 0
}

func (e *exported) begin() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pending++
}

func (e *exported) end() {
	e.mu.Lock()
	e.pending--
	e.mu.Unlock()
	e.poke()
}

// isOff tells whether the place was given up.
func (e *exported) isOff() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.off
}

// put sends the blobs of a record and then adds it to the document.
func (c *Cache) put(e *exported, s *Step, r record, ref *layer.Ref) error {
	var layers []docLayer
	for _, l := range ref.Layers {
		dl, err := c.putLayer(e, l)
		if err != nil {
			return err
		}
		layers = append(layers, dl)
	}
	var err error
	if r.Parts, err = c.putParts(e, s, &r); err != nil {
		return err
	}
	e.addRecord(r, layers, c.opt.Key)
	return nil
}

func (e *exported) addRecord(r record, layers []docLayer, key []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.doc.add(r, layers, key)
	e.dirty = true
}

// putLayer sees to it that the place has a layer, unless it is that of an image
// in a registry, and returns what records say of it.
func (c *Cache) putLayer(e *exported, l *layer.Layer) (docLayer, error) {
	desc := l.Descriptor()
	dl := docLayer{DiffID: l.DiffID().Digest(), MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size, Annotations: desc.Annotations}
	if l.IsForeign() && !l.IsKnown() && l.Origin != "" {
		dl.Origin = l.Origin
		return dl, c.putForeignIndex(e, l, &dl)
	}
	if e.isOff() {
		return dl, errOff
	}
	var err error
	if dl.Content, err = l.ContentID(c.ctx); err != nil {
		return dl, err
	}
	dl.Created, dl.Description = l.Created.UTC(), l.Description
	p, err := c.pack(l)
	if err != nil {
		return dl, err
	}
	dl.Index = &p.blob
	return dl, c.sendLayer(e, l, p)
}

// putForeignIndex sends the index of a base image's layer, if this build came to
// know it: the next one that copies onto the base need not fetch it.
func (c *Cache) putForeignIndex(e *exported, l *layer.Layer, dl *docLayer) error {
	if e.isOff() {
		return errOff
	}
	if !l.HasIndex() {
		return nil
	}
	p, err := c.pack(l)
	if err != nil {
		return err
	}
	dl.Index = &p.blob
	return c.sendIndex(e, p, "")
}

var errOff = errors.New("it was given up")

// sendLayer sends a layer's blob and its index.
func (c *Cache) sendLayer(e *exported, l *layer.Layer, p *packing) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
	origin := l.Origin
	if c.opt.Settle != nil && !l.IsForeign() {
		origin = c.opt.Settle(c.ctx, l)
	}
	open := func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		if offset == 0 {
			return c.moved.watch(l.Open(ctx))
		}
		return c.moved.watch(l.OpenAt(ctx, offset))
	}
	if err := e.Put(c.ctx, l.Descriptor(), open, origin); err != nil {
		return err
	}
	c.moved.beat()
	return c.sendIndex(e, p, l.Origin)
}

func (c *Cache) sendIndex(e *exported, p *packing, origin string) error {
	return e.Put(c.ctx, p.blob.descriptor(), func(_ context.Context, offset int64) (io.ReadCloser, error) {
		f, err := c.opt.Store.Get(store.Blobs, p.blob.Digest)
		if err == nil && offset > 0 {
			_, err = f.Seek(offset, io.SeekStart)
		}
		if err != nil {
			return nil, err
		}
		return c.moved.watch(f, nil)
	}, origin)
}

// A packing is a layer's index, packed once for all places.
type packing struct {
	once sync.Once
	blob docBlob
	err  error
}

// pack spools the layer's packed index.
func (c *Cache) pack(l *layer.Layer) (*packing, error) {
	c.mu.Lock()
	p := c.packed[l.DiffID().Digest()]
	if p == nil {
		p = &packing{}
		c.packed[l.DiffID().Digest()] = p
	}
	c.mu.Unlock()
	p.once.Do(func() { p.blob, p.err = c.packOnce(l) })
	return p, p.err
}

func (c *Cache) packOnce(l *layer.Layer) (docBlob, error) {
	w, err := c.opt.Store.Create()
	if err != nil {
		return docBlob{}, err
	}
	defer w.Discard()
	sum := &summer{hash: sha256.New()}
	if err := l.PackIndex(c.ctx, io.MultiWriter(w, sum)); err != nil {
		return docBlob{}, err
	}
	b := docBlob{Digest: digest.NewDigest(digest.SHA256, sum.hash), Size: sum.n}
	return b, w.Commit(store.Blobs, b.Digest)
}

type summer struct {
	hash hash.Hash
	n    int64
}

func (s *summer) Write(p []byte) (int, error) {
	s.n += int64(len(p))
	return s.hash.Write(p)
}

// inlineFiles is the size up to which a list of files is kept in the document.
const inlineFiles = 512

// putParts returns what a record says of its key's parts.
func (c *Cache) putParts(e *exported, s *Step, r *record) ([]docPart, error) {
	var parts []docPart
	for _, p := range s.Parts {
		dp := docPart{Kind: p.Kind, Name: p.Name}
		if p.Value != "" {
			dp.Mac = r.mac(p.Value)
		}
		if len(p.Files) > 0 {
			packed, err := packFiles(fileLines(p.Files))
			if err != nil {
				return nil, err
			}
			if len(packed) <= inlineFiles {
				dp.Files = packed
			} else if dp.Blob, err = c.putBytes(e, packed); err != nil {
				return nil, err
			}
		}
		parts = append(parts, dp)
	}
	return parts, nil
}

func (c *Cache) putBytes(e *exported, b []byte) (*docBlob, error) {
	blob := &docBlob{Digest: digest.FromBytes(b), Size: int64(len(b))}
	return blob, e.Put(c.ctx, blob.descriptor(), func(_ context.Context, offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b[min(offset, int64(len(b))):])), nil
	}, "")
}
