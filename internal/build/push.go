// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"hako/internal/diff"
	"hako/internal/export"
	"hako/internal/progress"
)

// PushOptions say which finished image is pushed, and where to.
type PushOptions struct {
	// Image is an OCI layout directory, or an archive of one or as "docker save"
	// writes it: PATH, or PATH:NAME where there are several images.
	Image        string
	Destinations []string
	// DigestFile and the like are as in Options.
	DigestFile             string
	ImageNameDigestFile    string
	ImageNameTagDigestFile string
	Registry               Registry
	Env                    Env
}

// Push sends an image that lies in a layout or an archive, byte for byte as it
// is there, so that its digest stays. The tags come last.
func Push(ctx context.Context, opt PushOptions, sink progress.Sink) (_ []Pushed, err error) {
	var tags []name.Tag
	for _, d := range opt.Destinations {
		tag, err := destination(d)
		if err != nil {
			return nil, err
		}
		tags = append(tags, tag)
	}
	holder, end, err := openStored(opt.Image)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", opt.Image, err)
	}
	defer func() { err = errors.Join(err, end()) }()
	image, err := export.ReadStored(ctx, holder)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", opt.Image, err)
	}
	client, err := registryClient(opt.Registry, opt.Env, newTransfers(sink).tune)
	if err != nil {
		return nil, err
	}
	task := progress.Start(sink, digest.FromString("push "+tags[0].Name()), "push "+tags[0].Name())
	defer func() { task.Done(err) }()
	p := &tally{Pusher: client, ignoreImmutable: opt.Registry.IgnoreImmutable}
	if err := image.PushParts(ctx, p, tags); err != nil {
		return nil, err
	}
	p.report(task, tags, image.Layers())
	done, err := image.PushTags(ctx, p, tags)
	var pushed []Pushed
	for _, t := range p.set(task, done) {
		pushed = append(pushed, Pushed{Ref: t.Name(), Digest: image.Root.Desc.Digest})
	}
	if err != nil {
		return pushed, err
	}
	return pushed, opt.resultFiles(tags, image.Root.Desc.Digest)
}

// resultFiles writes what a build would have written.
func (opt *PushOptions) resultFiles(tags []name.Tag, d digest.Digest) error {
	for _, f := range []struct {
		path string
		data []byte
	}{
		{opt.DigestFile, export.DigestFile(d)},
		{opt.ImageNameDigestFile, export.NameDigestFile(tags, d)},
		{opt.ImageNameTagDigestFile, export.NameTagDigestFile(tags, d)},
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

// openStored opens an OCI layout or an archive. What follows the last colon is
// a name in it, unless there is a file of the whole name.
func openStored(path string) (export.Holder, func() error, error) {
	ref := ""
	fi, err := os.Stat(path)
	if i := strings.LastIndexByte(path, ':'); errors.Is(err, fs.ErrNotExist) && i > 0 {
		// An image's name has colons of its own: take the first that leads to a file.
		for j, c := range path {
			if st, serr := os.Stat(path[:j]); c == ':' && serr == nil {
				path, ref, fi, err = path[:j], path[j+1:], st, nil
				break
			}
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if fi.IsDir() {
		dir, err := os.OpenRoot(path)
		if err != nil {
			return nil, nil, err
		}
		if _, err := dir.Stat("index.json"); err != nil {
			return nil, nil, errors.Join(errors.New("it is no OCI layout: it has no index.json"), dir.Close())
		}
		return diff.OpenLayout(dir, ref), dir.Close, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	if err := checkPacked(f); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	holder, err := diff.OpenArchive(f, fi.Size(), ref)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return holder, f.Close, nil
}

// checkPacked refuses an archive that is compressed as a whole: blobs are read
// from the middle of it.
func checkPacked(r io.ReaderAt) error {
	magic := make([]byte, 4)
	n, _ := r.ReadAt(magic, 0)
	for tool, m := range map[string][]byte{"gunzip": {0x1f, 0x8b}, "unzstd": {0x28, 0xb5, 0x2f, 0xfd}, "unxz": {0xfd, '7', 'z'}, "bunzip2": []byte("BZh")} {
		if bytes.HasPrefix(magic[:n], m) {
			return fmt.Errorf("the archive is compressed as a whole: unpack it first with %s", tool)
		}
	}
	return nil
}
