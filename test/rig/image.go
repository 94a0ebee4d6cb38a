// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package rig

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// baseTime is the time of every file in a base image, unless it says otherwise.
func baseTime() time.Time { return time.Date(2019, 6, 5, 4, 3, 2, 0, time.UTC) }

// An entry is one tar entry of a base image. Its type follows from what is
// set: a name ending in a slash is a directory, a symlink or hard link has a
// target, a device has a kind, everything else is a file.
type entry struct {
	name     string
	mode     int64 // 0 means 0755 for a directory, 0644 for a file
	uid, gid int
	data     []byte
	symlink  string
	hardlink string
	device   byte // tar.TypeChar, tar.TypeBlock or tar.TypeFifo
	major    int64
	minor    int64
	time     time.Time
	xattrs   map[string]string
}

func (e entry) header() *tar.Header {
	h := &tar.Header{
		Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.gid,
		ModTime: baseTime(), Typeflag: tar.TypeReg, Size: int64(len(e.data)), Format: tar.FormatPAX,
	}
	if !e.time.IsZero() {
		h.ModTime = e.time
	}
	mode := int64(0o644)
	switch {
	case strings.HasSuffix(e.name, "/"):
		h.Typeflag, mode = tar.TypeDir, 0o755
	case e.symlink != "":
		h.Typeflag, h.Linkname, mode = tar.TypeSymlink, e.symlink, 0o777
	case e.hardlink != "":
		h.Typeflag, h.Linkname = tar.TypeLink, e.hardlink
	case e.device != 0:
		h.Typeflag, h.Devmajor, h.Devminor = e.device, e.major, e.minor
	}
	if h.Mode == 0 {
		h.Mode = mode
	}
	for k, v := range e.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	return h
}

// dir, file and link make the most frequent entries.
func dir(name string) entry              { return entry{name: name + "/"} }
func file(name, data string) entry       { return entry{name: name, data: []byte(data)} }
func script(name, data string) entry     { return entry{name: name, data: []byte(data), mode: 0o755} }
func symlink(name, target string) entry  { return entry{name: name, symlink: target} }
func hardlink(name, target string) entry { return entry{name: name, hardlink: target} }
func whiteout(name string) entry {
	return entry{name: path.Join(path.Dir(name), ".wh."+path.Base(name))}
}
func opaque(dir string) entry              { return entry{name: dir + "/.wh..wh..opq"} }
func owned(uid, gid int, e entry) entry    { e.uid, e.gid = uid, gid; return e }
func withMode(mode int64, e entry) entry   { e.mode = mode; return e }
func withXattr(k, v string, e entry) entry { e.xattrs = map[string]string{k: v}; return e }

// layerOf writes entries, in their order, as a layer.
func layerOf(media types.MediaType, entries []entry) (v1.Layer, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := tw.WriteHeader(e.header()); err != nil {
			return nil, fmt.Errorf("write header of %q: %w", e.name, err)
		}
		if _, err := tw.Write(e.data); err != nil {
			return nil, fmt.Errorf("write %q: %w", e.name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("end layer: %w", err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(media))
}

// An imageSpec is a base image: its layers and its config, without the parts
// that follow from the layers.
type imageSpec struct {
	layers [][]entry
	config v1.ConfigFile
	docker bool // Docker's media types, OCI's otherwise
}

func (s imageSpec) build() (v1.Image, error) {
	manifest, conf, media := types.OCIManifestSchema1, types.OCIConfigJSON, types.OCILayer
	if s.docker {
		manifest, conf, media = types.DockerManifestSchema2, types.DockerConfigJSON, types.DockerLayer
	}
	cf := s.config
	if cf.Architecture == "" {
		cf.Architecture = "amd64"
	}
	cf.OS = "linux"
	cf.RootFS = v1.RootFS{Type: "layers"}
	if cf.Created.IsZero() {
		cf.Created = v1.Time{Time: baseTime()}
	}
	img, err := mutate.ConfigFile(mutate.ConfigMediaType(mutate.MediaType(empty.Image, manifest), conf), &cf)
	if err != nil {
		return nil, fmt.Errorf("set config: %w", err)
	}
	for i, entries := range s.layers {
		l, err := layerOf(media, entries)
		if err != nil {
			return nil, err
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:     l,
			MediaType: media,
			History:   v1.History{Created: v1.Time{Time: baseTime()}, CreatedBy: fmt.Sprintf("base layer %d", i), Comment: "rig"},
		})
		if err != nil {
			return nil, fmt.Errorf("append layer: %w", err)
		}
	}
	return img, nil
}

// push sends an image to the rig's registry under repository:tag.
func (r *Rig) push(ctx context.Context, ref string, img v1.Image) error {
	tag, err := name.ParseReference(r.Registry+"/"+ref, name.Insecure)
	if err != nil {
		return fmt.Errorf("push base %s: %w", ref, err)
	}
	if err := remote.Write(tag, img, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push base %s: %w", ref, err)
	}
	return nil
}

// pushIndex sends an index, with its images, to the rig's registry.
func (r *Rig) pushIndex(ctx context.Context, ref string, idx v1.ImageIndex) error {
	tag, err := name.ParseReference(r.Registry+"/"+ref, name.Insecure)
	if err != nil {
		return fmt.Errorf("push base %s: %w", ref, err)
	}
	if err := remote.WriteIndex(tag, idx, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("push base %s: %w", ref, err)
	}
	return nil
}
