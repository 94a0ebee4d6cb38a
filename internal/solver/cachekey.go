// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"encoding/binary"
	"hash"
	"math"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// keyVersion is part of every key. It changes whenever the encoding below
// does, or what an op of the same encoding computes.
const keyVersion = "hako.key.v1"

// A Key identifies what a vertex computes: the hash of its op, in an encoding
// of our own, and of its inputs' keys.
//
// It is the whole truth within one build only. From one build to the next a
// local source's key says nothing about the files, and a tag may have moved.
type Key digest.Digest

// String returns the key as "algorithm:hex".
func (k Key) String() string { return string(k) }

// skippedAttr reports attributes of sources that differ between two runs, or two
// machines, that get the same content.
func skippedAttr(name string) bool {
	switch name {
	case pb.AttrLocalSessionID, pb.AttrLocalUniqueID, pb.AttrSharedKeyHint, pb.AttrOCILayoutSessionID:
		return true
	}
	return false
}

// skippedField reports fields that are no part of what an op computes. The
// inputs are, but by their keys: their digests depend on skipped attributes.
// The proxy is left out as BuildKit leaves it out: it differs between networks,
// and what is fetched through it does not.
func skippedField(name protoreflect.FullName) bool {
	switch name {
	case "pb.Op.inputs", "pb.Op.constraints", "pb.Op.platform", "pb.Meta.proxy_env":
		return true
	}
	return false
}

// keyOf returns the key of a vertex whose inputs have theirs.
func keyOf(v *Vertex) Key {
	e := keyEncoder{h: digest.SHA256.Hash()}
	e.text(keyVersion)
	e.number(uint64(len(v.Inputs)))
	for _, in := range v.Inputs {
		e.text(string(in.Vertex.Key))
		e.number(uint64(in.Index))
	}
	e.platform(v.Op)
	e.message(v.Op.ProtoReflect())
	return Key(digest.NewDigest(digest.SHA256, e.h))
}

// keyEncoder writes values so that no two different sequences of calls give
// the same bytes: everything of variable size has its size before it.
type keyEncoder struct{ h hash.Hash }

func (e *keyEncoder) number(n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	e.h.Write(b[:])
}

func (e *keyEncoder) text(s string) {
	e.number(uint64(len(s)))
	e.h.Write([]byte(s))
}

// platform writes the platform of the ops whose result depends on it. File
// ops, merges and sources without platforms are shared between platforms; of
// file ops the OS counts, because paths do.
func (e *keyEncoder) platform(op *pb.Op) {
	p := op.GetPlatform()
	switch {
	case p == nil:
		e.number(0)
	case op.GetExec() != nil || platformSource(op.GetSource()):
		e.number(1)
		e.message(p.ProtoReflect())
	case op.GetFile() != nil && p.OS == "windows":
		e.number(2)
	default:
		e.number(0)
	}
}

// message writes all fields that are set, those of later versions of the
// protocol included, by number.
func (e *keyEncoder) message(m protoreflect.Message) {
	var fields []protoreflect.FieldDescriptor
	m.Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !skippedField(fd.FullName()) {
			fields = append(fields, fd)
		}
		return true
	})
	slices.SortFunc(fields, func(a, b protoreflect.FieldDescriptor) int { return int(a.Number()) - int(b.Number()) })
	e.number(uint64(len(fields)))
	for _, fd := range fields {
		e.number(uint64(fd.Number()))
		v := m.Get(fd)
		switch {
		case fd.IsMap():
			e.mapping(fd, v.Map())
		case fd.IsList():
			e.number(uint64(v.List().Len()))
			for i := range v.List().Len() {
				e.value(fd, v.List().Get(i))
			}
		default:
			e.value(fd, v)
		}
	}
}

func (e *keyEncoder) mapping(fd protoreflect.FieldDescriptor, m protoreflect.Map) {
	var keys []string
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		if fd.FullName() != "pb.SourceOp.attrs" || !skippedAttr(k.String()) {
			keys = append(keys, k.String())
		}
		return true
	})
	slices.Sort(keys)
	e.number(uint64(len(keys)))
	for _, k := range keys {
		e.text(k)
		e.value(fd.MapValue(), m.Get(protoreflect.ValueOfString(k).MapKey()))
	}
}

func (e *keyEncoder) value(fd protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		e.message(v.Message())
	case protoreflect.StringKind:
		e.text(v.String())
	case protoreflect.BytesKind:
		e.text(string(v.Bytes()))
	case protoreflect.BoolKind:
		if v.Bool() {
			e.number(1)
			return
		}
		e.number(0)
	case protoreflect.EnumKind:
		e.number(uint64(v.Enum()))
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		e.number(math.Float64bits(v.Float()))
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		e.number(v.Uint())
	default:
		e.number(uint64(v.Int()))
	}
}

// cacheVersion is raised when ops come to make other results of the same graph.
const cacheVersion = "hako.cache.v1"

// newCacheKey begins a key under which a result of v is kept between builds: it
// has all of the op itself. What it says of inputs follows.
func newCacheKey(kind, salt string, v *Vertex) *keyEncoder {
	e := &keyEncoder{h: digest.SHA256.Hash()}
	e.text(cacheVersion)
	e.text(kind)
	e.text(salt)
	e.platform(v.Op)
	e.message(v.Op.ProtoReflect())
	e.number(uint64(len(v.Inputs)))
	return e
}

func (e *keyEncoder) key() Key { return Key(digest.NewDigest(digest.SHA256, e.h)) }

// sourceKey is that of an image known by its digest; others are "". Under
// which name it was asked for makes no difference.
func sourceKey(v *Vertex) Key {
	_, dgst, ok := strings.Cut(v.Op.GetSource().GetIdentifier(), "@")
	if !ok || !platformSource(v.Op.GetSource()) {
		return ""
	}
	e := &keyEncoder{h: digest.SHA256.Hash()}
	e.text(cacheVersion)
	e.text("image")
	e.text(dgst)
	e.platform(v.Op)
	return e.key()
}

// sourceName is what messages call a source: its reference without digest.
func (v *Vertex) sourceName() string {
	name := v.Op.GetSource().GetIdentifier()
	for _, scheme := range []string{"docker-image://", "oci-layout://", "local://"} {
		name = strings.TrimPrefix(name, scheme)
	}
	name, _, _ = strings.Cut(name, "@")
	return name
}

// instruction returns the text of the instruction that v came from, or its name.
func (v *Vertex) instruction() string {
	if len(v.Lines) == 0 {
		return v.Name
	}
	lines := strings.Split(string(v.Text), "\n")
	var out []string
	for _, r := range v.Lines {
		for n := r[0]; n <= r[1] && n <= len(lines); n++ {
			if n > 0 {
				out = append(out, lines[n-1])
			}
		}
	}
	return strings.Join(out, "\n")
}

// opParts are the parts of v's own op: the variables of a command one by one, so
// that one that changed can be named, and a hash of the rest.
func opParts(v *Vertex) []Part {
	var parts []Part
	op := v.Op
	if env := op.GetExec().GetMeta().GetEnv(); len(env) > 0 {
		for _, item := range env {
			name, value, _ := strings.Cut(item, "=")
			parts = append(parts, Part{Kind: PartEnv, Name: name, Value: value})
		}
		op = proto.CloneOf(op)
		op.GetExec().Meta.Env = nil
	}
	e := &keyEncoder{h: digest.SHA256.Hash()}
	e.platform(op)
	e.message(op.ProtoReflect())
	return append(parts, Part{Kind: PartOp, Value: string(e.key())})
}
