// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package faults

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// pushBroken pushes base images that no good builder would have made.
func pushBroken(ctx context.Context, registry string) error {
	ok := &tar.Header{Name: "ok", Size: 3}
	for ref, headers := range map[string][]*tar.Header{
		"dotdot":     {ok, {Name: "a/../../escaped", Size: 3}},
		"linkdotdot": {ok, {Typeflag: tar.TypeLink, Name: "link", Linkname: "../../etc/passwd"}},
		"absolute":   {{Name: "/abs/file", Size: 3}, {Typeflag: tar.TypeLink, Name: "/abs/link", Linkname: "/abs/file"}},
		// An entry through a link that leads out of the root, if not resolved in it.
		"escaping": {
			{Typeflag: tar.TypeDir, Name: "escape-dir/"},
			{Typeflag: tar.TypeSymlink, Name: "exit", Linkname: "/../../../../escape-dir"},
			{Name: "exit/file", Size: 3},
		},
		"wrongdiffid": {ok},
		"kaniko":      {{Typeflag: tar.TypeDir, Name: "kaniko/"}, {Name: "kaniko/executor", Size: 3}},
	} {
		img, err := imageOf(headers)
		if err != nil {
			return err
		}
		if ref == "wrongdiffid" {
			if img, err = withWrongDiffID(img); err != nil {
				return err
			}
		}
		tag, err := name.ParseReference(registry+"/broken/"+ref, name.Insecure)
		if err != nil {
			return err
		}
		if err := remote.Write(tag, img, remote.WithContext(ctx)); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
	}
	return nil
}

func imageOf(headers []*tar.Header) (v1.Image, error) {
	data, err := archive(headers)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	return mutate.ConfigFile(img, cf)
}

func withWrongDiffID(img v1.Image) (v1.Image, error) {
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.RootFS.DiffIDs[0] = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("12", 32)}
	return mutate.ConfigFile(img, cf)
}

// archive writes headers as a tar; files hold as many x.
func archive(headers []*tar.Header) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range headers {
		c := *h
		c.Mode, c.ModTime, c.Format = 0o755, time.Unix(1e9, 0), tar.FormatPAX
		if err := tw.WriteHeader(&c); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(tw, strings.Repeat("x", int(h.Size))); err != nil {
			return nil, err
		}
	}
	err := tw.Close()
	return buf.Bytes(), err
}

// prepare plants what no text can hold.
func prepare(t *testing.T, p *place, what string) {
	t.Helper()
	name, value, _ := strings.Cut(what, " ")
	bctx := filepath.Join(p.dir, "context")
	var err error
	switch name {
	case "whiteout-file":
		err = writeFile(filepath.Join(bctx, "dir", ".wh.name"), "x", 0o644)
	case "whiteout-tar":
		err = writeArchive(filepath.Join(bctx, "a.tar.gz"), []*tar.Header{{Name: "dir/.wh.name", Size: 1}})
	case "dotdot-tar":
		err = writeArchive(filepath.Join(bctx, "a.tar.gz"), []*tar.Header{{Name: "../../escaped", Size: 1}})
	case "cut-tar":
		err = writeArchive(filepath.Join(bctx, "a.tar.gz"), []*tar.Header{{Name: "file", Size: 1 << 20}})
		if err == nil {
			err = os.Truncate(filepath.Join(bctx, "a.tar.gz"), 900)
		}
	case "random": // SIZE bytes that do not compress
		var size int
		if _, err = fmt.Sscan(value, &size); err == nil {
			data := make([]byte, size)
			_, _ = rand.Read(data)
			err = os.WriteFile(filepath.Join(bctx, "random"), data, 0o644)
		}
	case "host": // the front is known by this name
		_, port, _ := strings.Cut(p.front, ":")
		p.front = value + ":" + port
		p.rewrite(t)
	case "link":
		err = errors.Join(os.Mkdir(filepath.Join(bctx, "links"), 0o755), os.Symlink("/srv", filepath.Join(bctx, "links", "out")))
	case "shrinking":
		err = shrink(t, filepath.Join(bctx, "big"), filepath.Join(p.dir, "store"))
	default:
		t.Fatalf("nothing known to prepare as %q", what)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func writeArchive(path string, headers []*tar.Header) error {
	data, err := archive(headers)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	_, err = z.Write(data)
	return errors.Join(err, z.Close(), os.WriteFile(path, buf.Bytes(), 0o644))
}

// shrink makes a large file which loses its end once a layer is being written
// to the store.
func shrink(t *testing.T, path, store string) error {
	t.Helper()
	const size = 4 << 30
	if err := writeFile(path, "", 0o644); err != nil {
		return err
	}
	if err := os.Truncate(path, size); err != nil {
		return err
	}
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
			if holdsData(store) {
				_ = os.Truncate(path, 1000)
				return
			}
		}
	}()
	return nil
}

// holdsData reports whether a layer has begun to be written below dir: the base
// is empty in that case.
func holdsData(dir string) bool {
	found := false
	_ = filepath.Walk(dir, func(_ string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() && fi.Size() > 1<<10 {
			found = true
		}
		return nil
	})
	return found
}
