// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package cache remembers between builds what steps made, in a registry, an OCI
// layout or a bucket.
//
// What a repository knows of one Dockerfile is a document: records of keys and
// layers. It is read once, at the start of a build, and answers all questions.
// A record has the layers' blobs and their indexes beside it, so that nobody
// has to fetch a layer in order to copy from it, and hashes of what its key was
// made of, so that a miss can be explained.
//
// Nothing here fails a build. A cache that is gone, slow, full or broken is said
// once and then left alone.
package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/image"
	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
)

// patience is how long a build waits for a cache on which nothing moves.
const patience = 3 * time.Second

// A Backend is a place for documents and blobs.
type Backend interface {
	// Name is what messages call it.
	Name() string
	// Load returns a document; its error satisfies fs.ErrNotExist if there is none.
	Load(ctx context.Context, tag string) ([]byte, error)
	// Update replaces a document by what change makes of it; nil is none. Of those
	// who do it at the same time one may go lost. blobs are all that the new one
	// needs, and there already.
	Update(ctx context.Context, tag string, change func(old []byte) (doc []byte, blobs []ocispecs.Descriptor, err error)) error
	// Put stores a blob; origin is a repository that may have it, or "".
	Put(ctx context.Context, desc ocispecs.Descriptor, open func(ctx context.Context, offset int64) (io.ReadCloser, error), origin string) error
	// Blob opens a blob. Its bytes are for the reader to verify.
	Blob(desc ocispecs.Descriptor) layer.Source
	// Origin is "registry/repository" where blobs can be mounted from, or "".
	Origin() string
	// Close ends its use.
	Close() error
}

// Options are what a cache works with.
type Options struct {
	Store *store.Store
	// Tag names the document: one for each Dockerfile and set of platforms.
	Tag      string
	From, To []Backend
	// TTL is the age from which results are not used any more; 0 is none.
	TTL time.Duration
	// Key, if set, is what records have to be signed with.
	Key []byte
	// Distrust are names of places of which something could not be had: nothing
	// is taken from them.
	Distrust map[string]bool
	// Foreign returns the layer of a base image in a repository.
	Foreign func(origin string, id image.DiffID, desc ocispecs.Descriptor) (*layer.Layer, error)
	// Settle waits until a layer that is being pushed elsewhere is there, so that
	// it can be mounted from where Settle says; "" is nowhere.
	Settle func(ctx context.Context, l *layer.Layer) (origin string)
	// Uploads is how many layers are sent at the same time; 0 is 3.
	Uploads int
	// Warn says what does not work, once for each place and reason.
	Warn func(text string)
	Now  func() time.Time
}

// A Step is one step of a build, as the solver describes it.
type Step struct {
	Name  string // "[build 2/5] RUN make"
	File  string
	Line  int
	Text  string // of the instruction
	Keys  []string
	Parts []Part
	Took  time.Duration
	// NoCache: it was asked to be done anew.
	NoCache bool
}

// A Part is one thing that a step's key depends on.
type Part struct {
	Kind, Name, Value string
	Files             []tree.SelectedFile
}

// A Cache answers for one build. It is safe for concurrent use.
type Cache struct {
	opt     Options
	ctx     context.Context //nolint:containedctx // of the build; Close ends what runs under it
	cancel  context.CancelFunc
	loaded  chan struct{} // closed when the documents are there
	imports []*imported

	jobs  sync.WaitGroup
	slots chan struct{}
	moved *pulse

	mu       sync.Mutex
	told     map[string]bool
	exports  []*exported
	packed   map[digest.Digest]*packing // indexes, by diffID
	outcomes []Outcome
}

// An imported is what was read of one place.
type imported struct {
	Backend
	doc *document // nil: it could not be read
}

// New begins to read the documents. The cache must be closed.
func New(ctx context.Context, opt Options) *Cache {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	cctx, cancel := context.WithCancel(ctx)
	c := &Cache{
		opt: opt, ctx: cctx, cancel: cancel, loaded: make(chan struct{}), slots: make(chan struct{}, cmp.Or(opt.Uploads, 3)), moved: newPulse(),
		told: map[string]bool{}, packed: map[digest.Digest]*packing{},
	}
	for _, b := range opt.From {
		c.imports = append(c.imports, &imported{Backend: b})
	}
	for _, b := range opt.To {
		c.exports = append(c.exports, &exported{Backend: b, doc: &document{Version: version}, wake: make(chan struct{}, 1)})
	}
	c.jobs.Go(c.load)
	for _, e := range c.exports {
		c.jobs.Go(func() { c.write(e) })
	}
	return c
}

// load reads all documents.
func (c *Cache) load() {
	defer close(c.loaded)
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	var wg sync.WaitGroup
	for _, im := range c.imports {
		if c.opt.Distrust[im.Name()] {
			im.doc = &document{Version: version}
			continue
		}
		wg.Go(func() {
			packed, err := im.Load(ctx, c.opt.Tag)
			if errors.Is(err, fs.ErrNotExist) {
				im.doc = &document{Version: version}
				return
			}
			if err == nil {
				im.doc, err = parse(packed, c.opt.Key)
			}
			if err != nil {
				if ctx.Err() != nil && c.ctx.Err() == nil {
					err = fmt.Errorf("no answer within %s", patience)
				}
				c.warn(im.Name(), "nothing of it is used: "+err.Error())
				c.giveUp(im.Backend, err)
			}
		})
	}
	wg.Wait()
}

// giveUp writes nothing to a place that cannot be read, unless what is there is
// something else, to be replaced.
func (c *Cache) giveUp(b Backend, err error) {
	if errors.Is(err, errOther) || errors.Is(err, errDocument) {
		return
	}
	for _, e := range c.exports {
		if e.Backend == b {
			e.mu.Lock()
			e.off = true
			e.mu.Unlock()
		}
	}
}

func (c *Cache) warn(place, text string) {
	if c.ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	known := c.told[place]
	c.told[place] = true
	c.mu.Unlock()
	if !known {
		c.opt.Warn("cache " + place + ": " + text)
	}
}

// Find returns what was kept under key, with a few words about it.
func (c *Cache) Find(ctx context.Context, s *Step, key string) (*layer.Ref, string) {
	select {
	case <-c.loaded:
	case <-ctx.Done():
		return nil, ""
	}
	for _, im := range c.imports {
		if im.doc == nil {
			continue
		}
		r := im.doc.find(key)
		if r == nil || c.isOld(r) {
			continue
		}
		ref, err := c.ref(im, r)
		if err != nil {
			c.warn(im.Name(), err.Error())
			continue
		}
		c.hit(im, r, s)
		return ref, about(ref, r)
	}
	return nil, ""
}

func (c *Cache) isOld(r *record) bool { return c.opt.TTL > 0 && c.opt.Now().Sub(r.Made) > c.opt.TTL }

// hit notes that a record was of use, and sees to it that all places have it.
func (c *Cache) hit(im *imported, r *record, s *Step) {
	now := c.opt.Now().UTC().Truncate(time.Second)
	c.mu.Lock()
	c.outcomes = append(c.outcomes, Outcome{Step: *s, Hit: true, Size: ownSize(im.doc, r), Made: r.Made})
	c.mu.Unlock()
	used := *r
	used.Used = now
	c.export(used, r.Used, im.doc.layersOf(r), c.partBlobs(im, r), im)
}

func ownSize(d *document, r *record) int64 {
	if len(r.Layers) == 0 {
		return 0
	}
	return d.Layers[r.Layers[len(r.Layers)-1]].Size
}

func about(ref *layer.Ref, r *record) string {
	top := ref.Layers[len(ref.Layers)-1]
	return fmt.Sprintf("%s, made %s, left where it is", humanSize(top.Descriptor().Size), r.Made.UTC().Format("2006-01-02 15:04"))
}

// index returns how to open the index of a layer.
func (im *imported) index(b docBlob) func(ctx context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) { return openVerified(ctx, im.Blob(b.descriptor()), b) }
}

// ref makes layers of a record's.
func (c *Cache) ref(im *imported, r *record) (*layer.Ref, error) {
	ref := &layer.Ref{}
	for _, dl := range im.doc.layersOf(r) {
		desc := ocispecs.Descriptor{MediaType: dl.MediaType, Digest: dl.Digest, Size: dl.Size, Annotations: dl.Annotations}
		if dl.Origin != "" {
			l, err := c.opt.Foreign(dl.Origin, image.DiffID(dl.DiffID), desc)
			if err != nil {
				return nil, err
			}
			if dl.Index != nil {
				l.OfferIndex(im.index(*dl.Index))
			}
			ref.Layers = append(ref.Layers, l)
			continue
		}
		k := layer.Known{
			DiffID: image.DiffID(dl.DiffID), Desc: desc, Created: dl.Created, Description: dl.Description,
			Content: dl.Content, Origin: im.Origin(), Place: im.Name(), Source: im.Blob(desc),
		}
		index := *dl.Index
		k.Index = func(ctx context.Context) (io.ReadCloser, error) {
			return openVerified(ctx, im.Blob(index.descriptor()), index)
		}
		ref.Layers = append(ref.Layers, layer.NewKnown(c.opt.Store, k))
	}
	return ref, nil
}

// Close waits for what is being written, as long as it moves, and ends the use of
// all places. If the build failed, what was made so far is kept all the same.
func (c *Cache) Close() error {
	for _, e := range c.exports {
		e.finish()
	}
	done := make(chan struct{})
	go func() { c.jobs.Wait(); close(done) }()
	c.moved.wait(done, patience)
	stalled := false
	select {
	case <-done:
	default:
		stalled = true
	}
	for _, e := range c.exports {
		if stalled && !e.isDone() {
			c.warn(e.Name(), fmt.Sprintf("not all was written: nothing moved for %s", patience))
		}
	}
	c.cancel()
	<-done
	var errs []error
	var closed []Backend
	for _, b := range append(slices.Clone(c.opt.From), c.opt.To...) {
		if !slices.Contains(closed, b) {
			closed = append(closed, b)
			errs = append(errs, b.Close())
		}
	}
	return errors.Join(errs...)
}
