// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"errors"
	"fmt"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// checkOp refuses ops that are malformed, or of a kind that does not come from
// a Dockerfile and that nothing here can compute.
func checkOp(op *pb.Op) error {
	if hasUnknown(op.ProtoReflect()) {
		return errors.New("the op has fields that this version does not know")
	}
	n := int64(len(op.Inputs))
	switch o := op.Op.(type) {
	case *pb.Op_Source:
		if o.Source.GetIdentifier() == "" {
			return errors.New("source op without identifier")
		}
		if n != 0 {
			return fmt.Errorf("source op with %d inputs", n)
		}
		return nil
	case *pb.Op_Exec:
		return checkExec(o.Exec, n)
	case *pb.Op_File:
		return checkFile(o.File, n)
	case *pb.Op_Merge:
		for _, in := range o.Merge.GetInputs() {
			if err := checkInput(in.GetInput(), n); err != nil {
				return fmt.Errorf("merge op: %w", err)
			}
		}
		return nil
	case *pb.Op_Diff:
		return errors.New("diff ops are not supported yet; a Dockerfile never needs one")
	case *pb.Op_Build:
		return errors.New("build ops are not supported; a Dockerfile never needs one")
	case *pb.Op_Passthrough:
		return errors.New("passthrough ops are not supported; a Dockerfile never needs one")
	}
	return errors.New("the op is of a kind that this version does not know")
}

func checkInput(i, n int64) error {
	if i < int64(pb.Empty) || i >= n {
		return fmt.Errorf("input %d is asked for, there are %d", i, n)
	}
	return nil
}

func checkExec(op *pb.ExecOp, n int64) error {
	if len(op.GetMeta().GetArgs()) == 0 {
		return errors.New("exec op without arguments")
	}
	roots := 0
	produced := map[int64]bool{}
	for _, m := range op.GetMounts() {
		if err := checkInput(m.GetInput(), n); err != nil {
			return fmt.Errorf("exec op: mount %q: %w", m.GetDest(), err)
		}
		if m.GetDest() == pb.RootMount {
			roots++
			if m.GetMountType() != pb.MountType_BIND {
				return fmt.Errorf("exec op: the root is a %s mount", m.GetMountType())
			}
		}
		if !isOutput(m) {
			continue
		}
		if m.GetOutput() >= int64(len(op.GetMounts())) || produced[m.GetOutput()] {
			return fmt.Errorf("exec op: mount %q: output %d is out of range or taken", m.GetDest(), m.GetOutput())
		}
		produced[m.GetOutput()] = true
	}
	if roots != 1 {
		return fmt.Errorf("exec op with %d roots, want 1", roots)
	}
	return nil
}

func checkFile(op *pb.FileOp, n int64) error {
	if len(op.GetActions()) == 0 {
		return errors.New("file op without actions")
	}
	produced := map[int64]bool{}
	for i, a := range op.GetActions() {
		// Results of earlier actions follow the inputs.
		if err := checkInput(a.GetInput(), n+int64(i)); err != nil {
			return fmt.Errorf("file op: action %d: %w", i+1, err)
		}
		switch a.Action.(type) {
		case *pb.FileAction_Copy:
			if err := checkInput(a.GetSecondaryInput(), n+int64(i)); err != nil {
				return fmt.Errorf("file op: action %d: source: %w", i+1, err)
			}
		case *pb.FileAction_Mkdir, *pb.FileAction_Mkfile:
		case *pb.FileAction_Rm:
			return errors.New("removing files with a file op is not supported yet; a Dockerfile never needs it")
		case *pb.FileAction_Symlink:
			return errors.New("making links with a file op is not supported yet; a Dockerfile never needs it")
		default:
			return errors.New("file op with an action that this version does not know")
		}
		for _, o := range []*pb.ChownOpt{a.GetCopy().GetOwner(), a.GetMkdir().GetOwner(), a.GetMkfile().GetOwner()} {
			for _, u := range []*pb.UserOpt{o.GetUser(), o.GetGroup()} {
				if err := checkInput(u.GetByName().GetInput(), n+int64(i)); u.GetByName() != nil && err != nil {
					return fmt.Errorf("file op: action %d: owner: %w", i+1, err)
				}
			}
		}
		if a.GetOutput() < 0 {
			continue
		}
		if a.GetOutput() >= int64(len(op.GetActions())) || produced[a.GetOutput()] {
			return fmt.Errorf("file op: action %d: output %d is out of range or taken", i+1, a.GetOutput())
		}
		produced[a.GetOutput()] = true
	}
	for i := range len(produced) {
		if !produced[int64(i)] {
			return fmt.Errorf("file op: no action produces output %d", i)
		}
	}
	return nil
}

// isOutput reports whether a mount's tree is a result of its command. Secret
// and ssh mounts carry output 0, the default of the encoding, and are none.
func isOutput(m *pb.Mount) bool {
	t := m.GetMountType()
	return m.GetOutput() >= 0 && (t == pb.MountType_BIND || t == pb.MountType_CACHE)
}

// outputs returns how many results an op has.
func outputs(op *pb.Op) int {
	n := int64(0)
	switch o := op.Op.(type) {
	case *pb.Op_Exec:
		for _, m := range o.Exec.GetMounts() {
			if isOutput(m) {
				n = max(n, m.GetOutput()+1)
			}
		}
	case *pb.Op_File:
		for _, a := range o.File.GetActions() {
			n = max(n, a.GetOutput()+1)
		}
	default:
		return 1
	}
	return int(n)
}

// hasUnknown reports whether a message, or one inside it, was sent with fields
// that the linked BuildKit does not have.
func hasUnknown(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	found := false
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap() || fd.Message() == nil:
			// The maps of ops hold strings, except in build ops, which are refused.
		case fd.IsList():
			for i := range v.List().Len() {
				found = found || hasUnknown(v.List().Get(i).Message())
			}
		default:
			found = hasUnknown(v.Message())
		}
		return !found
	})
	return found
}
