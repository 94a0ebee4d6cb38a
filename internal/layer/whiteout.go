// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"fmt"
	"strings"

	"hako/internal/tree"
)

// Whiteouts, OCI image-spec layer.md: an empty file ".wh.NAME" deletes NAME of
// lower layers; ".wh..wh..opq" in a directory hides all that lower layers have
// in it. Other names that begin ".wh..wh." are bookkeeping of AUFS, which no
// runtime unpacks.
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh."
	opaqueName     = ".wh..wh..opq"
)

// A marker is what a name in a layer's tar says about lower layers.
type marker int

const (
	noMarker     marker = iota
	deleteMarker        // the path is deleted
	opaqueMarker        // the directory's lower content is hidden
	metaMarker          // to be ignored
	badMarker           // deletes no name, but a directory itself or its parent: an attack
)

// parseMarker splits the whiteouts from the entries of a layer; p is the path
// that a whiteout is about, and the entry's own path otherwise.
func parseMarker(name string) (m marker, p string) {
	for rest := name; rest != ""; {
		var c string
		c, rest, _ = strings.Cut(rest, "/")
		if strings.HasPrefix(c, metaPrefix) && c != opaqueName {
			return metaMarker, ""
		}
	}
	base := tree.Base(name)
	switch {
	case base == opaqueName:
		return opaqueMarker, tree.Parent(name)
	case base == whiteoutPrefix || base == whiteoutPrefix+"." || base == whiteoutPrefix+"..":
		return badMarker, name
	case strings.HasPrefix(base, whiteoutPrefix):
		return deleteMarker, tree.Join(tree.Parent(name), base[len(whiteoutPrefix):])
	}
	return noMarker, name
}

// whiteoutPath returns the name that deletes p.
func whiteoutPath(p string) string {
	return tree.Join(tree.Parent(p), whiteoutPrefix+tree.Base(p))
}

// A ReservedNameError is returned for a file that no layer can hold, because
// its name would read as a deletion.
type ReservedNameError struct{ Path string }

func (e *ReservedNameError) Error() string {
	return fmt.Sprintf("/%s: names that begin %q mean deletions in image layers, so this file cannot be in an image", e.Path, whiteoutPrefix)
}

// CheckName refuses slash-separated paths that no layer can hold, because a
// component would be read back as a deletion, with a [ReservedNameError].
func CheckName(p string) error {
	for rest := p; rest != ""; {
		var c string
		c, rest, _ = strings.Cut(rest, "/")
		if strings.HasPrefix(c, whiteoutPrefix) {
			return &ReservedNameError{Path: p}
		}
	}
	return nil
}
