// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxTokenFile limits what is read of a token's or a key's file.
const maxTokenFile = 1 << 20

// A tokenFile is a file that somebody else renews while a build runs, such as
// the token of a service account. It is read through its directory, opened
// before another root can be in the way: kubelet changes a link there.
type tokenFile struct {
	path string
	dir  *os.Root
	last []byte // what it had when it was opened
}

func openTokenFile(path string) (*tokenFile, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return &tokenFile{path: path, dir: dir, last: b}, nil
}

// read returns what is in the file now.
func (t *tokenFile) read() ([]byte, error) {
	f, err := t.dir.Open(filepath.Base(t.path))
	if err != nil {
		// A link that leaves the directory: it cannot be followed any more.
		return t.last, nil //nolint:nilerr // a token that is too old is refused by whom it is shown to
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFile))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read %s: %w", t.path, err)
	}
	return b, nil
}

func (t *tokenFile) close() error { return t.dir.Close() }
