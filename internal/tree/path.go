// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// maxLinks is how many symbolic links one resolution follows before it gives
// up, as the kernel does (path_resolution(7): 40) but with room for images
// that were made where the limit was higher (securejoin's 255).
const maxLinks = 255

// ErrTooManyLinks is returned by [Resolve] for a loop of symbolic links.
var ErrTooManyLinks = errors.New("too many levels of symbolic links")

// Clean turns any slash-separated path into a path of a tree: relative to the
// root, clean, with ".." stopping at the root. "/", "." and "" give "".
func Clean(p string) string {
	return strings.TrimPrefix(path.Clean("/"+p), "/")
}

// Base returns the last component of a tree path; "" for the root.
func Base(p string) string { return p[strings.LastIndexByte(p, '/')+1:] }

// Parent returns the directory that holds p; "" for names in the root and for
// the root itself.
func Parent(p string) string {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return ""
	}
	return p[:i]
}

// Join appends one component, or a relative path, to a directory's path.
func Join(dir, name string) string {
	if dir == "" {
		return name
	}
	if name == "" {
		return dir
	}
	return dir + "/" + name
}

// Within reports whether p is dir or lies below it.
func Within(p, dir string) bool {
	return dir == "" || p == dir || (len(p) > len(dir) && p[len(dir)] == '/' && p[:len(dir)] == dir)
}

// ComparePaths orders paths so that a directory is followed by everything below it
// before its next sibling: byte order with '/' lower than any other byte.
func ComparePaths[A, B string | []byte](a A, b B) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		if a[i] == '/' {
			return -1
		}
		if b[i] == '/' {
			return 1
		}
		if a[i] < b[i] {
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}

// Resolve returns the path in fsys that p leads to when symbolic links are
// followed inside the tree: an absolute target starts at the root and ".."
// stops there. The last component is followed only if follow is true.
//
// Components that do not exist are kept as they are, so the result names where
// p would be created. A component that is neither directory nor link is kept
// as well: using the result then fails with the error of the operation.
func Resolve(fsys FS, p string, follow bool) (string, error) {
	var (
		done  string
		todo  = strings.TrimPrefix(p, "/")
		links int
	)
	for todo != "" {
		name, rest, more := strings.Cut(todo, "/")
		switch name {
		case "", ".":
			todo = rest
			continue
		case "..":
			done, todo = Parent(done), rest
			continue
		}
		next := Join(done, name)
		if !more && !follow {
			return next, nil
		}
		e, err := fsys.Lstat(next)
		if errors.Is(err, fs.ErrNotExist) {
			done, todo = next, rest
			continue
		}
		if err != nil {
			return "", err
		}
		if !e.Mode.IsSymlink() {
			done, todo = next, rest
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("resolve %q: %w", p, ErrTooManyLinks)
		}
		if strings.HasPrefix(e.Link, "/") {
			done = ""
		}
		todo = strings.TrimPrefix(e.Link, "/")
		if more {
			todo += "/" + rest
		}
	}
	return done, nil
}

// NotExist returns the error for a name that a tree does not have.
func NotExist(op, p string) error {
	return &fs.PathError{Op: op, Path: "/" + p, Err: fs.ErrNotExist}
}
