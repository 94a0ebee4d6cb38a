// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// A DebianVariant is a Debian root by what is installed on top of a minimal one.
type DebianVariant string

// The Debian roots of the tests: a minimal one, and one of a gigabyte with
// setuid programs, hard links and file capabilities.
const (
	DebianMinimal DebianVariant = "minbase"
	DebianLarge   DebianVariant = "large"
)

const largePackages = "build-essential,git,perl,python3,sudo,passwd,iputils-ping,libcap2-bin,openssh-client,cmake,gdb,default-jdk-headless"

// Debian returns an image of a Debian root. The root is made once, with the
// package sources of this machine, and kept under .cache: sources of packages
// are the machine's business and stand in no file of the repository.
func (r *Rig) Debian(ctx context.Context, variant DebianVariant) (v1.Image, error) {
	path := r.Cache("debian-" + string(variant) + ".tar")
	if err := makeDebian(ctx, path, variant); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return os.Open(path) }
	l, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.DockerLayer), tarball.WithCompressedCaching, tarball.WithCompressionLevel(1))
	if err != nil {
		return nil, fmt.Errorf("read debian root: %w", err)
	}
	cf := &v1.ConfigFile{OS: "linux", Architecture: "amd64", Config: v1.Config{Env: []string{basePath}, Cmd: []string{"bash"}}}
	img, err := mutate.ConfigFile(empty.Image, cf)
	if err != nil {
		return nil, fmt.Errorf("set config: %w", err)
	}
	return mutate.Append(img, mutate.Addendum{Layer: l, History: v1.History{CreatedBy: "debian " + string(variant), Created: v1.Time{Time: baseTime()}}})
}

// PushDebian pushes a Debian root as debian:VARIANT to the rig's registry.
func (r *Rig) PushDebian(ctx context.Context, variant DebianVariant) error {
	img, err := r.Debian(ctx, variant)
	if err != nil {
		return err
	}
	return r.push(ctx, "debian:"+string(variant), img)
}

// makeDebian runs mmdebstrap unless the root is there. Test binaries run side
// by side, so the file is made under a lock and moved into place.
func makeDebian(ctx context.Context, path string, variant DebianVariant) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make debian root: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("make debian root: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock debian root: %w", err)
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	sources, err := debianSources()
	if err != nil {
		return err
	}
	part := path + ".part.tar"
	defer func() { _ = os.Remove(part) }()
	args := []string{"--variant=minbase", "--format=tar", "--quiet"}
	if variant == DebianLarge {
		args = append(args, "--include="+largePackages)
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, "", part, "-")...)
	cmd.Stdin = bytes.NewReader(sources)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make debian root: %w\n%s", err, out)
	}
	return os.Rename(part, path)
}

// debianSources reads this machine's package sources.
func debianSources() ([]byte, error) {
	for _, path := range []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"} {
		data, err := os.ReadFile(path)
		if err == nil && len(bytes.TrimSpace(data)) > 0 {
			return data, nil
		}
	}
	return nil, fmt.Errorf("make debian root: no package sources in /etc/apt")
}

// DebianPod returns a container image of a Debian root that also holds hako.
func (p *Podman) DebianPod(ctx context.Context, variant DebianVariant) (string, error) {
	base, err := p.rig.Debian(ctx, variant)
	if err != nil {
		return "", err
	}
	return p.image(ctx, "localhost/debian-"+string(variant), base, []string{"/kaniko/executor"})
}
