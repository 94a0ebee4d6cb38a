// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package export

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
)

// DigestFile returns the content of --digest-file: the digest and no newline.
func DigestFile(d digest.Digest) []byte { return []byte(d) }

// NameDigestFile returns the content of --image-name-with-digest-file: a line
// "registry/repository@digest" per destination.
func NameDigestFile(tags []name.Tag, d digest.Digest) []byte {
	var b bytes.Buffer
	for _, t := range tags {
		fmt.Fprintf(&b, "%s@%s\n", t.Context().Name(), d)
	}
	return b.Bytes()
}

// NameTagDigestFile returns the content of --image-name-tag-with-digest-file: a
// line "registry/repository:tag@digest" per destination.
func NameTagDigestFile(tags []name.Tag, d digest.Digest) []byte {
	var b bytes.Buffer
	for _, t := range tags {
		fmt.Fprintf(&b, "%s@%s\n", t.Name(), d)
	}
	return b.Bytes()
}

// MetadataFile returns the content of --metadata-file, in the form and with the
// keys of docker build. Names are references, as they were given.
func (b *Bundle) MetadataFile(names []string) ([]byte, error) {
	root := b.Root().Desc
	m := map[string]any{
		"containerimage.digest":     root.Digest,
		"containerimage.descriptor": root,
	}
	if b.Index == nil {
		m["containerimage.config.digest"] = b.Images[0].Config.Desc.Digest
	}
	normal, err := normalNames(names)
	if err != nil {
		return nil, fmt.Errorf("make metadata: %w", err)
	}
	if len(normal) > 0 {
		list := make([]string, len(normal))
		for i, n := range normal {
			list[i] = n.String()
		}
		m["image.name"] = strings.Join(list, ",")
	}
	return json.MarshalIndent(m, "", "  ")
}

// WriteInPlace makes data the content of an open file. The file is never
// replaced: it may be a mount, like /dev/termination-log, or a pipe.
func WriteInPlace(f *os.File, data []byte) error {
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("write result file: %w", err)
	}
	if fi.Mode().IsRegular() {
		_, serr := f.Seek(0, io.SeekStart)
		if err := errors.Join(serr, f.Truncate(0)); err != nil {
			return fmt.Errorf("write result file: %w", err)
		}
	}
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("write result file: %w", err)
	}
	return nil
}
