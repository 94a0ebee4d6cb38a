// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"io"
	"strings"

	"hako/internal/tree"
)

// dataLink is the link through which kubelet shows what is in a volume made of a
// ConfigMap, a Secret or the like. Its files are in a directory whose name begins
// with two dots and changes with each update; "NAME" is a link to "..data/NAME".
const dataLink = "..data"

// A projected is such a volume as what it stands for: files and directories,
// without the links that lead to them. All are of the update that was there when
// it was opened.
type projected struct {
	base tree.FS
	dir  string // where ..data leads
}

// Projected returns a view of fsys without kubelet's links if fsys is a volume
// made of a ConfigMap or the like, and else fsys itself.
func Projected(fsys tree.FS) tree.FS {
	if e, err := fsys.Lstat(dataLink); err == nil && e.Mode.IsSymlink() && isHiddenName(e.Link) {
		if d, err := fsys.Lstat(e.Link); err == nil && d.Mode.IsDir() {
			return &projected{base: fsys, dir: e.Link}
		}
	}
	return fsys
}

// isHiddenName reports whether name is one that kubelet keeps for itself.
func isHiddenName(name string) bool {
	return strings.HasPrefix(name, "..") && name != ".." && !strings.Contains(name, "/")
}

// at returns where the path p is.
func (v *projected) at(op, p string) (string, error) {
	top, rest, _ := strings.Cut(p, "/")
	if top == "" {
		return p, nil
	}
	if isHiddenName(top) {
		return "", tree.NotExist(op, p)
	}
	e, err := v.base.Lstat(top)
	if err != nil {
		return "", err
	}
	if e.Mode.IsSymlink() && e.Link == dataLink+"/"+top {
		return tree.Join(tree.Join(v.dir, top), rest), nil
	}
	return p, nil
}

// Lstat implements [tree.FS].
func (v *projected) Lstat(p string) (tree.Entry, error) {
	at, err := v.at("lstat", p)
	if err != nil {
		return tree.Entry{}, err
	}
	e, err := v.base.Lstat(at)
	e.Path = p
	return e, err
}

// ReadDir implements [tree.FS].
func (v *projected) ReadDir(p string) ([]tree.Entry, error) {
	at, err := v.at("readdir", p)
	if err != nil {
		return nil, err
	}
	entries, err := v.base.ReadDir(at)
	if err != nil {
		return nil, err
	}
	out := entries[:0]
	for _, e := range entries {
		name := e.Name()
		e.Path = tree.Join(p, name)
		if p == "" {
			if isHiddenName(name) {
				continue
			}
			if e, err = v.Lstat(name); err != nil {
				return nil, err
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// Open implements [tree.FS].
func (v *projected) Open(p string) (io.ReadCloser, error) {
	at, err := v.at("open", p)
	if err != nil {
		return nil, err
	}
	return v.base.Open(at)
}
