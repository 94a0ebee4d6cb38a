// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package solver

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

func load(t *testing.T, states ...llb.State) *Graph {
	t.Helper()
	var defs []*pb.Definition
	for _, st := range states {
		defs = append(defs, marshal(t, st))
	}
	g, err := Load(defs...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func vertexNames(vs []*Vertex) []string {
	var out []string
	for _, v := range vs {
		out = append(out, v.Name)
	}
	return out
}

func find(t *testing.T, g *Graph, name string) *Vertex {
	t.Helper()
	for _, v := range g.Vertices() {
		if v.Name == name {
			return v
		}
	}
	t.Fatalf("no vertex %q", name)
	return nil
}

func TestFacts(t *testing.T) {
	t.Parallel()
	ctxDir := llb.Local("context")
	linked := llb.Merge([]llb.State{threeStages(), copyFrom(llb.Scratch(), ctxDir, "/link")})
	g := load(t, linked)

	chain := vertexNames(g.RootChain(g.Targets()[0]))
	want := []string{"FROM base", "RUN a", "COPY /1", "RUN b", "COPY /2", "RUN c", "COPY /link", "merge"}
	if diff := cmp.Diff(want, chain); diff != "" {
		t.Errorf("RootChain (-want +got):\n%s", diff)
	}
	if got, want := len(g.InTargets(g.Targets())), len(want); got != want {
		t.Errorf("InTargets has %d, want %d", got, want)
	}
	if diff := cmp.Diff([]string{"FROM base", "FROM other"}, vertexNames(g.ExecBases())); diff != "" {
		t.Errorf("ExecBases (-want +got):\n%s", diff)
	}
	if got := g.Consumers(find(t, g, "FROM base")); got != 2 {
		t.Errorf("Consumers(base) = %d, want 2", got)
	}
	if got := g.SelectedPaths(find(t, g, "local://context")); !cmp.Equal(got, Selection{Paths: []string{"/link"}}) {
		t.Errorf("SelectedPaths(context) = %+v", got)
	}
	if got := g.SelectedPaths(find(t, g, "FROM base")); !got.All {
		t.Errorf("SelectedPaths(base) = %+v, want all: commands run on it", got)
	}
}

func TestSelectedPathsThroughFileOps(t *testing.T) {
	t.Parallel()
	src := image("src")
	grown := src.File(llb.Mkfile("/new", 0o644, []byte("x")))
	st := copyFrom(llb.Scratch(), grown, "/etc/a*")
	st = st.Run(llb.Args([]string{"x"}), llb.AddMount("/m", src, llb.SourcePath("/opt"), llb.Readonly)).Root()
	st = st.File(llb.Copy(llb.Local("context"), "/y", "/", llb.WithUser("bob")))
	g := load(t, st)
	got := g.SelectedPaths(find(t, g, "FROM src"))
	if diff := cmp.Diff(Selection{Paths: []string{"/etc/a*", "/opt"}}, got); diff != "" {
		t.Errorf("SelectedPaths (-want +got):\n%s", diff)
	}
	if bases := g.ExecBases(); bases != nil {
		t.Errorf("ExecBases = %q, want none", vertexNames(bases))
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	ctxDir := func(opts ...llb.LocalOption) llb.State { return llb.Local("context", opts...) }
	base := image("base")
	// Each differs from all others in one thing.
	different := map[string]llb.State{
		"base":         base,
		"other image":  image("base2"),
		"context":      ctxDir(),
		"excludes":     ctxDir(llb.ExcludePatterns([]string{"a"})),
		"excludes two": ctxDir(llb.ExcludePatterns([]string{"a", "b"})),
		"follow":       ctxDir(llb.FollowPaths([]string{"a"})),
		"copy":         base.File(llb.Copy(ctxDir(), "/a", "/b")),
		"copy to":      base.File(llb.Copy(ctxDir(), "/a", "/c")),
		"copy mode":    base.File(llb.Copy(ctxDir(), "/a", "/b", llb.ChmodOpt{ModeStr: "u+x"})),
		"copy owner":   base.File(llb.Copy(ctxDir(), "/a", "/b", llb.WithUser("1"))),
		"copy self":    base.File(llb.Copy(base, "/a", "/b")),
		"copy other":   image("base2").File(llb.Copy(ctxDir(), "/a", "/b")),
		"mkfile":       base.File(llb.Mkfile("/a", 0o644, []byte("x"))),
		"mkfile data":  base.File(llb.Mkfile("/a", 0o644, []byte("y"))),
		"mkfile mode":  base.File(llb.Mkfile("/a", 0o600, []byte("x"))),
		"mkdir":        base.File(llb.Mkdir("/a", 0o644)),
		"run":          base.Run(llb.Args([]string{"a", "b"})).Root(),
		"run joined":   base.Run(llb.Args([]string{"ab"})).Root(),
		"run env":      base.AddEnv("A", "b").Run(llb.Args([]string{"a", "b"})).Root(),
		"run env 2":    base.AddEnv("A", "c").Run(llb.Args([]string{"a", "b"})).Root(),
		"run dir":      base.Dir("/x").Run(llb.Args([]string{"a", "b"})).Root(),
		"run user":     base.User("x").Run(llb.Args([]string{"a", "b"})).Root(),
		"run net":      base.Run(llb.Args([]string{"a", "b"}), llb.Network(pb.NetMode_NONE)).Root(),
		"run secret":   base.Run(llb.Args([]string{"a", "b"}), llb.AddSecret("/s")).Root(),
		"run arm":      base.Run(llb.Args([]string{"a", "b"}), llb.LinuxArm64).Root(),
		"merge":        llb.Merge([]llb.State{base, image("base2")}),
		"merge other":  llb.Merge([]llb.State{image("base2"), base}),
	}
	names := map[Key]string{}
	for name, st := range different {
		k := load(t, st).Targets()[0].Vertex.Key
		if names[k] != "" {
			t.Errorf("%q and %q have one key", name, names[k])
		}
		names[k] = name
	}
	same := []struct {
		name string
		a, b llb.State
	}{
		{"random id", ctxDir(), ctxDir()},
		{"session", ctxDir(llb.SessionID("a")), ctxDir(llb.SessionID("b"))},
		{"hint", ctxDir(llb.SharedKeyHint("a")), ctxDir(llb.SharedKeyHint("b"))},
		{"name", run(base, "x"), base.Run(llb.Args([]string{"x"}), llb.WithCustomName("other")).Root()},
		{"proxy", run(base, "x"), base.Run(llb.Args([]string{"x"}), llb.WithProxy(llb.ProxyEnv{HTTPProxy: "p"})).Root()},
		{"no cache", run(base, "x"), base.Run(llb.Args([]string{"x"}), llb.IgnoreCache).Root()},
	}
	for _, tt := range same {
		a, b := load(t, tt.a).Targets()[0].Vertex.Key, load(t, tt.b).Targets()[0].Vertex.Key
		if a != b {
			t.Errorf("%s: keys differ", tt.name)
		}
	}
}

// TestKeyIsStable fails when the encoding changes: then keyVersion has to.
func TestKeyIsStable(t *testing.T) {
	t.Parallel()
	got := load(t, threeStages()).Targets()[0].Vertex.Key
	const want = Key("sha256:bca65f01fb51db1d26a3569a673670db556d3c29cfd4bb5dd22b539b9afd803f")
	if got != want {
		t.Errorf("key %s, want %s; change keyVersion with the encoding", got, want)
	}
}

func TestSharedBetweenPlatforms(t *testing.T) {
	t.Parallel()
	build := func(p llb.ConstraintsOpt) llb.State {
		return run(copyFrom(llb.Image("base", llb.WithCustomName("FROM base")), llb.Local("context"), "/x"), "RUN x")
	}
	var defs []*pb.Definition
	for _, p := range []llb.ConstraintsOpt{llb.LinuxAmd64, llb.LinuxArm64} {
		def, err := build(p).Marshal(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		defs = append(defs, def.ToPB())
	}
	g, err := Load(defs...)
	if err != nil {
		t.Fatal(err)
	}
	got := vertexNames(g.Vertices())
	slices.Sort(got)
	want := []string{"COPY /x", "COPY /x", "FROM base", "FROM base", "RUN x", "RUN x", "local://context"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("vertices (-want +got):\n%s", diff)
	}
}

// TestSharedBetweenTargets has two targets that copy different paths of a context
// and share a stage: the frontend tells each apart what it reads.
func TestSharedBetweenTargets(t *testing.T) {
	t.Parallel()
	target := func(follow []string, p string) llb.State {
		bctx := llb.Local("context", llb.FollowPaths(follow))
		return copyFrom(run(copyFrom(image("base"), bctx, "/common"), "RUN x"), bctx, p)
	}
	g := load(t, target([]string{"b", "common"}, "/b"), target([]string{"a", "common"}, "/a"))
	// The base, the context, COPY, RUN, and a COPY each.
	if len(g.Vertices()) != 6 {
		t.Errorf("%d vertices, want 6", len(g.Vertices()))
	}
	follow := func(g *Graph) (all []string) {
		for _, v := range g.Vertices() {
			if src := v.Op.GetSource(); src.GetIdentifier() == "local://context" {
				all = append(all, src.Attrs[pb.AttrFollowPaths])
			}
		}
		return all
	}
	if got := follow(g); !slices.Equal(got, []string{`["a","b","common"]`}) {
		t.Errorf("the context is read at %q", got)
	}
	// Who reads everything reads it for all.
	whole := copyFrom(image("base"), llb.Local("context"), "/")
	if got := follow(load(t, whole, target([]string{"a", "common"}, "/a"))); !slices.Equal(got, []string{""}) {
		t.Errorf("the whole context is read at %q", got)
	}
	// Another ignore list is another source.
	other := copyFrom(image("base"), llb.Local("context", llb.FollowPaths([]string{"x"}), llb.ExcludePatterns([]string{"y"})), "/x")
	if got := follow(load(t, other, target([]string{"common"}, "/common"))); !slices.Equal(got, []string{`["x"]`, `["common"]`}) {
		t.Errorf("two sources are read at %q", got)
	}
}

func TestPrintIsDeterministic(t *testing.T) {
	t.Parallel()
	first := load(t, threeStages()).String()
	for range 20 {
		if got := load(t, threeStages()).String(); got != first {
			t.Fatalf("two texts:\n%s\n%s", first, got)
		}
	}
	if !strings.Contains(first, "RUN one more") {
		t.Errorf("no command in:\n%s", first)
	}
}

// define makes a definition of ops, the last of which is the result.
func define(t testing.TB, ops ...*pb.Op) *pb.Definition {
	t.Helper()
	def := &pb.Definition{}
	for _, op := range append(ops, &pb.Op{}) {
		if n := len(def.Def); n > 0 && op.Op == nil {
			op.Inputs = []*pb.Input{{Digest: string(digest.FromBytes(def.Def[n-1]))}}
		}
		dt, err := op.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		def.Def = append(def.Def, dt)
	}
	return def
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	file := func(a *pb.FileAction) *pb.Op {
		return &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{a}}}}
	}
	mkdir := &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{Path: "/a"}}
	exec := func(mounts ...*pb.Mount) *pb.Op {
		return &pb.Op{Op: &pb.Op_Exec{Exec: &pb.ExecOp{Meta: &pb.Meta{Args: []string{"x"}}, Mounts: mounts}}}
	}
	tests := map[string]struct {
		op   *pb.Op
		want string
	}{
		"diff":        {&pb.Op{Op: &pb.Op_Diff{Diff: &pb.DiffOp{}}}, "diff ops are not supported"},
		"build":       {&pb.Op{Op: &pb.Op_Build{Build: &pb.BuildOp{}}}, "build ops are not supported"},
		"passthrough": {&pb.Op{Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{}}}, "passthrough ops are not supported"},
		"rm":          {file(&pb.FileAction{Input: -1, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/"}}}), "removing files"},
		"symlink":     {file(&pb.FileAction{Input: -1, Action: &pb.FileAction_Symlink{Symlink: &pb.FileActionSymlink{}}}), "making links"},
		"no action":   {file(&pb.FileAction{Input: -1}), "does not know"},
		"file input":  {file(&pb.FileAction{Input: 3, Action: mkdir}), "input 3"},
		"file output": {file(&pb.FileAction{Input: -1, Output: 3, Action: mkdir}), "output 3"},
		"self input":  {file(&pb.FileAction{Input: 0, Action: mkdir}), "input 0"},
		"no root":     {exec(&pb.Mount{Input: -1, Dest: "/x"}), "0 roots"},
		"exec input":  {exec(&pb.Mount{Input: 7, Dest: "/"}), "input 7"},
		"root tmpfs":  {exec(&pb.Mount{Input: -1, Dest: "/", MountType: pb.MountType_TMPFS}), "TMPFS"},
		"merge input": {&pb.Op{Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 1}}}}}, "input 1"},
		"no source":   {&pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{}}}, "without identifier"},
		"missing input": {&pb.Op{
			Inputs: []*pb.Input{{Digest: string(digest.FromString("x"))}},
			Op:     &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 0}}}},
		}, "not in the definition"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Load(define(t, tt.op))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Load: %v, want %q", err, tt.want)
			}
		})
	}
}

func TestLoadRefusesUnknownFields(t *testing.T) {
	t.Parallel()
	op := &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "x://y"}}}
	op.GetSource().ProtoReflect().SetUnknown([]byte{0xf8, 0x3f, 1}) // field 1023, varint
	if _, err := Load(define(t, op)); err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("Load: %v, want an error about unknown fields", err)
	}
}

func TestVertexErrorText(t *testing.T) {
	t.Parallel()
	st := image("base").Run(llb.Args([]string{"x"}), llb.WithCustomName("RUN x"),
		llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", []byte("FROM base\nRUN x\n")).Location(
			[]*pb.Range{{Start: &pb.Position{Line: 2}, End: &pb.Position{Line: 2}}})).Root()
	v := load(t, st).Targets()[0].Vertex
	got := newVertexError(v, ErrClosed).Error()
	if want := "Dockerfile:2: RUN x: " + ErrClosed.Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if string(v.Text) != "FROM base\nRUN x\n" {
		t.Errorf("text %q", v.Text)
	}
}

// FuzzLoad feeds definitions of any bytes: errors, never panics.
func FuzzLoad(f *testing.F) {
	def := marshal(f, threeStages())
	f.Add(def.Def[0], def.Def[1], def.Def[len(def.Def)-1])
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		g, err := Load(&pb.Definition{Def: [][]byte{a, b, c}})
		if err != nil {
			return
		}
		_ = g.String()
		g.ExecBases()
		for _, v := range g.Vertices() {
			g.SelectedPaths(v)
		}
	})
}
