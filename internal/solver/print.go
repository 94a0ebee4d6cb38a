// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// platformSource reports whether a source's content depends on the platform.
func platformSource(s *pb.SourceOp) bool {
	id := s.GetIdentifier()
	return strings.HasPrefix(id, "docker-image://") || strings.HasPrefix(id, "oci-layout://")
}

// vertexName returns what BuildKit calls a vertex.
func vertexName(v *Vertex) string {
	if n := v.Metadata.GetDescription()["llb.customname"]; n != "" {
		return n
	}
	switch op := v.Op.Op.(type) {
	case *pb.Op_Source:
		return op.Source.GetIdentifier()
	case *pb.Op_Exec:
		return strings.Join(op.Exec.GetMeta().GetArgs(), " ")
	case *pb.Op_File:
		var parts []string
		for _, a := range op.File.GetActions() {
			switch {
			case a.GetCopy() != nil:
				parts = append(parts, "copy "+a.GetCopy().GetSrc()+" "+a.GetCopy().GetDest())
			case a.GetMkdir() != nil:
				parts = append(parts, "mkdir "+a.GetMkdir().GetPath())
			case a.GetMkfile() != nil:
				parts = append(parts, "mkfile "+a.GetMkfile().GetPath())
			}
		}
		return strings.Join(parts, ", ")
	case *pb.Op_Merge:
		return "merge"
	}
	return "unknown op"
}

// String returns the graph as text: one paragraph a vertex, in the order of
// evaluation, with everything that its key depends on. Equal graphs give equal
// texts.
func (g *Graph) String() string {
	var b strings.Builder
	num := map[*Vertex]int{}
	for i, v := range g.vertices {
		num[v] = i + 1
		fmt.Fprintf(&b, "#%d %s\n", i+1, v.Name)
		if v.File != "" && len(v.Lines) > 0 {
			fmt.Fprintf(&b, "   at %s:%d\n", v.File, v.Lines[0][0])
		}
		if len(v.Inputs) > 0 {
			b.WriteString("   inputs")
			for _, in := range v.Inputs {
				b.WriteString(" " + edgeText(num, in))
			}
			b.WriteByte('\n')
		}
		if p := v.Op.GetPlatform(); p != nil && (v.IsExec() || platformSource(v.Op.GetSource())) {
			fmt.Fprintf(&b, "   platform %s\n", strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/"))
		}
		if v.Metadata.GetIgnoreCache() {
			b.WriteString("   no cache\n")
		}
		writeFields(&b, "   ", v.Op.ProtoReflect())
	}
	for _, t := range g.targets {
		fmt.Fprintf(&b, "target %s\n", edgeText(num, t))
	}
	return b.String()
}

func edgeText(num map[*Vertex]int, e Edge) string {
	switch {
	case e.Vertex == nil:
		return "scratch"
	case e.Index == 0:
		return fmt.Sprintf("#%d", num[e.Vertex])
	}
	return fmt.Sprintf("#%d.%d", num[e.Vertex], e.Index)
}

// writeFields writes what is set in a message, a line a field.
func writeFields(b *strings.Builder, indent string, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) || skippedField(fd.FullName()) {
			continue
		}
		v := m.Get(fd)
		switch {
		case fd.IsMap():
			writeMap(b, indent, fd, v.Map())
		case fd.IsList():
			for j := range v.List().Len() {
				writeValue(b, indent, fd, v.List().Get(j))
			}
		default:
			writeValue(b, indent, fd, v)
		}
	}
}

func writeValue(b *strings.Builder, indent string, fd protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		fmt.Fprintf(b, "%s%s\n", indent, fd.Name())
		writeFields(b, indent+"  ", v.Message())
	case protoreflect.StringKind:
		fmt.Fprintf(b, "%s%s %q\n", indent, fd.Name(), v.String())
	case protoreflect.BytesKind:
		fmt.Fprintf(b, "%s%s %q\n", indent, fd.Name(), v.Bytes())
	case protoreflect.EnumKind:
		fmt.Fprintf(b, "%s%s %s\n", indent, fd.Name(), enumText(fd, v))
	default:
		fmt.Fprintf(b, "%s%s %v\n", indent, fd.Name(), v.Interface())
	}
}

func enumText(fd protoreflect.FieldDescriptor, v protoreflect.Value) string {
	if d := fd.Enum().Values().ByNumber(v.Enum()); d != nil {
		return string(d.Name())
	}
	return fmt.Sprint(v.Enum())
}

func writeMap(b *strings.Builder, indent string, fd protoreflect.FieldDescriptor, m protoreflect.Map) {
	var lines []string
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if fd.FullName() != "pb.SourceOp.attrs" || !skippedAttr(k.String()) {
			lines = append(lines, fmt.Sprintf("%s%s %v\n", indent, k, v.Interface()))
		}
		return true
	})
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, ""))
}
