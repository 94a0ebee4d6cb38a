// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"context"
	"fmt"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// hakoImage adds a layer with hako to a base, or to nothing.
func (r *Rig) hakoImage(base v1.Image, names []string) (v1.Image, error) {
	program, err := os.ReadFile(r.HakoBin)
	if err != nil {
		return nil, fmt.Errorf("read hako: %w", err)
	}
	entries := []entry{withMode(0o777, dir("kaniko"))}
	first := strings.TrimPrefix(names[0], "/")
	entries = append(entries, entry{name: first, data: program, mode: 0o755})
	for _, n := range names[1:] {
		entries = append(entries, withMode(0o755, hardlink(strings.TrimPrefix(n, "/"), first)))
	}
	l, err := layerOf(types.DockerLayer, entries)
	if err != nil {
		return nil, err
	}
	if base == nil {
		base = empty.Image
	}
	img, err := mutate.AppendLayers(base, l)
	if err != nil {
		return nil, fmt.Errorf("add hako to image: %w", err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Config.Entrypoint, cf.Config.Cmd = []string{names[0]}, nil
	return mutate.ConfigFile(img, cf)
}

// BusyboxPod returns a container image of the busybox base, without hako.
func (p *Podman) BusyboxPod(ctx context.Context) (string, error) {
	root, err := busyboxRoot(ctx, "")
	if err != nil {
		return "", err
	}
	img, err := imageSpec{layers: [][]entry{root}, docker: true}.build()
	if err != nil {
		return "", err
	}
	const ref = "localhost/busybox:pod"
	return ref, p.Load(ctx, ref, img)
}

// BusyboxHako returns a container image of the busybox base that holds hako
// under the given names: one in which a shell can start it.
func (p *Podman) BusyboxHako(ctx context.Context, names ...string) (string, error) {
	root, err := busyboxRoot(ctx, "")
	if err != nil {
		return "", err
	}
	img, err := imageSpec{layers: [][]entry{root}, docker: true}.build()
	if err != nil {
		return "", err
	}
	return p.image(ctx, "localhost/busyboxhako", img, names)
}
