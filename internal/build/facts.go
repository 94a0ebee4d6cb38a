// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"hako/internal/ops"
	"hako/internal/solver"
)

// graphFacts collects what the interpreter has to know before the graph's
// first vertex is executed.
func graphFacts(g *solver.Graph) ops.Facts {
	f := ops.Facts{ExecBases: make(map[digest.Digest]bool), UnderExec: make(map[digest.Digest]bool)}
	for _, v := range g.ExecBases() {
		f.ExecBases[v.Digest] = true
	}
	for _, v := range g.Vertices() {
		for _, m := range v.Op.GetExec().GetMounts() {
			if m.GetDest() != pb.RootMount || m.GetInput() < 0 {
				continue
			}
			for _, c := range g.RootChain(v.Inputs[m.GetInput()]) {
				f.UnderExec[c.Digest] = true
			}
		}
	}
	return f
}

// usedPaths returns the paths that the graph's commands, and the instructions
// that their roots are made of, name: a volume of the container at one of them
// has to make room.
func usedPaths(g *solver.Graph, f ops.Facts, needed func(*solver.Vertex) bool) []string {
	var paths []string
	for _, v := range g.Vertices() {
		if v.IsExec() && !needed(v) || !v.IsExec() && !f.UnderExec[v.Digest] {
			continue
		}
		if e := v.Op.GetExec(); e != nil {
			paths = append(paths, e.GetMeta().GetCwd())
			for _, m := range e.GetMounts() {
				if m.GetDest() != pb.RootMount {
					paths = append(paths, m.GetDest())
				}
			}
		}
		for _, a := range v.Op.GetFile().GetActions() {
			switch o := a.Action.(type) {
			case *pb.FileAction_Copy:
				paths = append(paths, o.Copy.GetDest())
			case *pb.FileAction_Mkdir:
				paths = append(paths, o.Mkdir.GetPath())
			case *pb.FileAction_Mkfile:
				paths = append(paths, o.Mkfile.GetPath())
			}
		}
	}
	return paths
}

// hasExec tells whether the graph runs anything that is needed.
func hasExec(g *solver.Graph, needed func(*solver.Vertex) bool) bool {
	for _, v := range g.Vertices() {
		if v.IsExec() && needed(v) {
			return true
		}
	}
	return false
}
