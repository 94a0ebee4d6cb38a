// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"hako/internal/export"
	"hako/internal/frontend"
	"hako/internal/layer"
	"hako/internal/progress"
	"hako/internal/registry"
)

// outputs are the places that the result goes to. Paths are made absolute
// before anything moves, and opened only after everything is back in its place.
type outputs struct {
	opt    *Options
	client *registry.Client
	pusher *tally
	sink   progress.Sink
	tags   []name.Tag
	// targets are the vertices whose layers are in the image.
	targets map[digest.Digest]bool
	early   *export.Early
	pushed  []Pushed
	check   *errgroup.Group
}

func openOutputs(ctx context.Context, opt *Options, client *registry.Client, sink progress.Sink) (*outputs, error) {
	o := &outputs{opt: opt, client: client, pusher: &tally{Pusher: client}, sink: sink}
	for _, n := range opt.PushNames() {
		tag, err := destination(n)
		if err != nil {
			return nil, err
		}
		o.tags = append(o.tags, tag)
	}
	paths := []*string{
		&opt.TarPath, &opt.OCILayoutPath, &opt.DigestFile, &opt.ImageNameDigestFile, &opt.ImageNameTagDigestFile, &opt.MetadataFile,
	}
	for i := range opt.Outputs {
		if opt.Outputs[i].Dest != "-" {
			paths = append(paths, &opt.Outputs[i].Dest)
		}
	}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return nil, fmt.Errorf("output %s: %w", *p, err)
		}
		*p = abs
	}
	if len(o.tags) > 0 && opt.PushEarly {
		o.early = export.NewEarly(ctx, o.pusher, o.tags)
	}
	o.checkPush(ctx)
	return o, nil
}

// checkPush asks the registries, in the background, whether this account may push.
func (o *outputs) checkPush(ctx context.Context) {
	g, gctx := errgroup.WithContext(ctx)
	o.check = g
	if o.opt.Registry.SkipPushCheck {
		return
	}
	seen := make(map[string]bool)
	for _, t := range o.tags {
		repo := t.Context()
		if seen[repo.Name()] {
			continue
		}
		seen[repo.Name()] = true
		g.Go(func() error { return o.client.CheckPushPermission(gctx, repo) })
	}
}

// allowed waits for the answers of checkPush.
func (o *outputs) allowed() error { return o.check.Wait() }

// none tells whether nothing was asked for.
func (o *outputs) none() bool {
	opt := o.opt
	return len(o.tags) == 0 && !opt.NoPush && opt.TarPath == "" && opt.OCILayoutPath == "" && len(opt.Outputs) == 0
}

// chain sets the vertices whose layers will be in the image.
func (o *outputs) chain(in map[digest.Digest]bool) { o.targets = in }

// made begins to push a new layer if it is sure to be in the image.
func (o *outputs) made(vertex digest.Digest, l *layer.Layer) {
	if o.early != nil && o.targets[vertex] {
		o.early.Start(l)
	}
}

// close ends what still goes on.
func (o *outputs) close() {
	if o.early != nil {
		o.early.Stop()
	}
	_ = o.check.Wait() // its error was returned, or a worse one was
}

// export sends the results everywhere.
func (o *outputs) export(ctx context.Context, conv *frontend.Result, refs []*layer.Ref) (*Result, error) {
	bundle, err := o.bundle(conv, refs, o.opt.OCIMediaTypes != nil && !*o.opt.OCIMediaTypes)
	if err != nil {
		return nil, err
	}
	root := bundle.Root().Desc
	res := &Result{Digest: root.Digest}
	for _, m := range bundle.Images {
		res.Images = append(res.Images, Image{Platform: m.Platform, Desc: m.Document.Desc, Config: m.Config.Data})
	}
	if err := o.writeFiles(ctx, bundle, conv, refs); err != nil {
		return nil, err
	}
	if len(o.tags) > 0 {
		if err := o.push(ctx, bundle, res); err != nil {
			return nil, err
		}
	}
	return res, o.resultFiles(bundle, root.Digest)
}

func (o *outputs) bundle(conv *frontend.Result, refs []*layer.Ref, docker bool) (*export.Bundle, error) {
	images := make([]export.Image, len(refs))
	for i, p := range conv.Platforms {
		images[i] = export.Image{Platform: p.Platform, Ref: refs[i], Config: p.Config, Base: p.BaseConfig, Epoch: p.Epoch}
		if o.opt.Reproducible && p.Epoch == nil {
			t := time.Unix(0, 0).UTC()
			images[i].Epoch = &t
		}
	}
	opt := export.Options{Docker: docker, Index: conv.Index, Annotations: imageAnnotations(o.opt.Annotations)}
	return export.Finish(images, opt)
}

func (o *outputs) push(ctx context.Context, b *export.Bundle, res *Result) error {
	if o.early != nil {
		// Its error comes again, with more to say, from the push itself.
		_ = o.early.Wait()
	}
	what := o.tags[0].Name()
	task := progress.Start(o.sink, digest.FromString("push "+what), "push "+what)
	done, err := b.Push(ctx, o.pusher, o.tags)
	if err == nil {
		o.report(task, b)
	}
	for _, t := range done {
		task.Logf("%s@%s", t.Name(), res.Digest)
		res.Pushed = append(res.Pushed, Pushed{Ref: t.Name(), Digest: res.Digest})
	}
	o.pushed = res.Pushed
	task.Done(err)
	return err
}

// report says how much had to be sent.
func (o *outputs) report(task *progress.Task, b *export.Bundle) {
	var layers []digest.Digest
	for _, m := range b.Images {
		for _, l := range m.Layers {
			layers = append(layers, l.Digest)
		}
	}
	told := make(map[string]bool)
	for _, t := range o.tags {
		if repo := t.Context(); !told[repo.Name()] {
			told[repo.Name()] = true
			task.Logf("%s: %s", repo.Name(), o.pusher.summary(repo, layers))
		}
	}
}

// writeFiles writes archives, layouts and directories.
func (o *outputs) writeFiles(ctx context.Context, b *export.Bundle, conv *frontend.Result, refs []*layer.Ref) error {
	created := time.Time{}
	if t := o.opt.SourceDateEpoch; t != nil {
		created = *t
	}
	if p := o.opt.OCILayoutPath; p != "" {
		if err := o.inDir(p, func(dir *os.Root) error { return b.WriteLayout(ctx, dir, export.LayoutOptions{Created: created}) }); err != nil {
			return err
		}
	}
	if p := o.opt.TarPath; p != "" {
		docker, err := o.bundle(conv, refs, o.opt.OCIMediaTypes == nil || !*o.opt.OCIMediaTypes)
		if err != nil {
			return err
		}
		names := o.opt.Names()
		if len(names) == 0 {
			names = []string{"unset-repo/unset-image-name"} // as kaniko names it
		}
		if err := o.inFile(p, func(w io.Writer) error {
			return docker.WriteDocker(ctx, w, export.LayoutOptions{Names: names, Created: created})
		}); err != nil {
			return err
		}
	}
	for _, out := range o.opt.Outputs {
		if err := o.output(ctx, b, out, created); err != nil {
			return err
		}
	}
	return nil
}

// output writes one --output.
func (o *outputs) output(ctx context.Context, b *export.Bundle, out Output, created time.Time) error {
	lo := export.LayoutOptions{Names: o.opt.Names(), Created: created}
	fo := export.FilesOptions{Epoch: o.opt.SourceDateEpoch}
	switch {
	case out.Type == "local":
		return o.inDir(out.Dest, func(dir *os.Root) error { return b.WriteDir(ctx, dir, fo) })
	case out.Type == "tar":
		return o.inFile(out.Dest, func(w io.Writer) error { return b.WriteTar(ctx, w, fo) })
	case out.Type == "oci" && out.Attrs["tar"] == "false":
		return o.inDir(out.Dest, func(dir *os.Root) error { return b.WriteLayout(ctx, dir, lo) })
	case out.Type == "oci":
		return o.inFile(out.Dest, func(w io.Writer) error { return b.WriteLayoutTar(ctx, w, lo) })
	case out.Type == "docker":
		return o.inFile(out.Dest, func(w io.Writer) error { return b.WriteDocker(ctx, w, lo) })
	}
	return fmt.Errorf("output type %q is not supported", out.Type)
}

func (o *outputs) inDir(path string, write func(*os.Root) error) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make the output directory: %w", err)
	}
	dir, err := os.OpenRoot(path)
	if err != nil {
		return fmt.Errorf("open the output directory: %w", err)
	}
	return errors.Join(write(dir), dir.Close())
}

// inFile writes a file that appears whole or not at all, or standard output.
func (o *outputs) inFile(path string, write func(io.Writer) error) error {
	if path == "-" {
		return write(o.opt.Stdout)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the output's directory: %w", err)
	}
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		// A pipe or a device: nothing can be renamed over it.
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("open the output: %w", err)
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return fmt.Errorf("make the output: %w", err)
	}
	defer os.Remove(f.Name())
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("make the output: %w", err)
	}
	return nil
}

// resultFiles writes what came of the build, after everything else is done.
func (o *outputs) resultFiles(b *export.Bundle, d digest.Digest) error {
	var tags []name.Tag
	for _, n := range o.opt.Names() {
		if t, err := name.NewTag(n, name.WeakValidation); err == nil {
			tags = append(tags, t)
		}
	}
	meta, err := b.MetadataFile(o.opt.Names())
	if err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		data []byte
	}{
		{o.opt.DigestFile, export.DigestFile(d)},
		{o.opt.ImageNameDigestFile, export.NameDigestFile(tags, d)},
		{o.opt.ImageNameTagDigestFile, export.NameTagDigestFile(tags, d)},
		{o.opt.MetadataFile, meta},
	} {
		if f.path == "" {
			continue
		}
		if err := writeResult(f.path, f.data); err != nil {
			return err
		}
	}
	return nil
}

// writeResult writes a result file in place: it may be a mount, which cannot be
// replaced. Missing parents are made as kaniko makes them.
func writeResult(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the result file's directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("open the result file: %w", err)
	}
	return errors.Join(export.WriteInPlace(f, data), f.Close())
}
