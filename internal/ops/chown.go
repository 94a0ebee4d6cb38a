// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"fmt"

	"github.com/moby/buildkit/solver/pb"

	"hako/internal/tree"
)

// An owner is who files are to belong to.
type owner struct{ uid, gid uint32 }

// owner finds out what --chown asks for; nil if it asks for nothing. A number
// for the user alone is the group's too; a name that the tree it is looked up
// in does not have, or whose tree has no user database, is 0, as in BuildKit.
func (g *fileGraph) owner(opt *pb.ChownOpt) (*owner, error) {
	if opt == nil {
		return nil, nil
	}
	var o owner
	switch u := opt.GetUser().GetUser().(type) {
	case *pb.UserOpt_ByID:
		o = owner{uid: u.ByID, gid: u.ByID}
	case *pb.UserOpt_ByName:
		fsys, err := g.userTree(u.ByName)
		if err != nil {
			return nil, err
		}
		o.uid, o.gid, _, err = tree.LookupUser(fsys, u.ByName.Name)
		if err != nil {
			return nil, err
		}
	}
	switch u := opt.GetGroup().GetUser().(type) {
	case *pb.UserOpt_ByID:
		o.gid = u.ByID
	case *pb.UserOpt_ByName:
		fsys, err := g.userTree(u.ByName)
		if err != nil {
			return nil, err
		}
		gid, ok, err := tree.LookupGroup(fsys, u.ByName.Name)
		if err != nil {
			return nil, err
		}
		if ok {
			o.gid = gid
		}
	}
	return &o, nil
}

// userTree returns the tree that a name is looked up in.
func (g *fileGraph) userTree(n *pb.NamedUserOpt) (tree.FS, error) {
	if n.Input < 0 {
		return nil, fmt.Errorf("look up %q: invalid user index: %d (a name needs an image with /etc/passwd; scratch and --link have none: use numbers)", n.Name, n.Input)
	}
	s, err := g.input(n.Input)
	if err != nil {
		return nil, err
	}
	return s.fsys, nil
}
