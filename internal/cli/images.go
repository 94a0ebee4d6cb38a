// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/platforms"

	"hako/internal/build"
	"hako/internal/diff"
	"hako/internal/registry"
)

// compare runs "hako diff"; it returns whether the images are equal.
func compare(ctx context.Context, opt DiffOptions) (bool, error) {
	what, err := diff.ParseIgnore(opt.Ignore)
	if err != nil {
		return false, err
	}
	if opt.Platform != "" {
		p, err := platforms.Parse(opt.Platform)
		if err != nil {
			return false, fmt.Errorf("--platform: %w", err)
		}
		what.Platform = &p
	}
	client, err := build.RegistryClient(opt.Registry, opt.Env)
	if err != nil {
		return false, err
	}
	scratch, err := os.MkdirTemp("", "hako-diff-")
	if err != nil {
		return false, fmt.Errorf("make a directory for indexes: %w", err)
	}
	defer os.RemoveAll(scratch)
	o := opener{client: client, scratch: scratch}
	defer o.close()
	a, err := o.open(ctx, opt.A)
	if err != nil {
		return false, err
	}
	b, err := o.open(ctx, opt.B)
	if err != nil {
		return false, err
	}
	report, err := diff.Compare(ctx, a, b, what)
	if err != nil {
		return false, err
	}
	if opt.Format == "json" {
		if report == nil {
			report = diff.Report{} // "[]", not "null"
		}
		enc := json.NewEncoder(opt.Stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(report)
	} else {
		err = report.WriteText(opt.Stdout)
	}
	return len(report) == 0, err
}

// An opener opens images by what the user calls them.
type opener struct {
	client  *registry.Client
	scratch string
	ends    []func() error
}

func (o *opener) close() {
	for _, end := range o.ends {
		_ = end()
	}
}

// open reads the image that name leads to: oci:PATH, oci-archive:PATH,
// docker-archive:PATH, an existing path, or else a reference.
func (o *opener) open(ctx context.Context, name string) (*diff.Image, error) {
	blobs, err := o.blobs(name)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return diff.Load(ctx, name, blobs, o.scratch)
}

func (o *opener) blobs(name string) (diff.Blobs, error) {
	path, ref := name, ""
	scheme, rest, ok := strings.Cut(name, ":")
	switch {
	case ok && (scheme == "oci" || scheme == "oci-archive" || scheme == "docker-archive"):
		path = rest
		if _, err := os.Stat(path); err != nil {
			// The last part may be a tag: oci:DIR:TAG.
			if i := strings.LastIndexByte(rest, ':'); i > 0 {
				path, ref = rest[:i], rest[i+1:]
			}
		}
	default:
		if _, err := os.Stat(name); err != nil {
			r, err := registry.ParseReference(name)
			if err != nil {
				return nil, err
			}
			return diff.OpenRegistry(o.client, r), nil
		}
	}
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		dir, err := os.OpenRoot(path)
		if err != nil {
			return nil, err
		}
		o.ends = append(o.ends, dir.Close)
		return diff.OpenLayout(dir, ref), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	o.ends = append(o.ends, f.Close)
	return diff.OpenArchive(f, fi.Size(), ref)
}
