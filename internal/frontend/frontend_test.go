// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package frontend_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"

	"hako/internal/frontend"
	"hako/internal/layer"
	"hako/internal/progress"
	"hako/internal/solver"
	"hako/internal/tree"
)

var update = flag.Bool("update", false, "rewrite the expected results in testdata")

// memFS is a flat tree of files.
type memFS map[string]string

func (m memFS) Lstat(p string) (tree.Entry, error) {
	if p == "" {
		return tree.Entry{Mode: tree.ModeDir | 0o755}, nil
	}
	s, ok := m[p]
	if !ok {
		return tree.Entry{}, tree.NotExist("lstat", p)
	}
	return tree.Entry{Path: p, Mode: tree.ModeRegular | 0o644, Size: int64(len(s))}, nil
}

func (m memFS) ReadDir(string) ([]tree.Entry, error) {
	var out []tree.Entry
	for _, k := range slices.Sorted(maps.Keys(m)) {
		e, _ := m.Lstat(k)
		out = append(out, e)
	}
	return out, nil
}

func (m memFS) Open(p string) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(m[p])), nil
}

// place is an Executor for local sources, and what else a build is given.
type place struct {
	files map[string]memFS // by name of the local source

	mu       sync.Mutex
	resolved []string
	events   []progress.Event
}

func (*place) Validate(*pb.Op, *pb.OpMetadata) error { return nil }
func (*place) Release(_, _ []*layer.Ref)             {}

func (p *place) Execute(_ context.Context, op *pb.Op, _ digest.Digest, _ string, _ []*layer.Ref) ([]*layer.Ref, error) {
	name, ok := strings.CutPrefix(op.GetSource().GetIdentifier(), "local://")
	if !ok {
		return nil, fmt.Errorf("the frontend evaluated %s", op.GetSource().GetIdentifier())
	}
	return []*layer.Ref{{FS: p.files[name]}}, nil
}

func (p *place) Send(e progress.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
}

func (p *place) Resolve(_ context.Context, ref string, pl ocispecs.Platform) (digest.Digest, []byte, error) {
	p.mu.Lock()
	p.resolved = append(p.resolved, ref+" "+pl.OS+"/"+pl.Architecture)
	p.mu.Unlock()
	if strings.Contains(ref, "absent") {
		return "", nil, errors.New("not found")
	}
	cfg := fmt.Sprintf(`{"os":%q,"architecture":%q,"config":{"Env":["PATH=/bin"],"User":"app"},"rootfs":{"type":"layers","diff_ids":[%q]}}`, pl.OS, pl.Architecture, digest.FromString(ref))
	return digest.FromString(ref), []byte(cfg), nil
}

func (p *place) Selected(context.Context, *pb.Op, int, *layer.Ref) (*tree.Selection, error) {
	return nil, nil
}

func (p *place) ResolveLayout(ctx context.Context, store, ref string, pl ocispecs.Platform) (digest.Digest, []byte, error) {
	return p.Resolve(ctx, "layout "+store+" "+ref, pl)
}

// options returns options for a build of the files of a txtar archive:
// "Dockerfile…" is the Dockerfile, "NAME/…" are local sources, "opts" has an
// option a line.
func options(t testing.TB, ar *txtar.Archive) (frontend.Options, *place) {
	t.Helper()
	p := &place{files: map[string]memFS{"dockerfile": {}, "context": {}}}
	opts := map[string]string{}
	for _, f := range ar.Files {
		src, name, ok := strings.Cut(f.Name, "/")
		switch {
		case f.Name == "opts":
			for line := range strings.Lines(string(f.Data)) {
				k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
				opts[k] = v
			}
		case strings.HasPrefix(f.Name, "want"):
		case !ok:
			p.files["dockerfile"][f.Name] = string(f.Data)
		default:
			if p.files[src] == nil {
				p.files[src] = memFS{}
			}
			p.files[src][name] = string(f.Data)
		}
	}
	s := solver.New(t.Context(), p, solver.Options{Sink: p})
	t.Cleanup(s.Close)
	return frontend.Options{
		Opts:      opts,
		Platforms: []ocispecs.Platform{{OS: "linux", Architecture: "amd64"}},
		Images:    p,
		Solver:    s,
		Sink:      p,
	}, p
}

// dockerfile returns an archive of one file and options.
func dockerfile(text string, opts ...string) *txtar.Archive {
	return &txtar.Archive{Files: []txtar.File{
		{Name: "Dockerfile", Data: []byte(text)},
		{Name: "opts", Data: []byte(strings.Join(opts, "\n"))},
	}}
}

// describe returns everything that a build gives, as text.
func describe(res *frontend.Result, err error, p *place) string {
	var b strings.Builder
	for _, e := range p.events {
		switch e := e.(type) {
		case progress.Warning:
			fmt.Fprintf(&b, "warning %s:%v %s\n", e.File, e.Lines, e.Short)
		case progress.Log:
			fmt.Fprintf(&b, "note %s", e.Data)
		}
	}
	slices.Sort(p.resolved)
	for _, r := range p.resolved {
		fmt.Fprintf(&b, "resolve %s\n", r)
	}
	if err != nil {
		return b.String() + "error " + err.Error() + "\n"
	}
	for _, pr := range res.Platforms {
		var cfg map[string]any
		_ = json.Unmarshal(pr.Config, &cfg)
		keep := map[string]any{}
		for _, k := range []string{"os", "architecture", "config"} {
			keep[k] = cfg[k]
		}
		text, _ := json.Marshal(keep)
		fmt.Fprintf(&b, "image %s index=%v %s\n", pr.ID, res.Index, text)
		if pr.Epoch != nil {
			fmt.Fprintf(&b, "epoch %d\n", pr.Epoch.Unix())
		}
	}
	var defs []*pb.Definition
	for _, pr := range res.Platforms {
		defs = append(defs, pr.Definition)
	}
	g, err := solver.Load(defs...)
	if err != nil {
		return b.String() + "error " + err.Error() + "\n"
	}
	return b.String() + g.String()
}

// TestGolden converts Dockerfiles of testdata and compares the graphs.
func TestGolden(t *testing.T) {
	if raceEnabled {
		t.Skip("BuildKit writes one field from several goroutines; see race_test.go")
	}
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			opt, p := options(t, ar)
			res, err := frontend.Build(t.Context(), opt)
			got := describe(res, err, p)
			i := slices.IndexFunc(ar.Files, func(f txtar.File) bool { return f.Name == "want" })
			if *update {
				if i < 0 {
					i = len(ar.Files)
					ar.Files = append(ar.Files, txtar.File{Name: "want"})
				}
				ar.Files[i].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if i < 0 {
				t.Fatal(`no "want" in the archive; run with -update`)
			}
			if diff := cmp.Diff(string(ar.Files[i].Data), got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSyntax(t *testing.T) {
	t.Parallel()
	tests := []struct {
		image, note string
		refused     bool
	}{
		{image: "docker/dockerfile"},
		{image: "docker/dockerfile:1"},
		{image: "docker/dockerfile:1.4"},
		{image: "docker/dockerfile:1.7-labs"},
		{image: "docker.io/docker/dockerfile:latest"},
		{image: "docker/dockerfile-upstream:master"},
		{image: "docker/dockerfile:1@sha256:" + strings.Repeat("a", 64)},
		{image: "mirror.corp:5000/proxy/docker/dockerfile:1"},
		{image: "mirror.corp/dockerfile:1", note: "taken for a mirror"},
		{image: "mirror.corp/x/dockerfile", note: "taken for a mirror"},
		{image: "docker/dockerfile:1.999", note: "newer Dockerfile language"},
		{image: "docker/dockerfile:2", note: "newer Dockerfile language"},
		{image: "docker/dockerfile:2.0-labs", note: "newer Dockerfile language"},
		{image: "someone/dockerfile", refused: true},
		{image: "dockerfile", refused: true},
		{image: "mirror.corp/mydockerfile:1", refused: true},
		{image: "ghcr.io/org/buildpack", refused: true},
		{image: "not a name", refused: true},
		{image: "UPPER", refused: true},
	}
	for _, tt := range tests {
		for _, form := range []string{"directive", "build-arg"} {
			t.Run(form+"/"+tt.image, func(t *testing.T) {
				t.Parallel()
				ar := dockerfile("# syntax=" + tt.image + "\nFROM scratch\nCOPY a /\n")
				if form == "build-arg" {
					if strings.Contains(tt.image, " ") {
						t.Skip("the first word is the image")
					}
					ar = dockerfile("FROM scratch\nCOPY a /\n", "build-arg:BUILDKIT_SYNTAX="+tt.image)
				}
				opt, p := options(t, ar)
				_, err := frontend.Build(t.Context(), opt)
				if tt.refused {
					if err == nil || !strings.Contains(err.Error(), "--syntax=builtin") {
						t.Fatalf("error %v, want one that names --syntax=builtin", err)
					}
					opt.SyntaxBuiltin = true
					if _, err := frontend.Build(t.Context(), opt); err != nil {
						t.Errorf("with SyntaxBuiltin: %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				var notes string
				for _, e := range p.events {
					if l, ok := e.(progress.Log); ok {
						notes += string(l.Data)
					}
				}
				if tt.note == "" && notes != "" || !strings.Contains(notes, tt.note) {
					t.Errorf("notes %q, want %q", notes, tt.note)
				}
			})
		}
	}
}

func TestSyntaxErrorHasPlace(t *testing.T) {
	t.Parallel()
	opt, _ := options(t, dockerfile("# syntax=org/other\nFROM scratch\n"))
	_, err := frontend.Build(t.Context(), opt)
	var se *frontend.SourceError
	if !errors.As(err, &se) || se.File != "Dockerfile" || se.Lines[0][0] != 1 {
		t.Errorf("got %v, want a SourceError of Dockerfile:1", err)
	}
}

func TestSubrequests(t *testing.T) {
	t.Parallel()
	const text = "from scratch AS One\nCOPY a /\nFROM scratch AS two\nARG V=1\nCOPY --from=One /a /\n"
	tests := []struct {
		request, want string
		status        int
	}{
		{frontend.RequestLint, "StageNameCasing", 1},
		{frontend.RequestTargets, "two", 0},
		{frontend.RequestOutline, "V", 0},
	}
	for _, tt := range tests {
		opt, p := options(t, dockerfile(text))
		a, err := frontend.Subrequest(t.Context(), opt, tt.request)
		if err != nil {
			t.Fatalf("%s: %v", tt.request, err)
		}
		if !strings.Contains(string(a.Text), tt.want) || !json.Valid(a.JSON) || a.Status != tt.status {
			t.Errorf("%s: status %d, text %s\njson %s", tt.request, a.Status, a.Text, a.JSON)
		}
		if len(p.resolved) > 0 {
			t.Errorf("%s resolved %q", tt.request, p.resolved)
		}
	}
	opt, _ := options(t, dockerfile(text))
	if _, err := frontend.Subrequest(t.Context(), opt, "frontend.nothing"); err == nil {
		t.Error("an unknown request was answered")
	}
}

func TestMetadataIsResolvedOnce(t *testing.T) {
	if raceEnabled {
		t.Skip("BuildKit writes one field from several goroutines; see race_test.go")
	}
	t.Parallel()
	opt, p := options(t, dockerfile("FROM debian AS a\nFROM debian AS b\nCOPY --from=a /x /\nCOPY --from=debian /y /\n"))
	if _, err := frontend.Build(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"docker.io/library/debian:latest linux/amd64"}, p.resolved); diff != "" {
		t.Errorf("resolved (-want +got):\n%s", diff)
	}
	var names []string
	for _, e := range p.events {
		if s, ok := e.(progress.Started); ok {
			names = append(names, s.Name)
		}
	}
	slices.Sort(names)
	want := []string{
		"[internal] load .dockerignore",
		"[internal] load build definition from Dockerfile",
		"[internal] load metadata for docker.io/library/debian:latest",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("vertices (-want +got):\n%s", diff)
	}
}

func TestMissingDockerfile(t *testing.T) {
	t.Parallel()
	opt, p := options(t, &txtar.Archive{Files: []txtar.File{{Name: "dockerfile", Data: []byte("FROM scratch\nCOPY a /\n")}}})
	if _, err := frontend.Build(t.Context(), opt); err != nil {
		t.Errorf("lower-case dockerfile: %v", err)
	}
	delete(p.files["dockerfile"], "dockerfile")
	opt2, _ := options(t, &txtar.Archive{})
	_, err := frontend.Build(t.Context(), opt2)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "Dockerfile") {
		t.Errorf("got %v, want that Dockerfile does not exist", err)
	}
}

func TestCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	opt, _ := options(t, dockerfile("FROM scratch\n"))
	if _, err := frontend.Build(ctx, opt); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

func FuzzDockerignore(f *testing.F) {
	for _, s := range []string{"", "*\n!a", "**/x\n#c\n", "!", "[", "a/../b\n/", "\ufeffx", "**/**/*[a-", "\\"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ignore string) {
		ar := dockerfile("FROM scratch\nCOPY . /\n")
		ar.Files = append(ar.Files, txtar.File{Name: "context/.dockerignore", Data: []byte(ignore)})
		tryBuild(t, ar)
	})
}

func FuzzCopyFlags(f *testing.F) {
	for _, s := range []string{"a /b", "--chmod=u+x,g=rw a /", "--chown=1:b --link a b /c/", "--parents --exclude=* a/./b /", "--from=x a b", "<<E /x\ny\nE", `["a", "b"]`, "--chmod= a /", "--exclude=[ a /", "$A ${B:-c} /"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, args string) {
		if strings.Contains(args, "\n") && strings.Contains(strings.ToLower(args), "add") {
			return // an ADD of a remote would go to the network
		}
		tryBuild(t, dockerfile("FROM scratch AS x\nFROM scratch\nCOPY "+args+"\n"))
	})
}

// tryBuild converts and loads: errors are fine, panics and wrong graphs not.
func tryBuild(t *testing.T, ar *txtar.Archive) {
	opt, _ := options(t, ar)
	res, err := frontend.Build(t.Context(), opt)
	if err != nil {
		return
	}
	for _, p := range res.Platforms {
		if _, err := solver.Load(p.Definition); err != nil {
			t.Errorf("the frontend made a graph that cannot be loaded: %v", err)
		}
	}
}
