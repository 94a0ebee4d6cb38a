// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"hako/internal/layer"
	"hako/internal/store"
)

// maxText bounds what is taken for a Dockerfile.
const maxText = 16 << 20

// A Remote is a file elsewhere. Its errors show no secrets.
type Remote interface {
	// Open returns the file from its start.
	Open(ctx context.Context) (io.ReadCloser, error)
	// String returns what to call it, without secrets.
	String() string
}

// FetchArchive reads a tar from elsewhere as a build context. What may pass by
// itself, also in the middle of the content, is tried again. If text is not nil
// and the file is no archive, *text is the file.
func FetchArchive(ctx context.Context, st *store.Store, from Remote, text *[]byte) (*layer.Archive, error) {
	var a *layer.Archive
	err := retry(ctx, maxAttempts, firstDelay, func() (err error) {
		body, err := from.Open(ctx)
		if err != nil {
			return err
		}
		defer body.Close()
		in := &sourceReader{r: body}
		a, err = ReadArchive(ctx, st, in, nil, text)
		if in.err != nil && err != nil {
			return transportError(in.err)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", from, err)
	}
	return a, nil
}

// OpenArchive reads a tar in an open file, which has to stay open.
func OpenArchive(ctx context.Context, st *store.Store, f *os.File, text *[]byte) (*layer.Archive, error) {
	var again layer.Source
	if at, err := f.Seek(0, io.SeekCurrent); err == nil && at == 0 {
		if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
			again = layer.FileSource{File: f}
		}
	}
	return ReadArchive(ctx, st, f, again, text)
}

// ReadArchive is [layer.NewArchive] with errors that say what to do. If text is
// not nil and r is no archive, *text is all of it.
func ReadArchive(ctx context.Context, st *store.Store, r io.Reader, again layer.Source, text *[]byte) (*layer.Archive, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(head) == 0 {
		return nil, &ArchiveError{Err: errEmpty}
	}
	if text != nil && !layer.IsArchive(head) {
		*text, err = io.ReadAll(io.LimitReader(in, maxText+1))
		if err == nil && len(*text) > maxText {
			err = &ArchiveError{Err: layer.ErrNoArchive}
		}
		return nil, err
	}
	a, err := layer.NewArchive(ctx, st, in, again)
	if err != nil {
		return nil, &ArchiveError{Err: err}
	}
	return a, nil
}

var errEmpty = errors.New("it is empty")

// An ArchiveError is returned for an archive that cannot be a build context.
type ArchiveError struct{ Err error }

func (e *ArchiveError) Error() string {
	if x, ok := errors.AsType[*layer.EscapeError](e.Err); ok {
		return fmt.Sprintf("entry %q leaves the build context", x.Name)
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *ArchiveError) Unwrap() error { return e.Err }

// Explain tells what to do.
func (e *ArchiveError) Explain() string {
	switch {
	case errors.Is(e.Err, errEmpty):
		return " why     there is nothing to read: what was to write it may have failed\n try     tar -czf - -C DIRECTORY . | hako build … -"
	case errors.Is(e.Err, layer.ErrNoArchive):
		return " try     tar -czf context.tar.gz -C DIRECTORY .   makes an archive of a directory"
	case errors.Is(e.Err, layer.ErrCutOff):
		return " why     what made or copied the archive stopped in the middle; the image would miss files\n try     make or fetch it again"
	case errors.Is(e.Err, layer.ErrTooManyFiles):
		return " why     the names of an archive are kept in memory while it is read\n try     leave out what the build does not need, or build from a directory"
	case errors.Is(e.Err, layer.ErrWindow):
		return " try     compress it with a smaller window: zstd --long=27 or less, xz -9 or less"
	}
	if _, ok := errors.AsType[*layer.EscapeError](e.Err); ok {
		return " why     whoever unpacked it as it is written would write outside: such an archive is broken, or an attack\n" +
			" try     tar -czf context.tar.gz -C DIRECTORY .   makes one with names below the directory"
	}
	return ""
}

const (
	maxAttempts = 5
	firstDelay  = 500 * time.Millisecond
)

// retry calls do until it succeeds, fails for good, or has failed often enough.
func retry(ctx context.Context, attempts int, delay time.Duration, do func() error) error {
	for n := 1; ; n++ {
		err := do()
		var again *passingError
		if err == nil || n >= attempts || ctx.Err() != nil || !errors.As(err, &again) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(max(delay<<(n-1), again.after)):
		}
	}
}
