// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source_test

import (
	"fmt"
	gofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"

	"hako/internal/source"
	"hako/internal/tree"
)

func openDir(t testing.TB, path string) *tree.Dir {
	t.Helper()
	d, err := tree.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// build makes files of "path content", "path -> target" and "path/" lines.
func build(t testing.TB, root string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		name, rest, _ := strings.Cut(line, " ")
		p := filepath.Join(root, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(p, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(rest, "-> "); ok {
			err = os.Symlink(target, p)
		} else {
			err = os.WriteFile(p, []byte(rest), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// oracle lists what fsutil sends, as it is asked to by BuildKit's client.
func oracle(t testing.TB, root string, opt source.LocalOptions) ([]string, error) {
	t.Helper()
	inner, err := fsutil.NewFS(root)
	if err != nil {
		t.Fatal(err)
	}
	inner, err = fsutil.NewFilterFS(inner, &fsutil.FilterOpt{Map: func(_ string, st *types.Stat) fsutil.MapResult {
		st.Uid, st.Gid = 0, 0
		return fsutil.MapResultKeep
	}})
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := fsutil.NewFilterFS(inner, &fsutil.FilterOpt{
		FollowPaths: opt.FollowPaths, IncludePatterns: opt.IncludePatterns, ExcludePatterns: opt.ExcludePatterns,
	})
	if err != nil {
		return nil, err
	}
	out := []string{}
	err = fsys.Walk(t.Context(), "/", func(p string, d gofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*types.Stat)
		link := ""
		if fi.Mode()&os.ModeSymlink != 0 {
			link = st.Linkname
		}
		out = append(out, fmt.Sprintf("%s %v %d:%d %v %s", p, fi.Mode(), st.Uid, st.Gid, st.ModTime, link))
		return nil
	})
	return out, err
}

func listing(t testing.TB, fsys tree.FS) []string {
	t.Helper()
	out := []string{}
	err := tree.Walk(t.Context(), fsys, "", func(e tree.Entry) error {
		if e.Path == "" {
			return nil
		}
		again, err := fsys.Lstat(e.Path)
		if err != nil || !cmp.Equal(e, again) {
			return fmt.Errorf("Lstat(%q) = %v, %w, ReadDir has %v", e.Path, again, err, e)
		}
		out = append(out, fmt.Sprintf("%s %v %d:%d %v %s", e.Path, e.Mode.FileMode(), e.UID, e.GID, e.ModTime.UnixNano(), e.Link))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// compare checks Local against fsutil on one tree.
func compare(t testing.TB, root string, opt source.LocalOptions) {
	t.Helper()
	want, werr := oracle(t, root, opt)
	fsys, err := source.Local(openDir(t, root), opt)
	if (err != nil) != (werr != nil) {
		// A pattern that only compiles badly fails in fsutil's walk.
		if err == nil && strings.Contains(werr.Error(), "syntax error") {
			return
		}
		t.Fatalf("Local(%+v): %v, fsutil: %v", opt, err, werr)
	}
	if err != nil {
		return
	}
	if diff := cmp.Diff(want, listing(t, fsys)); diff != "" {
		t.Errorf("%+v: fsutil (-) and Local (+) differ:\n%s", opt, diff)
	}
}

var sample = []string{
	"a/b/c 1", "a/b/d 2", "a/e 3", "b/x/y/z 4", "b/w 5", "build/app 6", "build/sub/app 7",
	"Dockerfile f", ".dockerignore i", "empty/", "node/m/p.js 8", "node/m/q.ts 9", "foo 1", "foo2/bar 2", "foo.d 1", "foo-x/y z",
	"l1 -> a/b", "l2 -> /b/x", "l3 -> l1", "up -> ../../../foo", "loop -> loop", "p -> q", "q -> p",
	"b/back -> ../a", "b/root -> /", "b/self -> .", "star* s", "dangling -> none/x", "sub/l -> ../foo2/bar", "[x] 1", `b\s 1`,
}

func TestLocalAsFsutil(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	build(t, root, sample...)
	if err := os.Chmod(filepath.Join(root, "foo"), 0o4755|gofs.ModeSetuid|gofs.ModeSticky); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ follow, include, exclude string }{
		{},
		{exclude: "build"},
		{exclude: "* !a/b"},
		{exclude: "* !a/b/c"},
		{exclude: "a !a/b/c"},
		{exclude: "a !**/c"},
		{exclude: "** !**/*.js"},
		{exclude: "node !node/m/*.js"},
		{exclude: "*/*"},
		{exclude: "a/** !a/b/** a/b/c"},
		{exclude: "!a a !a/e a/b"},
		{exclude: "foo*"},
		{exclude: "* !foo?/b* "},
		{exclude: "."},
		{exclude: "/a"},
		{exclude: "b/x/ !b/x/y/z"},
		{follow: "a/b/c"},
		{follow: "l1/c"},
		{follow: "l1/c l1/d"},
		{follow: "l3"},
		{follow: "l2/y l3/d", exclude: "a/b/d"},
		{follow: "up"},
		{follow: "loop p"},
		{follow: "b/back/e"},
		{follow: "b/root/foo"},
		{follow: "b/root"},
		{follow: "b/self/w"},
		{follow: "dangling"},
		{follow: "l*"},
		{follow: "l*/c"},
		{follow: "*/l"},
		{follow: "b*"},
		{follow: "foo*/bar"},
		{follow: "."},
		{follow: "/"},
		{follow: "../foo"},
		{follow: "none"},
		{follow: "none*"},
		{follow: "a/b a foo"},
		{follow: `star\*`},
		{follow: "[x]"},
		{include: "a/b"},
		{include: "a/b foo", follow: "l1"},
		{include: "**/app"},
		{include: "**/app", exclude: "build/sub"},
		{include: "a !a/b"},
		{include: "*", exclude: "*/b"},
		{include: "b a", follow: "."},
		{follow: "sub/l", exclude: "foo2"},
		{follow: "Dockerfile build/app", exclude: "build\x00!build/app"},
	} {
		compare(t, root, source.LocalOptions{
			FollowPaths: strings.Fields(c.follow), IncludePatterns: strings.Fields(c.include),
			ExcludePatterns: strings.FieldsFunc(c.exclude, func(r rune) bool { return r == ' ' || r == 0 }),
		})
	}
}

// randomCase makes a tree and options of few names, so that they meet.
func randomCase(t testing.TB, r *rand.Rand, root string) source.LocalOptions {
	name := func() string { return []string{"a", "b", "c", "ab", "a.b"}[r.IntN(5)] }
	p := func() string {
		s := name()
		for range r.IntN(4) {
			s += "/" + name()
		}
		return s
	}
	dir, err := os.OpenRoot(root) // links must not lead what is written out of it
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for range 5 + r.IntN(25) {
		at := p()
		if dir.MkdirAll(filepath.Dir(at), 0o755) != nil {
			continue
		}
		switch r.IntN(6) {
		case 0:
			target := strings.Repeat("../", r.IntN(3)) + p()
			if r.IntN(3) == 0 {
				target = "/" + p()
			}
			_ = dir.Symlink(target, at)
		case 1:
			_ = dir.Mkdir(at, 0o755)
		default:
			_ = dir.WriteFile(at, nil, 0o644)
		}
	}
	pattern := func() string {
		parts := strings.Split(p(), "/")
		for i := range parts {
			if r.IntN(4) == 0 {
				parts[i] = []string{"*", "**", "a*", "?", "*b", "[ab]", "..", "."}[r.IntN(8)]
			}
		}
		return strings.Join(parts, "/")
	}
	list := func(n int, not bool) (out []string) {
		for range r.IntN(n) {
			s := pattern()
			if not && r.IntN(3) == 0 {
				s = "!" + s
			}
			out = append(out, s)
		}
		return out
	}
	return source.LocalOptions{FollowPaths: list(4, false), IncludePatterns: list(3, true), ExcludePatterns: list(6, true)}
}

func FuzzLocalAsFsutil(f *testing.F) {
	for i := range uint64(150) {
		f.Add(i)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		root := t.TempDir()
		opt := randomCase(t, rand.New(rand.NewPCG(seed, 1)), root)
		compare(t, root, opt)
	})
}

// FuzzLocalPatterns is about any text as patterns and follow paths.
func FuzzLocalPatterns(f *testing.F) {
	f.Add("a\n!a/b", "l1/c")
	f.Add("**\n!**/c", "l*/[")
	f.Add("[", `\`)
	f.Fuzz(func(t *testing.T, exclude, follow string) {
		if strings.ContainsRune(follow, 0) || strings.Contains(follow, "..") {
			t.Skip() // fsutil looks outside of the root for these
		}
		root := t.TempDir()
		build(t, root, sample...)
		opt := source.LocalOptions{ExcludePatterns: strings.Split(exclude, "\n")}
		if follow != "" {
			opt.FollowPaths = strings.Split(follow, "\n")
		}
		compare(t, root, opt)
	})
}

func TestLocalEntries(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	build(t, root, "f x", "secret s")
	if err := os.Chmod(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(root, "f"), filepath.Join(root, "g")); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(7, 0)
	fsys, err := source.Local(openDir(t, root), source.LocalOptions{ExcludePatterns: []string{"secret"}, RootTime: at})
	if err != nil {
		t.Fatal(err)
	}
	e, err := fsys.Lstat("")
	if err != nil || e.Mode != tree.ModeDir|0o755 || e.UID != 0 || !e.ModTime.Equal(at) {
		t.Errorf("root = %+v, %v", e, err)
	}
	a, _ := fsys.Lstat("f")
	b, _ := fsys.Lstat("g")
	if a.Node == (tree.NodeID{}) || a.Node != b.Node {
		t.Errorf("hard links: %v and %v", a.Node, b.Node)
	}
	if _, err := fsys.Open("secret"); err == nil || strings.Contains(fmt.Sprint(listing(t, fsys)), "secret") {
		t.Errorf("an ignored file can be opened or is listed: %v", err)
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	build(t, root, "build/app x", "src/main.go x", "README.md x")
	file := "# what is not needed\n\nbuild\n*.md\n!README.md\n"
	opt := source.LocalOptions{ExcludePatterns: []string{"build", "*.md", "!README.md"}}
	fsys, err := source.Local(openDir(t, root), opt)
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]source.Absence{
		"build/app":   {Pattern: "build", Line: 3, Exists: true},
		"app":         {Near: []source.NearPath{{Path: "build/app", Pattern: "build", Line: 3}}},
		"src/mian.go": {Near: []source.NearPath{{Path: "src/main.go"}}},
		"Readme.md":   {Pattern: "*.md", Line: 4, Near: []source.NearPath{{Path: "README.md"}}},
		"zzz":         {},
	} {
		if diff := cmp.Diff(want, fsys.Explain(t.Context(), opt, []byte(file), p)); diff != "" {
			t.Errorf("%s: %s", p, diff)
		}
	}
	if a := fsys.Explain(t.Context(), opt, []byte("other\n"), "build/app"); a.Line != 0 {
		t.Errorf("line %d of another file", a.Line)
	}
}

func BenchmarkLocalWalk(b *testing.B) {
	root := b.TempDir()
	for i := range 10000 {
		build(b, root, fmt.Sprintf("d%d/e%d/file%d x", i%20, i%200, i))
	}
	d := openDir(b, root)
	n := 0
	for b.Loop() {
		fsys, err := source.Local(d, source.LocalOptions{ExcludePatterns: []string{".git", "**/*.log", "node_modules", "!keep"}})
		if err != nil {
			b.Fatal(err)
		}
		n = 0
		if err := tree.Walk(b.Context(), fsys, "", func(tree.Entry) error { n++; return nil }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/file")
}
