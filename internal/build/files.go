// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"hako/internal/export"
)

// writeFiles writes archives, layouts and directories.
func (o *outputs) writeFiles(ctx context.Context, p *product) error {
	created := time.Time{}
	if t := o.opt.SourceDateEpoch; t != nil {
		created = *t
	}
	if path := p.path(o.opt.OCILayoutPath); path != "" {
		if err := o.inDir(path, func(dir *os.Root) error {
			return p.bundle.WriteLayout(ctx, dir, export.LayoutOptions{Created: created})
		}); err != nil {
			return err
		}
	}
	if path := p.path(o.opt.TarPath); path != "" {
		docker, err := o.bundle(p, o.opt.OCIMediaTypes == nil || !*o.opt.OCIMediaTypes)
		if err != nil {
			return err
		}
		names := p.Names
		if len(names) == 0 {
			names = []string{"unset-repo/unset-image-name"} // as kaniko names it
		}
		if err := o.inFile(path, func(w io.Writer) error {
			return docker.WriteDocker(ctx, w, export.LayoutOptions{Names: names, Created: created})
		}); err != nil {
			return err
		}
	}
	for _, out := range o.opt.Outputs {
		if err := o.output(ctx, p, out, created); err != nil {
			return err
		}
	}
	return nil
}

// output writes one --output.
func (o *outputs) output(ctx context.Context, p *product, out Output, created time.Time) error {
	b, dest := p.bundle, p.path(out.Dest)
	lo := export.LayoutOptions{Names: p.Names, Created: created}
	fo := export.FilesOptions{Epoch: o.opt.SourceDateEpoch}
	switch {
	case out.Type == "local":
		return o.inDir(dest, func(dir *os.Root) error { return b.WriteDir(ctx, dir, fo) })
	case out.Type == "tar":
		return o.inFile(dest, func(w io.Writer) error { return b.WriteTar(ctx, w, fo) })
	case out.Type == "oci" && out.Attrs["tar"] == "false":
		return o.inDir(dest, func(dir *os.Root) error { return b.WriteLayout(ctx, dir, lo) })
	case out.Type == "oci":
		return o.inFile(dest, func(w io.Writer) error { return b.WriteLayoutTar(ctx, w, lo) })
	case out.Type == "docker":
		return o.inFile(dest, func(w io.Writer) error { return b.WriteDocker(ctx, w, lo) })
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
func (o *outputs) resultFiles(ctx context.Context) error {
	var named, tagged []byte
	for _, p := range o.products {
		var tags []name.Tag
		for _, n := range p.Names {
			if t, err := name.NewTag(n, name.WeakValidation); err == nil {
				tags = append(tags, t)
			}
		}
		named = append(named, export.NameDigestFile(tags, p.digest())...)
		tagged = append(tagged, export.NameTagDigestFile(tags, p.digest())...)
		if path := p.path(o.opt.DigestFile); path != "" {
			if err := o.writeDigest(ctx, path, p.digest()); err != nil {
				return err
			}
		}
		if path := p.path(o.opt.ImageIDFile); path != "" {
			if err := writeResult(path, []byte(p.imageID())); err != nil {
				return err
			}
		}
	}
	if o.index != "" {
		named = append(named, export.NameDigestFile(o.shared, o.index)...)
		tagged = append(tagged, export.NameTagDigestFile(o.shared, o.index)...)
	}
	meta, err := o.metadata()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		data []byte
	}{
		{o.opt.ImageNameDigestFile, named},
		{o.opt.ImageNameTagDigestFile, tagged},
		{o.opt.MetadataFile, meta},
	} {
		if f.path == "" {
			continue
		}
		if err := writeResult(f.path, f.data); err != nil {
			return err
		}
	}
	return o.writeBuilderOutput()
}

// metadata returns the build's facts; those of named targets stand under their
// names, as docker buildx bake writes them.
func (o *outputs) metadata() ([]byte, error) {
	all := map[string]json.RawMessage{}
	for _, p := range o.products {
		one, err := p.bundle.MetadataFile(p.Names)
		if err != nil || !p.isNamed {
			return one, err
		}
		all[p.Stage] = one
	}
	return json.MarshalIndent(all, "", "  ")
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
