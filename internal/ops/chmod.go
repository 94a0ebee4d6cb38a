// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"fmt"

	"github.com/moby/buildkit/solver/pb"
	"github.com/tonistiigi/dchapes-mode"

	"hako/internal/tree"
)

// A chmod is what --chmod asks for; the zero chmod asks for nothing.
type chmod struct {
	octal *tree.Mode
	set   *mode.Set
}

// newChmod reads an action's mode. The symbolic form wins over the octal one.
func newChmod(a *pb.FileActionCopy) (chmod, error) {
	if a.ModeStr != "" {
		s, err := mode.ParseWithUmask(a.ModeStr, 0)
		if err != nil {
			return chmod{}, fmt.Errorf("parse mode %q: %w", a.ModeStr, err)
		}
		return chmod{set: &s}, nil
	}
	if a.Mode == -1 {
		return chmod{}, nil
	}
	m := tree.Mode(a.Mode) & tree.ModePerm
	return chmod{octal: &m}, nil
}

// apply returns the mode that a copied file of mode m gets. Links have none.
func (c chmod) apply(m tree.Mode) tree.Mode {
	switch {
	case m.IsSymlink():
		return m
	case c.set != nil:
		return m.Type() | tree.FromFileMode(c.set.Apply(m.FileMode())).Perm()
	case c.octal != nil:
		return m.Type() | *c.octal
	}
	return m
}

// parents returns the mode of directories made on the way to the destination:
// an octal --chmod sets it, but never more than the nine permission bits.
func (c chmod) parents() tree.Mode {
	if c.octal != nil && c.set == nil {
		return *c.octal & 0o777
	}
	return 0o755
}
