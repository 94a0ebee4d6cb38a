// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"context"
	"errors"
	"os"

	"hako/internal/layer"
	"hako/internal/source"
	"hako/internal/store"
)

// An attempt is what a build that begins again knows of those before.
type attempt struct {
	// distrust are names of caches of which something could not be had.
	distrust map[string]bool
	// input is standard input as a build context; nil if it is read only once.
	input *keptInput
}

// A keptInput is a build context from standard input, which can be read only
// once, in a session of its own, so that it is there for the next attempt.
type keptInput struct {
	isRead  bool
	archive *layer.Archive // nil: it is text
	text    []byte
	end     func() error
}

func (k *keptInput) close() error {
	var errs []error
	if k.archive != nil {
		errs = append(errs, k.archive.Close())
	}
	if k.end != nil {
		errs = append(errs, k.end())
	}
	return errors.Join(errs...)
}

// stdin reads standard input as a build context.
func (f *fetcher) stdin(ctx context.Context, text *[]byte) (*layer.Archive, error) {
	k := f.input
	if k == nil {
		return f.readStdin(ctx, f.store, text)
	}
	if !k.isRead {
		st, end, err := f.store.Session()
		if err != nil {
			return nil, err
		}
		k.end = end
		if k.archive, err = f.readStdin(ctx, st, text); err != nil {
			return nil, err
		}
		k.isRead = true
		if text != nil {
			k.text = *text
		}
	}
	if text != nil {
		*text = bytes.Clone(k.text)
	}
	return k.archive, nil
}

func (f *fetcher) readStdin(ctx context.Context, st *store.Store, text *[]byte) (*layer.Archive, error) {
	if file, ok := f.opt.Stdin.(*os.File); ok {
		return source.OpenArchive(ctx, st, file, text)
	}
	return source.ReadArchive(ctx, st, f.opt.Stdin, nil, text)
}

// keeps tells whether what was read there stays open for the next attempt.
func (f *fetcher) keeps(address string) bool { return f.input != nil && isStdin(address) }

// isStdin tells whether a context is read from standard input.
func isStdin(address string) bool { return address == stdinContext || address == tarStdin }
