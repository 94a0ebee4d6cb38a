// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"
)

// locals are the local sources of all definitions of a graph, by what they read
// apart from the paths.
//
// The frontend tells of a context which paths a target copies, so that no more
// is sent. Targets and platforms of one Dockerfile differ in that, and a step
// that they share would have two keys and be done twice. So each reads what all
// of them read: a view of more paths has the same content at each of them.
type locals map[string]*paths

// paths is a list of paths, or all there are.
type paths struct {
	all  bool
	list []string
}

// add notes the local sources of a definition's ops.
func (l locals) add(op *pb.Op) error {
	src := op.GetSource()
	if !isLocal(src) {
		return nil
	}
	key := localKey(src)
	p := l[key]
	if p == nil {
		p = &paths{}
		l[key] = p
	}
	text := src.GetAttrs()[pb.AttrFollowPaths]
	if text == "" {
		p.all = true
		return nil
	}
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return fmt.Errorf("source %s: %s: %w", src.GetIdentifier(), pb.AttrFollowPaths, err)
	}
	for _, item := range list {
		if !slices.Contains(p.list, item) {
			p.list = append(p.list, item)
		}
	}
	p.all = p.all || len(list) == 0
	return nil
}

// widen returns op, or if others read more of its source, one that does too.
func (l locals) widen(op *pb.Op) (*pb.Op, error) {
	src := op.GetSource()
	if !isLocal(src) {
		return op, nil
	}
	p := l[localKey(src)]
	var list []string
	if text := src.GetAttrs()[pb.AttrFollowPaths]; text != "" {
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			return nil, err
		}
	}
	if p.all && len(list) == 0 || !p.all && len(list) == len(p.list) {
		return op, nil
	}
	wide := proto.CloneOf(op)
	attrs := wide.GetSource().Attrs
	if p.all {
		delete(attrs, pb.AttrFollowPaths)
		return wide, nil
	}
	text, err := json.Marshal(slices.Sorted(slices.Values(p.list)))
	attrs[pb.AttrFollowPaths] = string(text)
	return wide, err
}

func isLocal(src *pb.SourceOp) bool { return strings.HasPrefix(src.GetIdentifier(), "local://") }

// localKey is equal for local sources that differ in their paths at most.
func localKey(src *pb.SourceOp) string {
	var b strings.Builder
	b.WriteString(src.GetIdentifier())
	for _, name := range slices.Sorted(maps.Keys(src.GetAttrs())) {
		if name != pb.AttrFollowPaths && !skippedAttr(name) {
			fmt.Fprintf(&b, "\x00%s\x00%s", name, src.GetAttrs()[name])
		}
	}
	return b.String()
}
