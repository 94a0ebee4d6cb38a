// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package diff_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"hako/internal/diff"
	"hako/internal/image"
	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
)

// A spec says what an image is to be made of.
type spec struct {
	layers      [][]tree.Change
	config      map[string]any
	history     []map[string]any
	annotations map[string]string
	docker      bool
	index       bool
	zstd        bool
}

// memory holds an image's blobs.
type memory struct {
	root  image.Document
	blobs map[digest.Digest][]byte
}

func (m *memory) Root(context.Context) ([]byte, string, error) {
	return m.root.Data, m.root.Desc.MediaType, nil
}

func (m *memory) Document(_ context.Context, d ocispecs.Descriptor) ([]byte, error) {
	b, ok := m.blobs[d.Digest]
	if !ok {
		return nil, errors.New("no such blob")
	}
	return b, nil
}

func (m *memory) Layer(d ocispecs.Descriptor) layer.Source { return source(m.blobs[d.Digest]) }

type source []byte

func (s source) Open(_ context.Context, offset int64) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader(string(s[offset:]))), nil
}

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (s *spec) make(t *testing.T) *memory {
	t.Helper()
	st := must[*store.Store](t)(store.Open(t.TempDir()))
	m := &memory{blobs: map[digest.Digest][]byte{}}
	put := func(d image.Document) { m.blobs[d.Desc.Digest] = d.Data }
	var infos []image.LayerInfo
	var descs []ocispecs.Descriptor
	for _, changes := range s.layers {
		seq := func(yield func(tree.Change, error) bool) {
			for _, c := range changes {
				if !yield(c, nil) {
					return
				}
			}
		}
		l := must[*layer.Layer](t)(layer.Write(t.Context(), st, seq, layer.WriteOptions{Created: time.Unix(9, 0), Zstd: s.zstd}))
		r := must[io.ReadCloser](t)(l.Open(t.Context()))
		m.blobs[l.Descriptor().Digest] = must[[]byte](t)(io.ReadAll(r))
		r.Close()
		infos = append(infos, image.LayerInfo{DiffID: l.DiffID()})
		descs = append(descs, l.Descriptor())
	}
	s.config["history"] = s.history
	config := must[[]byte](t)(image.Finish(must[[]byte](t)(json.Marshal(s.config)), infos, image.FinishOptions{}))
	c := image.NewConfig(config, s.docker)
	man := must[image.Document](t)(image.NewManifest(c, descs, s.annotations, s.docker))
	put(c)
	put(man)
	m.root = man
	if s.index {
		man.Desc.Platform = &ocispecs.Platform{OS: "linux", Architecture: "amd64"}
		m.root = must[image.Document](t)(image.NewIndex([]ocispecs.Descriptor{man.Desc}, nil, s.docker))
	}
	return m
}

func entry(p string, mode tree.Mode) tree.Change {
	return tree.Change{Entry: tree.Entry{Path: p, Mode: mode, ModTime: time.Unix(1000, 0)}, Touched: true}
}

func file(p, content string) tree.Change {
	c := entry(p, tree.ModeRegular|0o644)
	c.Size = int64(len(content))
	c.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
	return c
}

// newSpec returns an image with one of everything; names sort as in the layers.
func newSpec() *spec {
	link := entry("lower/link", tree.ModeSymlink|0o777)
	link.Link = "file"
	dev := entry("lower/null", tree.ModeChar|0o666)
	dev.Major, dev.Minor = 1, 3
	hard := entry("lower/hard", tree.ModeRegular|0o644)
	hard.Size, hard.LinkTo = 3, "lower/file"
	capable := file("capable", "x")
	capable.Xattrs = map[string]string{"security.capability": "\x01"}
	return &spec{
		layers: [][]tree.Change{
			{capable, entry("lower", tree.ModeDir|0o755), file("lower/file", "one"), hard, link, dev, file("lower/other", "two"), file("temp", "1")},
			{entry("lower", tree.ModeDir|0o755), file("lower/new", "new"), {Entry: tree.Entry{Path: "temp"}, Deleted: true}, entry("upper", tree.ModeDir|0o755), file("upper/f", "f")},
		},
		config: map[string]any{
			"os": "linux", "architecture": "amd64", "created": "2020-01-01T00:00:00Z",
			"config": map[string]any{"Env": []any{"A=1"}, "Cmd": []any{"sh"}, "User": "u"}, "vendor.key": 1,
		},
		history: []map[string]any{
			{"created": "2019-01-01T00:00:00Z", "created_by": "one"}, {"created": "2020-01-01T00:00:00Z", "created_by": "two"},
		},
		annotations: map[string]string{"k": "v"},
	}
}

// change edits the change at path p in layer i.
func change(i int, p string, edit func(*tree.Change)) func(*spec) {
	return func(s *spec) {
		for j := range s.layers[i] {
			if s.layers[i][j].Path == p {
				edit(&s.layers[i][j])
				return
			}
		}
		panic("diff_test: no change at " + p)
	}
}

func remove(i int, p string) func(*spec) {
	return func(s *spec) {
		s.layers[i] = slices.DeleteFunc(s.layers[i], func(c tree.Change) bool { return c.Path == p })
	}
}

func replace(i int, p string, by tree.Change) func(*spec) {
	return change(i, p, func(c *tree.Change) { *c = by })
}

func compare(t *testing.T, a, b diff.Blobs, opt diff.Options) diff.Report {
	t.Helper()
	r, err := tryCompare(t, a, b, opt)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tryCompare(t *testing.T, a, b diff.Blobs, opt diff.Options) (diff.Report, error) {
	t.Helper()
	scratch := t.TempDir()
	ia, err := diff.Load(t.Context(), "A", a, scratch)
	if err != nil {
		return nil, err
	}
	ib, err := diff.Load(t.Context(), "B", b, scratch)
	if err != nil {
		return nil, err
	}
	return diff.Compare(t.Context(), ia, ib, opt)
}

func lines(r diff.Report) []string {
	out := []string{}
	for _, d := range r {
		out = append(out, d.String())
	}
	return out
}

const t1000, t1001 = "1970-01-01T00:16:40Z", "1970-01-01T00:16:41Z"

// TestEachField changes one thing at a time, which must be found, and nothing
// else with it.
func TestEachField(t *testing.T) {
	t.Parallel()
	sum := func(s string) string { return digest.FromString(s).String() }
	tests := []struct {
		name string
		edit func(*spec)
		want []string
	}{
		{"nothing", func(*spec) {}, nil},
		{"compression level is no difference but zstd is", func(s *spec) { s.zstd = true }, []string{
			"layer 1 mediaType: application/vnd.oci.image.layer.v1.tar+gzip | application/vnd.oci.image.layer.v1.tar+zstd",
			"layer 2 mediaType: application/vnd.oci.image.layer.v1.tar+gzip | application/vnd.oci.image.layer.v1.tar+zstd",
		}},
		{"redundant directory is no difference", remove(1, "lower"), nil},
		{"content", replace(0, "lower/other", file("lower/other", "owt")), []string{"tree /lower/other content: " + sum("two") + " | " + sum("owt")}},
		{"size", replace(0, "lower/other", file("lower/other", "three")), []string{"tree /lower/other size: 3 | 5"}},
		{"empty file", replace(0, "lower/other", file("lower/other", "")), []string{"tree /lower/other size: 3 | 0"}},
		{"mode", change(0, "lower/other", func(c *tree.Change) { c.Mode |= tree.ModeSetuid }), []string{"tree /lower/other mode: 0644 | 4644"}},
		{"directory mode", change(1, "upper", func(c *tree.Change) { c.Mode |= tree.ModeSticky }), []string{"tree /upper mode: 0755 | 1755"}},
		{"uid", change(0, "lower/other", func(c *tree.Change) { c.UID = 7 }), []string{"tree /lower/other owner: 0:0 | 7:0"}},
		{"gid", change(0, "lower/link", func(c *tree.Change) { c.GID = 7 }), []string{"tree /lower/link owner: 0:0 | 0:7"}},
		{"mtime", change(0, "lower/other", func(c *tree.Change) { c.ModTime = time.Unix(1001, 0) }), []string{"tree /lower/other mtime: " + t1000 + " | " + t1001}},
		{"directory mtime", change(1, "upper", func(c *tree.Change) { c.ModTime = time.Unix(1001, 0) }), []string{"tree /upper mtime: " + t1000 + " | " + t1001}},
		{"link", change(0, "lower/link", func(c *tree.Change) { c.Link = "other" }), []string{"tree /lower/link link: file | other"}},
		{"xattr", change(0, "capable", func(c *tree.Change) { c.Xattrs = map[string]string{"security.capability": "\x02"} }), []string{`tree /capable xattr security.capability: "\x01" | "\x02"`}},
		{"no xattr", change(0, "capable", func(c *tree.Change) { c.Xattrs = nil }), []string{`tree /capable xattr security.capability: "\x01" | (none)`}},
		{"device", change(0, "lower/null", func(c *tree.Change) { c.Minor = 5 }), []string{"tree /lower/null device: 1:3 | 1:5"}},
		{"device kind", change(0, "lower/null", func(c *tree.Change) { c.Mode = tree.ModeBlock | 0o666 }), []string{
			"tree /lower/null type: character device | block device", "layer 1 /lower/null entry: character device | block device",
		}},
		{"hard link", replace(0, "lower/hard", file("lower/hard", "one")), []string{"tree /lower/hard hardlink: /lower/file | /lower/hard"}},
		{"hard link of another", replace(0, "lower/hard", func() tree.Change {
			c := entry("lower/hard", tree.ModeRegular|0o644)
			c.LinkTo = "capable"
			return c
		}()), []string{
			`tree /lower/hard xattr security.capability: (none) | "\x01"`, "tree /lower/hard size: 3 | 1", "tree /lower/hard hardlink: /lower/file | /capable",
		}},
		{"missing file", remove(1, "upper/f"), []string{"tree /upper/f entry: file | (none)"}},
		{"additional file", func(s *spec) { s.layers[1] = append(s.layers[1], file("zz", "")) }, []string{"tree /zz entry: (none) | file"}},
		{"deletion", remove(1, "temp"), []string{"tree /temp entry: (none) | file", "layer 2 /temp entry: deletion | (none)"}},
		{"deletion undone in the lower layer", func(s *spec) { remove(1, "temp")(s); remove(0, "temp")(s) }, []string{
			"layer 1 /temp entry: file | (none)", "layer 2 /temp entry: deletion | (none)",
		}},
		{"content that is not seen", replace(0, "temp", file("temp", "2")), []string{"layer 1 /temp content: " + sum("1") + " | " + sum("2")}},
		{"file in the other layer", func(s *spec) {
			remove(1, "upper")(s)
			remove(1, "upper/f")(s)
			s.layers[0] = append(s.layers[0], entry("upper", tree.ModeDir|0o755), file("upper/f", "f"))
		}, []string{
			"layer 1 /upper entry: (none) | directory", "layer 1 /upper/f entry: (none) | file",
			"layer 2 /upper entry: directory | (none)", "layer 2 /upper/f entry: file | (none)",
		}},
		{"one more layer", func(s *spec) {
			s.layers = append(s.layers, nil)
			s.history = append(s.history, map[string]any{"created": "2020-01-01T00:00:00Z"})
		}, []string{
			"config history entries: 2 | 3", `history 3 created: (none) | "2020-01-01T00:00:00Z"`, "manifest layers: 2 | 3",
			"layer 3 diffID: (none) | sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
		}},
		{"config field", func(s *spec) { s.config["config"].(map[string]any)["User"] = "v" }, []string{"config config.User: u | v"}},
		{"config field missing", func(s *spec) { delete(s.config["config"].(map[string]any), "User") }, []string{`config config.User: "u" | (none)`}},
		{"config list item", func(s *spec) { s.config["config"].(map[string]any)["Env"] = []any{"A=2"} }, []string{"config config.Env[0]: A=1 | A=2"}},
		{"config list", func(s *spec) { s.config["config"].(map[string]any)["Cmd"] = nil }, []string{`config config.Cmd: ["sh"] | null`}},
		{"unknown field", func(s *spec) { s.config["vendor.key"] = "1" }, []string{`config vendor.key: 1 | "1"`}},
		{"created", func(s *spec) { s.config["created"] = "2021-01-01T00:00:00Z" }, []string{"config created: 2020-01-01T00:00:00Z | 2021-01-01T00:00:00Z"}},
		{"history field", func(s *spec) { s.history[1]["created_by"] = "three" }, []string{"history 2 created_by: two | three"}},
		{"history time", func(s *spec) { s.history[0]["created"] = "2018-01-01T00:00:00Z" }, []string{"history 1 created: 2019-01-01T00:00:00Z | 2018-01-01T00:00:00Z"}},
		{"history comment", func(s *spec) { s.history[0]["comment"] = "c" }, []string{`history 1 comment: (none) | "c"`}},
		{"history entry", func(s *spec) {
			s.history = append(s.history, map[string]any{"created": "2020-01-01T00:00:00Z", "empty_layer": true})
		}, []string{"config history entries: 2 | 3", `history 3 created: (none) | "2020-01-01T00:00:00Z"`, "history 3 empty_layer: (none) | true"}},
		{"annotation", func(s *spec) { s.annotations = map[string]string{"k": "w", "l": ""} }, []string{"manifest annotations.k: v | w", "manifest annotations.l: (none) | "}},
		{"index", func(s *spec) { s.index = true }, []string{"image mediaType: application/vnd.oci.image.manifest.v1+json | application/vnd.oci.image.index.v1+json"}},
		{"Docker's media types", func(s *spec) { s.docker = true }, []string{
			"image mediaType: application/vnd.oci.image.manifest.v1+json | application/vnd.docker.distribution.manifest.v2+json",
			"manifest mediaType: application/vnd.oci.image.manifest.v1+json | application/vnd.docker.distribution.manifest.v2+json",
			"manifest config.mediaType: application/vnd.oci.image.config.v1+json | application/vnd.docker.container.image.v1+json",
			"layer 1 mediaType: application/vnd.oci.image.layer.v1.tar+gzip | application/vnd.docker.image.rootfs.diff.tar.gzip",
			"layer 2 mediaType: application/vnd.oci.image.layer.v1.tar+gzip | application/vnd.docker.image.rootfs.diff.tar.gzip",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a, b := newSpec(), newSpec()
			tt.edit(b)
			ma, mb := a.make(t), b.make(t)
			got := lines(compare(t, ma, mb, diff.Options{}))
			if d := cmp.Diff(append([]string{}, tt.want...), got); d != "" {
				t.Errorf("differences differ (-want +got):\n%s", d)
			}
			if back := compare(t, mb, ma, diff.Options{}); len(back) != len(got) {
				t.Errorf("%d differences one way, %d the other", len(got), len(back))
			}
		})
	}
}

func TestIgnore(t *testing.T) {
	t.Parallel()
	a, b := newSpec(), newSpec()
	b.config["created"], b.history[0]["created"] = "2021-01-01T00:00:00Z", "2021-01-01T00:00:00Z"
	b.history[1]["created_by"] = "x"
	change(0, "lower/other", func(c *tree.Change) { c.ModTime = time.Unix(1001, 0) })(b)
	replace(0, "temp", file("temp", "2"))(b)
	change(1, "upper/f", func(c *tree.Change) { c.UID = 3 })(b)
	ma, mb := a.make(t), b.make(t)
	all := []string{"created", "history", "layers", "mtime", "path:/upper"}
	for _, left := range []struct{ ignore, field string }{
		{"created", "created"}, {"history", "created_by"}, {"layers", "content"}, {"mtime", "mtime"}, {"path:/upper", "owner"},
	} {
		opt := must[diff.Options](t)(diff.ParseIgnore(slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == left.ignore })))
		got := map[string]bool{}
		for _, d := range compare(t, ma, mb, opt) {
			got[d.Field] = true
		}
		if d := cmp.Diff([]string{left.field}, slices.Collect(maps.Keys(got))); d != "" {
			t.Errorf("without %s (-want +got):\n%s", left.ignore, d)
		}
	}
	opt := must[diff.Options](t)(diff.ParseIgnore(append(all[:3:3], "mtime:lower/*", "path:up*", "digest")))
	if got := compare(t, ma, mb, opt); len(got) > 0 {
		t.Errorf("with globs there is left: %v", lines(got))
	}
	for _, bad := range []string{"", "mtimes", "path", "path:", "mtime:[", "created:x"} {
		if opt, err := diff.ParseIgnore([]string{bad}); err == nil {
			t.Errorf("ParseIgnore(%q) = %v, want an error", bad, opt)
		}
	}
}

func TestDigests(t *testing.T) {
	t.Parallel()
	a, b := newSpec(), newSpec()
	remove(1, "lower")(b)
	got := lines(compare(t, a.make(t), b.make(t), diff.Options{Digests: true}))
	for _, want := range []string{"image digest", "manifest digest", "manifest config.digest", "config rootfs.diff_ids[1]", "layer 2 digest", "layer 2 diffID"} {
		if !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, want+":") }) {
			t.Errorf("no %s among\n%s", want, strings.Join(got, "\n"))
		}
	}
}

// TestUntrusted plants what would make two images look equal, or a broken one
// look whole: each is an error.
func TestUntrusted(t *testing.T) {
	t.Parallel()
	good := newSpec().make(t)
	liar := newSpec()
	replace(0, "lower/other", file("lower/other", "owt"))(liar)
	other := liar.make(t)
	layersOf := func(m *memory) (man ocispecs.Manifest) {
		if err := json.Unmarshal(m.root.Data, &man); err != nil {
			t.Fatal(err)
		}
		return man
	}
	withManifest := func(m *memory, man ocispecs.Manifest) *memory {
		raw := must[[]byte](t)(json.Marshal(man))
		out := &memory{blobs: maps.Clone(m.blobs)}
		out.root = image.Document{Data: raw, Desc: m.root.Desc}
		return out
	}
	// The other image's layer under the good one's diffID.
	man := layersOf(other)
	man.Config = layersOf(good).Config
	claims := withManifest(other, man)
	maps.Copy(claims.blobs, good.blobs)
	// A blob cut off, and a blob that is not its digest.
	first := layersOf(good).Layers[0].Digest
	short := &memory{root: good.root, blobs: maps.Clone(good.blobs)}
	short.blobs[first] = short.blobs[first][:len(short.blobs[first])-1]
	flipped := &memory{root: good.root, blobs: maps.Clone(good.blobs)}
	flipped.blobs[first] = append(slices.Clone(flipped.blobs[first][:10]), slices.Clone(good.blobs[first][11:])...)
	// A config that is not its digest, a layer too few, a wrong size.
	config := &memory{root: good.root, blobs: maps.Clone(good.blobs)}
	config.blobs[layersOf(good).Config.Digest] = []byte(`{"os":"linux","architecture":"amd64"}`)
	fewer := layersOf(good)
	fewer.Layers = fewer.Layers[:1]
	wrong := layersOf(good)
	wrong.Layers[0].Size++
	for name, m := range map[string]*memory{
		"false diffID": claims, "short blob": short, "changed blob": flipped, "changed config": config,
		"layer missing": withManifest(good, fewer), "wrong size": withManifest(good, wrong),
	} {
		for _, order := range [][2]diff.Blobs{{good, m}, {m, good}} {
			if r, err := tryCompare(t, order[0], order[1], diff.Options{}); err == nil {
				t.Errorf("%s: no error, and the differences %v", name, lines(r))
			}
		}
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	r := diff.Report{{Kind: "tree", Path: "/a\x1b[2J", Field: "mode", A: "0644", B: "0600"}}
	var b strings.Builder
	if err := r.WriteText(&b); err != nil || b.String() != "tree /a?[2J mode: 0644 | 0600\n" {
		t.Errorf("text is %q, %v", b.String(), err)
	}
	raw := must[[]byte](t)(json.Marshal(r[0]))
	if want := `{"kind":"tree","path":"/a\u001b[2J","field":"mode","a":"0644","b":"0600"}`; string(raw) != want {
		t.Errorf("JSON is %s, want %s", raw, want)
	}
}
