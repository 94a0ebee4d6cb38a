// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"hako/test/rig"
)

// A base is an image that workloads start from.
type base struct {
	ref    string
	layers []v1.Descriptor
}

// pushBase makes sure that the registry holds a base. A plan without layers
// gives busybox alone.
func (b *bench) pushBase(ctx context.Context, repo string, plan func() basePlan) (base, error) {
	ref, err := name.NewTag(b.registry.host+"/"+repo+":"+baseVersion, name.Insecure)
	if err != nil {
		return base{}, err
	}
	img, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		b.logf("making base %s, once", repo)
		if err := b.makeBase(ctx, ref, plan()); err != nil {
			return base{}, fmt.Errorf("make base %s: %w", repo, err)
		}
		if img, err = remote.Image(ref, remote.WithContext(ctx)); err != nil {
			return base{}, fmt.Errorf("read base %s: %w", repo, err)
		}
	}
	m, err := img.Manifest()
	if err != nil {
		return base{}, fmt.Errorf("read base %s: %w", repo, err)
	}
	return base{ref: ref.String(), layers: m.Layers}, nil
}

func (b *bench) makeBase(ctx context.Context, ref name.Tag, plan basePlan) error {
	system, err := b.systemEntries(ctx)
	if err != nil {
		return err
	}
	if len(plan.layers) == 0 {
		plan.layers = make([][]baseEntry, 1)
	}
	plan.layers[0] = append(system, plan.layers[0]...)
	layers, c := make([]v1.Layer, len(plan.layers)), newContent()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(2)
	for i, entries := range plan.layers {
		path := filepath.Join(b.rig.Dir, fmt.Sprintf("base-layer-%d", i))
		defer func() { _ = os.Remove(path) }()
		g.Go(func() (err error) {
			if gctx.Err() != nil {
				return gctx.Err()
			}
			layers[i], err = writeLayer(path, c, entries)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), layers...)
	if err != nil {
		return err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if img, err = mutate.ConfigFile(img, cf); err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithContext(ctx))
}

// systemEntries are what RUN needs: busybox and the writer of log text.
func (b *bench) systemEntries(ctx context.Context) ([]baseEntry, error) {
	busybox, err := os.ReadFile(rig.BusyboxPath)
	if err != nil {
		return nil, fmt.Errorf("read busybox (Debian package busybox-static): %w", err)
	}
	bin := filepath.Join(b.rig.Dir, "logtext")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "hako/test/bench/logtext")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build logtext: %w\n%s", err, out)
	}
	logtext, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	var list []baseEntry
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "usr", "usr/local", "usr/local/bin"} {
		list = append(list, baseEntry{name: d, kind: tar.TypeDir, mode: 0o755})
	}
	for _, applet := range []string{"sh", "touch", "echo", "ls", "cat"} {
		list = append(list, baseEntry{name: "bin/" + applet, kind: tar.TypeSymlink, link: "busybox", mode: 0o777})
	}
	return append(list,
		baseEntry{name: "bin/busybox", kind: tar.TypeReg, mode: 0o755, data: busybox},
		baseEntry{name: "usr/local/bin/logtext", kind: tar.TypeReg, mode: 0o755, data: logtext}), nil
}

// A fileLayer is a layer whose blob is a file.
type fileLayer struct {
	path           string
	digest, diffID v1.Hash
	size           int64
}

// writeLayer writes a layer as most images have them: compress/gzip, level 6.
func writeLayer(path string, c *content, entries []baseEntry) (_ *fileLayer, err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blob, diff := sha256.New(), sha256.New()
	zw, err := gzip.NewWriterLevel(io.MultiWriter(f, blob), 6)
	if err != nil {
		return nil, err
	}
	if err := c.write(io.MultiWriter(zw, diff), entries); err != nil {
		return nil, err
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	sum := func(b []byte) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(b)} }
	return &fileLayer{path: path, digest: sum(blob.Sum(nil)), diffID: sum(diff.Sum(nil)), size: info.Size()}, nil
}

func (l *fileLayer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *fileLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *fileLayer) Size() (int64, error)                { return l.size, nil }
func (l *fileLayer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
func (l *fileLayer) Compressed() (io.ReadCloser, error)  { return os.Open(l.path) }
func (l *fileLayer) Uncompressed() (io.ReadCloser, error) {
	return nil, fmt.Errorf("read layer %s: only its blob is at hand", l.digest)
}
