// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher"
	fstypes "github.com/tonistiigi/fsutil/types"

	"hako/internal/tree"
)

// maxRead bounds what is read of a file at once. Dockerfiles and ignore files
// are small; a context archive is read in part.
const maxRead = 64 << 20

// reference is the result of a definition, computed when it is looked at.
type reference struct {
	def    *pb.Definition
	solver Solver
}

var _ client.Reference = (*reference)(nil)

// ToState implements [client.Reference].
func (r *reference) ToState() (llb.State, error) {
	if len(r.def.GetDef()) == 0 {
		return llb.Scratch(), nil
	}
	op, err := llb.NewDefinitionOp(r.def)
	if err != nil {
		return llb.State{}, err
	}
	return llb.NewState(op), nil
}

// Evaluate implements [client.Reference].
func (r *reference) Evaluate(ctx context.Context) error {
	_, err := r.solver.Evaluate(ctx, []*pb.Definition{r.def})
	return err
}

// tree computes the result and returns its files.
func (r *reference) tree(ctx context.Context) (tree.FS, error) {
	refs, err := r.solver.Evaluate(ctx, []*pb.Definition{r.def})
	if err != nil {
		return nil, err
	}
	if len(refs) != 1 {
		return nil, fmt.Errorf("evaluate: %d results for one definition", len(refs))
	}
	switch {
	case refs[0] == nil:
		return emptyTree{}, nil
	case refs[0].FS != nil:
		return refs[0].FS, nil
	}
	return refs[0].Tree(ctx)
}

// ReadFile implements [client.Reference].
func (r *reference) ReadFile(ctx context.Context, req client.ReadRequest) ([]byte, error) {
	fsys, err := r.tree(ctx)
	if err != nil {
		return nil, err
	}
	p, err := tree.Resolve(fsys, req.Filename, true)
	if err != nil {
		return nil, err
	}
	e, err := fsys.Lstat(p)
	if err != nil {
		return nil, err
	}
	if !e.Mode.IsRegular() {
		return nil, fmt.Errorf("read %q: not a regular file", req.Filename)
	}
	offset, length := int64(0), e.Size
	if req.Range != nil {
		offset = max(0, int64(req.Range.Offset))
		length = min(max(0, int64(req.Range.Length)), max(0, e.Size-offset))
	}
	if length > maxRead {
		return nil, fmt.Errorf("read %q: %d bytes, more than %d", req.Filename, length, int64(maxRead))
	}
	return readRange(fsys, p, offset, length)
}

func readRange(fsys tree.FS, p string, offset, length int64) (_ []byte, err error) {
	f, err := fsys.Open(p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	if _, err := io.CopyN(io.Discard, f, offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %q: %w", p, err)
	}
	dt, err := io.ReadAll(io.LimitReader(f, length))
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", p, err)
	}
	return dt, nil
}

// StatFile implements [client.Reference]. Links are followed.
func (r *reference) StatFile(ctx context.Context, req client.StatRequest) (*fstypes.Stat, error) {
	fsys, err := r.tree(ctx)
	if err != nil {
		return nil, err
	}
	p, err := tree.Resolve(fsys, req.Path, true)
	if err != nil {
		return nil, err
	}
	e, err := fsys.Lstat(p)
	if err != nil {
		return nil, err
	}
	return stat(e), nil
}

// ReadDir implements [client.Reference].
func (r *reference) ReadDir(ctx context.Context, req client.ReadDirRequest) ([]*fstypes.Stat, error) {
	fsys, err := r.tree(ctx)
	if err != nil {
		return nil, err
	}
	p, err := tree.Resolve(fsys, req.Path, true)
	if err != nil {
		return nil, err
	}
	entries, err := fsys.ReadDir(p)
	if err != nil {
		return nil, err
	}
	var match *patternmatcher.PatternMatcher
	if req.IncludePattern != "" {
		if match, err = patternmatcher.New([]string{req.IncludePattern}); err != nil {
			return nil, fmt.Errorf("read directory %q: pattern %q: %w", req.Path, req.IncludePattern, err)
		}
	}
	var out []*fstypes.Stat
	for _, e := range entries {
		if match != nil {
			ok, err := match.MatchesOrParentMatches(e.Name())
			if err != nil {
				return nil, fmt.Errorf("read directory %q: %w", req.Path, err)
			}
			if !ok {
				continue
			}
		}
		out = append(out, stat(e))
	}
	return out, nil
}

// stat returns an entry as BuildKit describes files; the path is the name alone.
func stat(e tree.Entry) *fstypes.Stat {
	s := &fstypes.Stat{
		Path:     e.Name(),
		Mode:     uint32(e.Mode.FileMode()),
		Uid:      e.UID,
		Gid:      e.GID,
		Size:     e.Size,
		ModTime:  e.ModTime.UnixNano(),
		Linkname: e.Link,
		Devmajor: int64(e.Major),
		Devminor: int64(e.Minor),
	}
	for k, v := range e.Xattrs {
		if s.Xattrs == nil {
			s.Xattrs = map[string][]byte{}
		}
		s.Xattrs[k] = []byte(v)
	}
	return s
}

// emptyTree is the tree of "scratch".
type emptyTree struct{}

func (emptyTree) Lstat(p string) (tree.Entry, error) {
	if p == "" {
		return tree.Entry{Mode: tree.ModeDir | 0o755}, nil
	}
	return tree.Entry{}, &fs.PathError{Op: "lstat", Path: "/" + p, Err: fs.ErrNotExist}
}

func (emptyTree) ReadDir(p string) ([]tree.Entry, error) {
	if p == "" {
		return nil, nil
	}
	return nil, &fs.PathError{Op: "readdir", Path: "/" + p, Err: fs.ErrNotExist}
}

func (emptyTree) Open(p string) (io.ReadCloser, error) {
	return nil, &fs.PathError{Op: "open", Path: "/" + p, Err: fs.ErrNotExist}
}
