// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"hako/internal/source"
	"hako/internal/tree"
)

// names of the local sources that the frontend asks for.
const (
	localContext    = "context"
	localDockerfile = "dockerfile"
)

// maxDockerfile bounds a Dockerfile read from standard input.
const maxDockerfile = 16 << 20

// contexts are the trees that a build reads, opened before anything moves.
type contexts struct {
	locals   map[string]tree.FS
	layouts  map[string]*source.Layout
	opts     map[string]string // for the frontend: context:NAME, filename
	filename string            // of the Dockerfile, for messages
	dir      string            // of the context, for messages
	remote   *remoteContext    // a context that is no directory; nil if it is one
	text     []byte            // a Dockerfile in place of a context
	opened   []place
	closers  []io.Closer
}

// A place is a directory that a local source reads.
type place struct {
	path string // absolute, without links
	sw   *tree.Switch
}

// openContexts opens the build context, the Dockerfile and the named contexts.
func openContexts(ctx context.Context, opt *Options, f *fetcher) (_ *contexts, err error) {
	c := &contexts{locals: make(map[string]tree.FS), layouts: make(map[string]*source.Layout), opts: make(map[string]string)}
	defer func() {
		if err != nil {
			_ = c.close()
		}
	}()
	if err := c.openMain(ctx, opt, f); err != nil {
		return nil, err
	}
	if err := c.openDockerfile(ctx, opt, f); err != nil {
		return nil, err
	}
	for name, value := range opt.NamedContexts {
		if err := c.openNamed(ctx, name, value, f); err != nil {
			return nil, fmt.Errorf("open the build context %q: %w", name, err)
		}
	}
	return c, nil
}

// openMain opens the build context.
func (c *contexts) openMain(ctx context.Context, opt *Options, f *fetcher) error {
	isGit, err := c.openGit(ctx, opt, f.git)
	if err != nil || isGit {
		return err
	}
	if isDir(opt.Context) {
		return c.openDir(opt)
	}
	return c.openRemote(ctx, opt, f)
}

// close gives back what contexts take of the disk.
func (c *contexts) close() error {
	var errs []error
	for _, x := range c.closers {
		errs = append(errs, x.Close())
	}
	return errors.Join(errs...)
}

// openDir opens a directory as the build context.
func (c *contexts) openDir(opt *Options) error {
	dir := strings.TrimPrefix(opt.Context, "dir://")
	if sub := opt.ContextSubPath; sub != "" {
		if !filepath.IsLocal(sub) {
			return outsideError(sub)
		}
		dir = filepath.Join(dir, sub)
	}
	c.dir = dir
	fsys, err := c.open(dir)
	if err != nil {
		return fmt.Errorf("open the build context: %w", err)
	}
	c.locals[localContext] = fsys
	return nil
}

func outsideError(sub string) error {
	return fmt.Errorf("--context-sub-path=%s leads out of the build context", sub)
}

func (c *contexts) open(dir string) (tree.FS, error) {
	d, err := tree.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	path, err := filepath.Abs(dir)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	sw := tree.NewSwitch(d)
	c.opened = append(c.opened, place{path: path, sw: sw})
	return source.Projected(sw), nil
}

func (c *contexts) openDockerfile(ctx context.Context, opt *Options, f *fetcher) error {
	name := opt.Dockerfile
	switch {
	case c.text != nil: // the context is nothing else
		c.setDockerfile(c.text)
		return nil
	case name == "-":
		b, err := io.ReadAll(io.LimitReader(opt.Stdin, maxDockerfile))
		if err != nil {
			return fmt.Errorf("read the Dockerfile from standard input: %w", err)
		}
		c.setDockerfile(b)
		return nil
	case strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://"):
		file, err := source.FetchHTTP(ctx, f.http, f.store, name, source.HTTPOptions{Filename: "Dockerfile", MaxSize: maxDockerfile})
		if err != nil {
			return err
		}
		c.locals[localDockerfile] = file.FS
		name = "Dockerfile"
	case c.remote != nil && !c.remote.isElsewhere(name):
		return c.remote.dockerfile(c, name)
	default:
		path, err := findDockerfile(c.dir, name)
		if err != nil {
			return err
		}
		if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
			return c.readDockerfile(path)
		}
		fsys, err := c.open(filepath.Dir(path))
		if err != nil {
			return fmt.Errorf("open the Dockerfile's directory: %w", err)
		}
		c.locals[localDockerfile] = fsys
		name = filepath.Base(path)
	}
	c.nameDockerfile(name)
	return nil
}

// readDockerfile reads a pipe or a device, /dev/stdin for one.
func (c *contexts) readDockerfile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the Dockerfile: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDockerfile))
	if err != nil {
		return fmt.Errorf("read the Dockerfile: %w", err)
	}
	c.setDockerfile(b)
	return nil
}

// setDockerfile makes b the Dockerfile.
func (c *contexts) setDockerfile(b []byte) {
	c.locals[localDockerfile] = source.Bytes("Dockerfile", b)
	c.nameDockerfile("Dockerfile")
}

func (c *contexts) nameDockerfile(name string) {
	c.filename = name
	c.opts["filename"] = name
	if c.remote != nil {
		c.opts["dockerfilekey"] = localDockerfile // it is not in the context
	}
}

// findDockerfile returns where the Dockerfile is: as given, else in the context.
func findDockerfile(dir, name string) (string, error) {
	if name == "" {
		p := filepath.Join(dir, "Dockerfile")
		if _, err := os.Stat(p); errors.Is(err, fs.ErrNotExist) {
			if lower := filepath.Join(dir, "dockerfile"); exists(lower) {
				return lower, nil
			}
			return "", &NoDockerfileError{Looked: []string{p}}
		}
		return p, nil
	}
	looked := []string{name}
	if exists(name) {
		return name, nil
	}
	if !filepath.IsAbs(name) {
		p := filepath.Join(dir, name)
		if exists(p) {
			return p, nil
		}
		looked = append(looked, p)
	}
	return "", &NoDockerfileError{Looked: looked}
}

func exists(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && !fi.IsDir()
}

// A NoDockerfileError is returned when there is no Dockerfile.
type NoDockerfileError struct{ Looked []string }

func (e *NoDockerfileError) Error() string {
	return "there is no Dockerfile at " + strings.Join(e.Looked, " or ")
}

// Explain tells what to do.
func (e *NoDockerfileError) Explain() string {
	return " try     -f PATH, relative to here or to the build context, or -f - to read it from standard input"
}

// openNamed opens one --build-context. What is no directory or layout is the
// frontend's business: docker-image://, https:// and the like.
func (c *contexts) openNamed(ctx context.Context, name, value string, f *fetcher) error {
	key := "context:" + name
	if rest, ok := strings.CutPrefix(value, "oci-layout://"); ok {
		path, ref, _ := strings.Cut(rest, "@")
		tag := ""
		if ref == "" {
			if i := strings.LastIndexByte(path, ':'); i > strings.LastIndexByte(path, '/') {
				path, tag = path[:i], path[i+1:]
			}
		}
		return c.openLayout(key, name, path, ref, tag)
	}
	var (
		fsys tree.FS
		err  error
	)
	switch {
	case isFetched(value):
		fsys, err = c.fetch(ctx, f, value, nil)
	case isDir(value) && !isGitAddress(value):
		fsys, err = c.open(strings.TrimPrefix(value, "dir://"))
	default:
		c.opts[key] = value
		return nil
	}
	if err != nil {
		return err
	}
	c.locals[name] = fsys
	c.opts[key] = "local:" + name
	return nil
}

func (c *contexts) openLayout(key, name, path, ref, tag string) error {
	d, err := tree.OpenDir(path)
	if err != nil {
		return err
	}
	l, err := source.OpenLayout(d)
	if err != nil {
		return err
	}
	if ref == "" {
		img, err := l.Resolve(tag, nil)
		if err != nil {
			return err
		}
		ref = img.Digest.String()
	}
	c.layouts[name] = l
	c.opts[key] = fmt.Sprintf("oci-layout://%s@%s", name, ref)
	return nil
}

// moved tells the contexts on the volume at path that its content is in another
// directory now, which move returns.
func (c *contexts) moved(path string, move func() (string, error)) error {
	var at []*tree.Switch
	for _, p := range c.opened {
		if p.path == path {
			at = append(at, p.sw)
		}
	}
	return moveAll(at, move)
}

// moveAll stops all readers, then moves, then shows each the new place.
func moveAll(at []*tree.Switch, move func() (string, error)) error {
	var dir string
	inner := func() (err error) {
		dir, err = move()
		return err
	}
	for _, sw := range at {
		next := inner
		inner = func() error {
			return sw.Move(func() (tree.FS, error) {
				if err := next(); err != nil {
					return nil, err
				}
				return tree.OpenDir(dir)
			})
		}
	}
	return inner()
}
