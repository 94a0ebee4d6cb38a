// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
)

// warmed writes an image as kaniko's warmer does: of version 1.24 as an archive
// with the manifest beside it, of the fork as an OCI layout.
func warmed(t *testing.T, dir string, img v1.Image, isLayout bool) {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, d.String())
	if isLayout {
		p, err := layout.Write(to, empty.Index)
		if err == nil {
			err = p.AppendImage(img)
		}
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	tag, err := name.NewTag("example.com/base:1")
	if err == nil {
		err = tarball.WriteToFile(to, tag, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, err := img.RawManifest()
	if err == nil {
		err = os.WriteFile(to+".json", raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestDepotOfKaniko(t *testing.T) {
	t.Parallel()
	for name, isLayout := range map[string]bool{"archive": false, "layout": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			img, err := random.Image(5000, 3)
			if err != nil {
				t.Fatal(err)
			}
			warmed(t, dir, img, isLayout)
			if err := os.WriteFile(filepath.Join(dir, "sha256:"+digest.FromString("x").Encoded()), []byte("no tar"), 0o600); err != nil {
				t.Fatal(err)
			}
			d := openDepot(t, dir, DepotOptions{ReadOnly: true})
			m, err := img.Manifest()
			if err != nil {
				t.Fatal(err)
			}
			want, err := img.RawManifest()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := d.ReadAll(digest.FromBytes(want), 1<<20); err != nil || !bytes.Equal(got, want) {
				t.Errorf("manifest: %v", err)
			}
			if _, err := d.ReadAll(digest.Digest(m.Config.Digest.String()), 1<<20); err != nil {
				t.Errorf("config: %v", err)
			}
			for _, l := range m.Layers {
				r, err := d.Open(digest.Digest(l.Digest.String()), l.Size, 10)
				if err != nil {
					t.Errorf("layer: %v", err)
					continue
				}
				if n, err := io.Copy(io.Discard, r); n != l.Size-10 || err != nil {
					t.Errorf("layer: %d of %d bytes, %v", n, l.Size-10, err)
				}
				_ = r.Close()
			}
		})
	}
}

// What kaniko left broken is not used, and not touched.
func TestDepotOfKanikoBroken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	img, err := random.Image(5000, 1)
	if err != nil {
		t.Fatal(err)
	}
	warmed(t, dir, img, true)
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	l := m.Layers[0]
	files, err := filepath.Glob(filepath.Join(dir, "*/blobs/sha256", l.Digest.Hex))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[100] ^= 1
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	d := openDepot(t, dir, DepotOptions{})
	dg := digest.Digest(l.Digest.String())
	if _, err := d.Open(dg, l.Size, 0); err == nil || d.Has(dg, l.Size) {
		t.Error("a broken blob was opened")
	}
	if _, err := os.Stat(files[0]); err != nil {
		t.Error(err)
	}
}

func FuzzMembers(f *testing.F) {
	img, err := random.Image(50, 2)
	if err != nil {
		f.Fatal(err)
	}
	tag, err := name.NewTag("example.com/base:1")
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(tag, img, &b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:700])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, m := range members(bytes.NewReader(data)) {
			if m.off < 0 || m.size < 0 {
				t.Errorf("%q at %d of %d bytes", m.digest, m.off, m.size)
			}
			if _, err := digest.Parse(m.digest); err != nil {
				t.Error(err)
			}
		}
	})
}
