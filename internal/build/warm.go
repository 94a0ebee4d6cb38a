// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"hako/internal/frontend"
	"hako/internal/layer"
	"hako/internal/progress"
	"hako/internal/registry"
	"hako/internal/source"
	"hako/internal/store"
)

// WarmOptions say which images are kept for later builds, and where.
type WarmOptions struct {
	// Images are references with a tag or a digest.
	Images []string
	// Dockerfiles are paths or http(s) URLs: the images that they name are kept.
	Dockerfiles []string
	BuildArgs   map[string]string
	// Platforms to keep images for; none means this machine's.
	Platforms []ocispecs.Platform
	// Bases is where they are kept. The directory is made if it is missing.
	Bases BaseOptions
	// Force fetches what is there already.
	Force bool
	// TTL is the age from which what was not used is compared with its digest
	// and, if it is broken, fetched again; 0 is none.
	TTL      time.Duration
	Registry Registry
	Env      Env
}

// A Warmed is what became of one image.
type Warmed struct {
	Ref    string // "registry/repository:tag"
	Digest digest.Digest
	Err    error
}

// A WarmError tells that images could not be kept.
type WarmError struct {
	Failed, All int
	Errs        []error
}

func (e *WarmError) Error() string {
	if e.All == 1 {
		return e.Errs[0].Error()
	}
	return fmt.Sprintf("keep base images: %d of %d failed: %v", e.Failed, e.All, e.Errs[0])
}

// Unwrap returns the errors of the images.
func (e *WarmError) Unwrap() []error { return e.Errs }

// Warm keeps base images for later builds: manifests, configs, layers, and the
// layers' indexes, so that such a build need fetch nothing.
func Warm(ctx context.Context, opt WarmOptions, sink progress.Sink) (_ []Warmed, err error) {
	w := &warmer{opt: &opt, sink: sink}
	if w.network, err = openNetwork(opt.Env); err != nil {
		return nil, err
	}
	list, err := w.images(ctx)
	if err != nil {
		return nil, err
	}
	end, err := w.open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	out := make([]Warmed, len(list))
	var g errgroup.Group
	g.SetLimit(4)
	w.passes = make(chan struct{}, max(2, min(runtime.GOMAXPROCS(0), 4)))
	for i, b := range list {
		g.Go(func() error {
			out[i] = w.keep(ctx, b)
			return nil
		})
	}
	_ = g.Wait()
	failed := &WarmError{All: len(out)}
	for _, k := range out {
		if k.Err != nil {
			failed.Failed++
			failed.Errs = append(failed.Errs, k.Err)
		}
	}
	if ctx.Err() != nil {
		return out, context.Cause(ctx)
	}
	if failed.Failed > 0 {
		return out, failed
	}
	return out, nil
}

// A warmer is one run of Warm.
type warmer struct {
	opt     *WarmOptions
	sink    progress.Sink
	network *network
	depot   *store.Depot
	pool    *images
	passes  chan struct{}         // one slot for each layer that is being read
	broken  atomic.Pointer[error] // why the directory cannot be written to
}

// open opens the directory and what fetches.
func (w *warmer) open() (end func() error, err error) {
	var ends []func() error
	end = func() error {
		var errs []error
		for _, e := range slices.Backward(ends) {
			errs = append(errs, e())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, end())
		}
	}()
	dir := w.opt.Bases.Dir
	w.depot, err = store.OpenDepot(dir, store.DepotOptions{Create: true, Limit: w.opt.Bases.Limit, Warn: func(err error) { w.broken.Store(&err) }})
	if err != nil {
		return end, fmt.Errorf("open the directory of base images: %w", err)
	}
	ends = append(ends, w.depot.Close)
	if !w.depot.Writable() {
		return end, fmt.Errorf("open the directory of base images: %s cannot be written to", dir)
	}
	scratch, drop, err := w.depot.Scratch()
	if err != nil {
		return end, err
	}
	ends = append(ends, drop)
	st, err := store.Open(scratch)
	if err != nil {
		return end, err
	}
	opt := &Options{Registry: w.opt.Registry, Env: w.opt.Env}
	keys, err := openKeychain(opt, w.network, nil)
	if err != nil {
		return end, err
	}
	ends = append(ends, keys.Close)
	client, err := newRegistry(opt, w.network, keys, nil, nil, func(o *registry.Options) {
		newTransfers(w.sink).tune(o)
		if o.Kept = w.depot; w.opt.Force {
			o.Kept = forgetful{w.depot}
		}
	})
	w.pool = &images{client: client, store: st, depot: w.depot}
	return end, err
}

// A forgetful keeps what it is given and knows nothing.
type forgetful struct{ *store.Depot }

// ReadAll implements registry.Kept.
func (forgetful) ReadAll(digest.Digest, int64) ([]byte, error) { return nil, store.ErrNotKept }

// Put implements registry.Kept.
func (f forgetful) Put(d digest.Digest, b []byte) {
	f.Delete(d)
	f.Depot.Put(d, b)
}

// images lists what is to be kept.
func (w *warmer) images(ctx context.Context) ([]frontend.Base, error) {
	targets := w.opt.Platforms
	if len(targets) == 0 {
		targets = []ocispecs.Platform{hostPlatform()}
	}
	var list []frontend.Base
	add := func(b frontend.Base) {
		isSame := func(o frontend.Base) bool {
			return o.Ref == b.Ref && platforms.FormatAll(o.Platform) == platforms.FormatAll(b.Platform)
		}
		if !slices.ContainsFunc(list, isSame) {
			list = append(list, b)
		}
	}
	for _, p := range targets {
		for _, ref := range w.opt.Images {
			add(frontend.Base{Ref: ref, Platform: p})
		}
		for _, name := range w.opt.Dockerfiles {
			text, err := w.dockerfile(ctx, name)
			if err != nil {
				return nil, fmt.Errorf("read the Dockerfile: %w", err)
			}
			found, err := frontend.Bases(text, w.opt.BuildArgs, hostPlatform(), p)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", name, err)
			}
			for _, b := range found {
				add(b)
			}
		}
	}
	return list, nil
}

func (w *warmer) dockerfile(ctx context.Context, name string) ([]byte, error) {
	var f io.ReadCloser
	var err error
	if strings.HasPrefix(name, "https://") || strings.HasPrefix(name, "http://") {
		f, err = (&source.WebFile{Client: w.network.client(), URL: name}).Open(ctx)
	} else {
		f, err = os.Open(name)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxDockerfile))
}

// keep keeps one image.
func (w *warmer) keep(ctx context.Context, b frontend.Base) (out Warmed) {
	out.Ref = b.Ref
	name := fmt.Sprintf("%s for %s", b.Ref, platforms.FormatAll(b.Platform))
	t := progress.Start(w.sink, digest.FromString("warm "+name), name)
	defer func() { t.Done(out.Err) }()
	r, err := registry.ParseReference(b.Ref)
	if err != nil {
		out.Err = err
		return out
	}
	out.Ref = r.Name()
	release := w.depot.Claim(ctx, digest.FromString(name), resolveWait)
	img, err := w.pool.client.Resolve(ctx, r, &b.Platform)
	release()
	if err != nil {
		out.Err = err
		return out
	}
	out.Digest = img.Digest
	if _, err := diffIDs(img.Config, img.Manifest); err != nil {
		out.Err = fmt.Errorf("%s: %w", b.Ref, err)
		return out
	}
	for _, d := range img.Manifest.Layers {
		if w.opt.Force || w.opt.TTL > 0 && w.depot.Age(d.Digest) > w.opt.TTL {
			w.refresh(d)
		}
	}
	layers, err := w.pool.Layers(ctx, b.Ref, &b.Platform)
	if err != nil {
		out.Err = err
		return out
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, l := range layers {
		g.Go(func() error {
			select {
			case w.passes <- struct{}{}:
			case <-gctx.Done():
				return context.Cause(gctx)
			}
			defer func() { <-w.passes }()
			fetched, err := w.layer(gctx, l)
			if err == nil && fetched {
				t.Logf("%s: %d bytes", l.Descriptor().Digest, l.Descriptor().Size)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		out.Err = fmt.Errorf("%s: %w", b.Ref, err)
		return out
	}
	out.Err = w.proof(b.Ref, img)
	return out
}

// refresh removes what is not to be believed any more.
func (w *warmer) refresh(d ocispecs.Descriptor) {
	if w.opt.Force {
		w.depot.Renew(d.Digest)
		return
	}
	w.depot.Check(d.Digest, d.Size)
}

// claimWait is how long one warmer waits for another that fetches the same: what
// is not there then is fetched twice.
const (
	claimWait   = 10 * time.Minute
	resolveWait = 10 * time.Second // for manifests and configs, which are small
)

// layer keeps one layer, and tells whether it had to be fetched. Images that
// share one share the Layer, whose pass is done once.
func (w *warmer) layer(ctx context.Context, l *layer.Layer) (fetched bool, err error) {
	d := l.Descriptor()
	has := func() bool { return w.depot.Has(d.Digest, d.Size) }
	if has() && l.HasIndex() {
		return false, nil
	}
	release := w.depot.Claim(ctx, d.Digest, claimWait)
	defer release()
	if w.depot.HasIndex(layer.IndexFormat, l.DiffID().Digest()) { // by now
		l.OfferIndex(func(context.Context) (io.ReadCloser, error) {
			return w.depot.OpenIndex(layer.IndexFormat, l.DiffID().Digest())
		})
	}
	if fetched = !has(); fetched && !w.depot.HasRoom(d.Size) {
		return false, w.noRoom(d.Digest)
	}
	if err := l.Index(ctx); err != nil {
		return fetched, err
	}
	if !has() { // the index was known, so nothing was read
		rc, err := l.Open(ctx)
		if err != nil {
			return fetched, err
		}
		defer rc.Close()
		if _, err := io.Copy(io.Discard, rc); err != nil {
			return fetched, err
		}
	}
	if !has() {
		return fetched, w.noRoom(d.Digest)
	}
	return fetched, l.KeepIndex(ctx, w.depot)
}

// noRoom tells why the blob d is not there.
func (w *warmer) noRoom(d digest.Digest) error {
	if why := w.broken.Load(); why != nil {
		return fmt.Errorf("write blob %s to %s: %w", d, w.depot.Dir(), withoutPath(*why))
	}
	limit := "a tenth of the volume stays free"
	if n := w.opt.Bases.Limit; n > 0 {
		limit = fmt.Sprintf("%d bytes are the limit", n)
	}
	return fmt.Errorf("blob %s does not fit into %s: %s", d, w.depot.Dir(), limit)
}

// proof makes sure that what leads to the layers was kept as well.
func (w *warmer) proof(ref string, img *registry.Image) error {
	for _, d := range []digest.Digest{img.Digest, img.ManifestDigest, img.Manifest.Config.Digest} {
		if _, err := w.depot.ReadAll(d, maxKeptManifest); err != nil {
			return fmt.Errorf("%s: %w", ref, w.noRoom(d))
		}
	}
	return nil
}

const maxKeptManifest = 16 << 20
