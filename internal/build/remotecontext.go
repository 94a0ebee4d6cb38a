// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"hako/internal/layer"
	"hako/internal/source"
	"hako/internal/source/bucket"
	"hako/internal/store"
	"hako/internal/tree"
)

// A fetcher gets contexts that are no directories.
type fetcher struct {
	git   *gitOpener
	http  *http.Client
	store *store.Store
	opt   *Options
	input *keptInput // nil: standard input is read anew
}

// A remoteContext is a build context that is no directory.
type remoteContext struct {
	files    tree.FS // nil if the frontend fetches it
	name     string  // for messages
	executor bool
}

// isElsewhere reports whether a Dockerfile is a file of this machine, not of the
// context: docker wants its whole path for that, kaniko takes any that is there.
func (r *remoteContext) isElsewhere(name string) bool {
	return filepath.IsAbs(name) || r.executor && name != "" && exists(name)
}

// dockerfile names a Dockerfile that is in the context.
func (r *remoteContext) dockerfile(c *contexts, name string) error {
	if name == "" {
		name = "Dockerfile"
	}
	name = filepath.ToSlash(filepath.Clean(name))
	if r.files != nil {
		p, err := tree.Resolve(r.files, name, true)
		if err == nil {
			_, err = r.files.Lstat(p)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return &NoDockerfileError{Looked: []string{name + " in " + r.name}}
		}
		if err != nil {
			return err
		}
		c.locals[localDockerfile] = r.files
		c.nameDockerfile(name)
		return nil
	}
	c.filename, c.opts["filename"] = name, name
	return nil
}

// setRemote makes files the build context.
func (c *contexts) setRemote(files tree.FS, name string, opt *Options) {
	c.remote = &remoteContext{files: files, name: name, executor: opt.Executor}
	c.dir = name
	c.locals[localContext] = files
}

// The forms of contexts that are archives.
const (
	stdinContext = "-"
	tarScheme    = "tar://"
	tarStdin     = "tar://stdin"
)

// isFetched reports whether a named context is an archive that is fetched here,
// not by the frontend.
func isFetched(s string) bool { return strings.HasPrefix(s, tarScheme) || bucket.Is(s) }

// isDir reports whether a context is a directory by its form.
func isDir(s string) bool {
	return strings.HasPrefix(s, "dir://") || s != stdinContext && !strings.Contains(s, "://")
}

// openRemote opens an archive as the build context.
func (c *contexts) openRemote(ctx context.Context, opt *Options, f *fetcher) error {
	name := RedactContext(opt.Context)
	if isStdin(opt.Context) {
		name = "standard input"
	}
	var text *[]byte
	if isText := opt.Context == stdinContext || isWeb(opt.Context) && !opt.Executor; isText && (opt.Dockerfile == "" || opt.Executor && opt.Dockerfile == "Dockerfile") {
		text = &c.text
	}
	files, err := c.fetch(ctx, f, opt.Context, text)
	if err != nil {
		return fmt.Errorf("open the build context: %w", err)
	}
	if files, err = subDir(files, opt.ContextSubPath); err != nil {
		return err
	}
	c.setRemote(files, name, opt)
	return nil
}

// subDir returns the part of a context that --context-sub-path names.
func subDir(files tree.FS, sub string) (tree.FS, error) {
	if sub == "" {
		return files, nil
	}
	if !filepath.IsLocal(sub) {
		return nil, outsideError(sub)
	}
	p, err := tree.Resolve(files, filepath.ToSlash(filepath.Clean(sub)), true)
	if err != nil {
		return nil, err
	}
	e, err := files.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !e.Mode.IsDir() {
		return nil, fmt.Errorf("--context-sub-path=%s: the build context has no such directory", sub)
	}
	return tree.Sub(files, p), err
}

func isWeb(s string) bool {
	return strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://")
}

// fetch reads an archive from where address says. If text is not nil, the file
// may be no archive, and becomes *text.
func (c *contexts) fetch(ctx context.Context, f *fetcher, address string, text *[]byte) (tree.FS, error) {
	a, err := c.archive(ctx, f, address, text)
	if err != nil {
		return nil, err
	}
	if a == nil { // there is text
		return tree.NewOverlay(nil), nil
	}
	if !f.keeps(address) {
		c.closers = append(c.closers, a)
	}
	return a, nil
}

func (c *contexts) archive(ctx context.Context, f *fetcher, address string, text *[]byte) (*layer.Archive, error) {
	switch {
	case isStdin(address):
		a, err := f.stdin(ctx, text)
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		return a, nil
	case strings.HasPrefix(address, tarScheme):
		return c.openTar(ctx, f, address)
	case bucket.Is(address):
		from, err := bucket.Open(address, bucket.Options{HTTP: f.http, Getenv: f.opt.Env.Get})
		if err != nil {
			return nil, err
		}
		return source.FetchArchive(ctx, f.store, from, nil)
	case isWeb(address):
		return source.FetchArchive(ctx, f.store, &source.WebFile{Client: f.http, URL: address}, text)
	}
	return nil, &UnknownContextError{Context: RedactContext(address)}
}

// openTar opens the file that tar://PATH names, which stays open.
func (c *contexts) openTar(ctx context.Context, f *fetcher, address string) (*layer.Archive, error) {
	file, err := os.Open(strings.TrimPrefix(address, tarScheme))
	if err != nil {
		return nil, err
	}
	c.closers = append(c.closers, file)
	if fi, err := file.Stat(); err == nil && fi.IsDir() {
		return nil, fmt.Errorf("%s is a directory: dir:// is for those", address)
	}
	a, err := source.OpenArchive(ctx, f.store, file, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", address, err)
	}
	return a, nil
}

// An UnknownContextError is returned for a context whose form has no meaning.
type UnknownContextError struct{ Context string }

func (e *UnknownContextError) Error() string {
	scheme, _, _ := strings.Cut(e.Context, "://")
	return fmt.Sprintf("%q: %s:// is no form of a build context", e.Context, scheme)
}

// Explain lists the forms.
func (e *UnknownContextError) Explain() string {
	return " near    PATH, dir://PATH, tar://PATH, -, git://HOST/PATH#REF, https://HOST/PATH.git#REF,\n" +
		"         https://HOST/FILE.tar.gz, gs://BUCKET/OBJECT, s3://BUCKET/KEY"
}

// RedactContext returns a context without the credentials that a URL may hold: its
// user, and its query, which may be a signature.
func RedactContext(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return s
	}
	host, path, hasPath := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = "xxxxx@" + host[i+1:]
	}
	path, fragment, hasFragment := strings.Cut(path, "#")
	if at, _, ok := strings.Cut(path, "?"); ok {
		path = at + "?xxxxx"
	}
	if hasPath {
		host += "/" + path
	}
	if hasFragment {
		host += "#" + fragment
	}
	return scheme + "://" + host
}
