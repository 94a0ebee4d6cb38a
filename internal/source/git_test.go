// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package source_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh/agent"

	"hako/internal/git"
	"hako/internal/source"
	"hako/internal/store"
	"hako/internal/tree"
	"hako/test/gitserver"
)

// A gitPlace has repositories in a directory and a server for them.
type gitPlace struct {
	t    *testing.T
	root string
	url  string
}

func newGitPlace(t *testing.T, v2 bool, wrap func(http.Handler) http.Handler) *gitPlace {
	t.Helper()
	root := t.TempDir()
	h, err := gitserver.HTTP(t.Context(), root, v2)
	if err != nil {
		t.Fatal(err)
	}
	if wrap != nil {
		h = wrap(h)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return &gitPlace{t: t, root: root, url: s.URL}
}

func (p *gitPlace) script(s string) string {
	p.t.Helper()
	out, err := gitserver.Script(p.t.Context(), p.root, s)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

func gitClient(t *testing.T) *source.GitClient {
	t.Helper()
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d := source.NewDialer(nil, nil)
	return &source.GitClient{
		HTTP: &http.Client{Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}}, Dial: d.DialContext, Store: st,
	}
}

var checkoutTime = time.Unix(1700000000, 0)

func fetchGit(t *testing.T, url string, opt source.GitOptions) (*source.GitTree, error) {
	t.Helper()
	opt.Delay, opt.Time = time.Millisecond, checkoutTime
	return source.FetchGit(t.Context(), gitClient(t), url, opt)
}

// list returns a tree as text, a line a path. Directories below .git are left out.
func list(t *testing.T, fsys tree.FS) []string {
	t.Helper()
	var out []string
	err := tree.Walk(t.Context(), fsys, "", func(e tree.Entry) error {
		if strings.Contains("/"+e.Path+"/", "/.git/") || e.Path == "" {
			return nil
		}
		line := fmt.Sprintf("%o %d:%d %s", e.Mode, e.UID, e.GID, e.Path)
		if e.Mode.IsSymlink() {
			line += " -> " + e.Link
		}
		if e.Mode.IsRegular() {
			b := content(t, fsys, e.Path)
			if int64(len(b)) != e.Size {
				t.Errorf("%s has %d bytes, its size is %d", e.Path, len(b), e.Size)
			}
			line += fmt.Sprintf(" %q", b)
		}
		if !e.ModTime.Equal(checkoutTime) {
			line += " " + e.ModTime.UTC().String()
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func content(t *testing.T, fsys tree.FS, p string) string {
	t.Helper()
	r, err := fsys.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// write puts a tree on disk, for git to look at.
func write(t *testing.T, fsys tree.FS, dir string) {
	t.Helper()
	err := tree.Walk(t.Context(), fsys, "", func(e tree.Entry) error {
		p := filepath.Join(dir, e.Path)
		switch {
		case e.Mode.IsDir():
			return os.MkdirAll(p, 0o755)
		case e.Mode.IsSymlink():
			return os.Symlink(e.Link, p)
		}
		return os.WriteFile(p, []byte(content(t, fsys, e.Path)), fs.FileMode(e.Mode.Perm()))
	})
	if err != nil {
		t.Fatal(err)
	}
}

const appRepo = `
git init -q -b main w; cd w
mkdir -p d/e; echo one > a.txt; printf '#!/bin/sh\n' > run.sh; chmod 755 run.sh; ln -s a.txt d/link; echo f > d/e/f
git add .; git commit -qm one; git tag v0
echo two > a.txt; git commit -qam two; git tag -a -m v1 v1
git checkout -q -b feature/x; echo x > x.txt; git add .; git commit -qm x
git checkout -q main; git branch v1 v0; echo three > a.txt; git commit -qam three
cd ..; git clone -q --bare w app.git`

func TestGitRefs(t *testing.T) {
	t.Parallel()
	for _, v2 := range []bool{true, false} {
		p := newGitPlace(t, v2, nil)
		p.script(appRepo)
		rev := func(s string) string { return p.script("git -C app.git rev-parse '" + s + "'") }
		for _, tt := range []struct {
			name     string
			opt      source.GitOptions
			ref, id  string
			commit   string
			problem  string
			elements int // of the tree's root; 0 is not looked at
		}{
			{name: "default", ref: "refs/heads/main", commit: rev("main"), elements: 3},
			{name: "branch", opt: source.GitOptions{Ref: "feature/x"}, ref: "refs/heads/feature/x", commit: rev("feature/x"), elements: 4},
			{name: "branch in full", opt: source.GitOptions{Ref: "refs/heads/main"}, ref: "refs/heads/main", commit: rev("main")},
			{name: "branch in part", opt: source.GitOptions{Ref: "heads/main"}, ref: "refs/heads/main", commit: rev("main")},
			{name: "tag", opt: source.GitOptions{Ref: "v0"}, ref: "refs/tags/v0", commit: rev("v0")},
			{name: "branch before tag", opt: source.GitOptions{Ref: "v1"}, ref: "refs/heads/v1", commit: rev("v0")},
			{name: "annotated tag", opt: source.GitOptions{Ref: "refs/tags/v1"}, ref: "refs/tags/v1", id: rev("refs/tags/v1"), commit: rev("refs/tags/v1^{}")},
			{name: "commit", opt: source.GitOptions{Ref: rev("main")}, ref: rev("main"), commit: rev("main")},
			{name: "commit in history", opt: source.GitOptions{Ref: rev("main~1")}, ref: rev("main~1"), commit: rev("main~1")},
			{name: "tag object", opt: source.GitOptions{Ref: rev("refs/tags/v1")}, ref: rev("refs/tags/v1"), commit: rev("refs/tags/v1^{}")},
			{name: "checksum", opt: source.GitOptions{Checksum: rev("main")}, ref: "refs/heads/main", commit: rev("main")},
			{name: "beginning of a checksum", opt: source.GitOptions{Checksum: rev("main")[:7]}, ref: "refs/heads/main", commit: rev("main")},
			{name: "checksum of a tag", opt: source.GitOptions{Ref: "refs/tags/v1", Checksum: rev("refs/tags/v1")}, ref: "refs/tags/v1", id: rev("refs/tags/v1"), commit: rev("refs/tags/v1^{}")},
			{name: "checksum of a tag's commit", opt: source.GitOptions{Ref: "refs/tags/v1", Checksum: rev("refs/tags/v1^{}")}, ref: "refs/tags/v1", id: rev("refs/tags/v1"), commit: rev("refs/tags/v1^{}")},
			{name: "by commit", opt: source.GitOptions{Ref: "main", Checksum: rev("v0"), FetchByCommit: true}, ref: "refs/heads/main", id: rev("v0"), commit: rev("v0")},
			{name: "wrong checksum", opt: source.GitOptions{Ref: "main", Checksum: rev("v0")}, problem: "checksum is " + rev("main") + ", want " + rev("v0")},
			{name: "wrong checksum of a commit", opt: source.GitOptions{Ref: rev("main"), Checksum: "0123"}, problem: "want 0123"},
			{name: "checksum that is none", opt: source.GitOptions{Checksum: "sha256:12"}, problem: "want the hexadecimal digits"},
			{name: "abbreviated commit", opt: source.GitOptions{Ref: rev("main")[:10]}, problem: "no branch or tag"},
			{name: "no such branch", opt: source.GitOptions{Ref: "mian"}, problem: `no branch or tag "mian"`},
			{name: "no such commit", opt: source.GitOptions{Ref: strings.Repeat("12", 20)}, problem: "no commit 1212"},
			{name: "an option", opt: source.GitOptions{Ref: "--upload-pack=x"}, problem: "no name of a branch"},
			{name: "by commit without one", opt: source.GitOptions{Checksum: "12", FetchByCommit: true}, problem: "40 digits"},
			{name: "SHA-256", opt: source.GitOptions{Ref: strings.Repeat("12", 32)}, problem: "SHA-1"},
		} {
			t.Run(fmt.Sprintf("%s, v2 %v", tt.name, v2), func(t *testing.T) {
				t.Parallel()
				got, err := fetchGit(t, p.url+"/app.git", tt.opt)
				if tt.problem != "" {
					if err == nil || !strings.Contains(err.Error(), tt.problem) {
						t.Fatalf("error %v, want %q", err, tt.problem)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if tt.id == "" {
					tt.id = got.Commit
					if tt.ref == tt.opt.Ref {
						tt.id = tt.ref
					}
				}
				if strings.HasPrefix(tt.ref, "refs/") && tt.opt.Ref == tt.ref && tt.id == tt.ref {
					tt.id = tt.commit
				}
				if got.Ref != tt.ref || got.ID != tt.id || got.Commit != tt.commit {
					t.Errorf("got %s %s %s, want %s %s %s", got.Ref, got.ID, got.Commit, tt.ref, tt.id, tt.commit)
				}
				root, err := got.FS.ReadDir("")
				if err != nil || tt.elements > 0 && len(root) != tt.elements {
					t.Errorf("%d entries, %v", len(root), err)
				}
			})
		}
	}
}

func TestGitTree(t *testing.T) {
	t.Parallel()
	p := newGitPlace(t, true, nil)
	p.script(appRepo)
	got, err := fetchGit(t, p.url+"/app.git", source.GitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`100644 0:0 a.txt "three\n"`, "40755 0:0 d", "40755 0:0 d/e", `100644 0:0 d/e/f "f\n"`, "120777 0:0 d/link -> a.txt", `100755 0:0 run.sh "#!/bin/sh\n"`,
	}
	if diff := cmp.Diff(want, list(t, got.FS)); diff != "" {
		t.Error(diff)
	}
	got, err = fetchGit(t, p.url+"/app.git", source.GitOptions{Subdir: "d/", KeepGitDir: true, CommitTime: true})
	if err != nil {
		t.Fatal(err)
	}
	at := " 2020-09-13 12:27:40 +0000 UTC"
	if diff := cmp.Diff([]string{"40755 0:0 e" + at, `100644 0:0 e/f "f\n"` + at, "120777 0:0 link -> a.txt" + at}, list(t, got.FS)); diff != "" {
		t.Error(diff)
	}
	for dir, want := range map[string]string{"none": `no directory "none"`, "d/link": "is a link", "a.txt": "is a file", "a.txt/x": "is a file"} {
		if _, err := fetchGit(t, p.url+"/app.git", source.GitOptions{Subdir: dir}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the directory %s: %v, want %q", dir, err, want)
		}
	}
	for _, q := range []string{"x", "a.txt/x", "d/link/x"} {
		if _, err := got.FS.Lstat(q); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Lstat(%q): %v", q, err)
		}
	}
}

// TestGitCheckout compares with what git itself checks out, conversions of
// contents included.
func TestGitCheckout(t *testing.T) {
	t.Parallel()
	p := newGitPlace(t, true, nil)
	p.script(`git init -q -b main w; cd w
printf '%s\n' '* text=auto eol=crlf' '*.bin -text' '*.lf text eol=lf' '*.raw binary' '[attr]win text eol=crlf' 'w/** win' '*.id ident' \
	'deep/**/x.auto text eol=lf' '"quo ted" eol=crlf' '/top.t -crlf' '*.x !text !eol' 'macro/* macro' '[attr]macro -text' '# c' 'bad/ text' '*.dual ident text=auto eol=crlf' > .gitattributes
mkdir -p w/v deep/er macro/sub sub
for f in a.txt b.bin c.lf d.raw w/v/e f.id deep/er/x.auto deep/x.auto 'quo ted' top.t sub/top.t g.x macro/m macro/sub/m sub/h.txt k.dual; do printf 'a\nb\r\nc\n' > "$f"; done
for f in p.txt q.lf w/r macro/lf sub/lf.txt; do printf 'a\nb\nc' > "$f"; done
printf 'a\n\0b\n' > nul.txt; printf 'a\rb\n' > cr.txt; printf 'a\n\032' > eof.txt; printf '\001\002\003\n' > ctl.txt; : > empty.txt
printf '$Id$ $Id: old $ $Id: with space inside $ $Id: open\n$Identity$ $Id$' > i.id; printf 'x$Id' > j.id; printf '$Id: abc$\n$Id$\n' > l.dual
printf '%s\n' '*.txt -text' '!x text' 'lf.txt eol=crlf text' > sub/.gitattributes
git add . 2>/dev/null; git -c core.safecrlf=false commit -qm one 2>/dev/null
cd ..; git clone -q --bare w app.git; git clone -q app.git out; rm -rf out/.git`)
	got, err := fetchGit(t, p.url+"/app.git", source.GitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := tree.OpenDir(filepath.Join(p.root, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var checked int
	if err := tree.Walk(t.Context(), d, "", func(e tree.Entry) error {
		if e.Mode.IsRegular() {
			checked++
			if got, want := content(t, got.FS, e.Path), content(t, d, e.Path); got != want {
				t.Errorf("%s is %q, git checks out %q", e.Path, got, want)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if checked < 25 {
		t.Errorf("only %d files", checked)
	}
	p.script(`cd w; echo '*.u working-tree-encoding=UTF-16LE' > .gitattributes; printf 'u\0' > u.u; git add . ; git commit -qm u; git push -q ../app.git main`)
	got, err = fetchGit(t, p.url+"/app.git", source.GitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := got.FS.Open("u.u"); err == nil || !strings.Contains(err.Error(), "working-tree-encoding=UTF-16") {
		t.Errorf("a file in another encoding: %v", err)
	}
}

const nested = `
git init -q -b main inner; (cd inner; echo inner > i.txt; git add .; git commit -qm i); git clone -q --bare inner inner.git
git init -q -b main lib; (cd lib; echo lib > l.txt; git add .; git commit -qm l
git -c protocol.file.allow=always submodule --quiet add ../inner.git deps/inner; git commit -qm sub; echo newer > l.txt; git commit -qam newer); git clone -q --bare lib lib.git
git init -q -b main w; (cd w; echo app > a.txt; git add .; git commit -qm a
git -c protocol.file.allow=always submodule --quiet add --name 'the lib' ../lib.git vendor/lib; (cd vendor/lib; git checkout -q HEAD~1); git add .; git commit -qm sub); git clone -q --bare w app.git`

func TestGitSubmodules(t *testing.T) {
	t.Parallel()
	for _, v2 := range []bool{true, false} {
		p := newGitPlace(t, v2, nil)
		p.script(nested)
		got, err := fetchGit(t, p.url+"/app.git", source.GitOptions{})
		if err != nil {
			t.Fatal(err)
		}
		names := func(fsys tree.FS) (out []string) {
			for _, l := range list(t, fsys) {
				out = append(out, strings.Fields(l)[2])
			}
			return out
		}
		want := []string{".gitmodules", "a.txt", "vendor", "vendor/lib", "vendor/lib/.gitmodules", "vendor/lib/deps", "vendor/lib/deps/inner", "vendor/lib/deps/inner/i.txt", "vendor/lib/l.txt"}
		if diff := cmp.Diff(want, names(got.FS)); diff != "" {
			t.Error(diff)
		}
		if s := content(t, got.FS, "vendor/lib/l.txt"); s != "lib\n" {
			t.Errorf("the submodule is not at its commit: %q", s)
		}
		got, err = fetchGit(t, p.url+"/app.git", source.GitOptions{SkipSubmodules: true})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{".gitmodules", "a.txt", "vendor", "vendor/lib"}, names(got.FS)); diff != "" {
			t.Error(diff)
		}
		if got, err = fetchGit(t, p.url+"/app.git", source.GitOptions{Subdir: "vendor/lib/deps"}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"inner", "inner/i.txt"}, names(got.FS)); diff != "" {
			t.Error(diff)
		}
	}
}

// TestGitDir lets git look at the .git that is kept.
func TestGitDir(t *testing.T) {
	t.Parallel()
	p := newGitPlace(t, true, nil)
	p.script(nested + "\ngit -C app.git tag -a -m v1 v1; git -C app.git tag v0 HEAD~1")
	for _, tt := range []struct {
		name     string
		opt      source.GitOptions
		describe string
		commits  string
	}{
		{"default", source.GitOptions{}, "v1", "1"},
		{"branch", source.GitOptions{Ref: "main"}, "main", "1"},
		{"tag", source.GitOptions{Ref: "v1"}, "v1", "1"},
		{"commit", source.GitOptions{Ref: p.script("git -C app.git rev-parse v0")}, p.script("git -C app.git rev-parse --short v0"), "1"},
		{"history", source.GitOptions{History: true}, "v1", "2"},
		{"history of a commit", source.GitOptions{History: true, Ref: p.script("git -C app.git rev-parse v0")}, "v0", "1"},
		{"one branch", source.GitOptions{History: true, SingleBranch: true, Ref: "main"}, "", "2"},
		{"depth", source.GitOptions{History: true, Depth: 1}, "v1", "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.opt.KeepGitDir = true
			got, err := fetchGit(t, p.url+"/app.git", tt.opt)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			write(t, got.FS, dir)
			run := func(s string) string {
				out, err := gitserver.Script(t.Context(), dir, s)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			if s := run("git fsck --full --strict 2>&1; git status --porcelain; git submodule foreach --quiet --recursive 'git fsck --full; git status --porcelain'"); s != "" {
				t.Errorf("git says %q", s)
			}
			if s := run("git rev-parse HEAD; git remote get-url origin"); s != got.Commit+"\n"+p.url+"/app.git" {
				t.Errorf("HEAD and origin are %q", s)
			}
			if s := run("git rev-list --count HEAD"); s != tt.commits {
				t.Errorf("%s commits, want %s", s, tt.commits)
			}
			if tt.describe == "" || tt.name == "default" {
				return
			}
			if s := run("git describe --always --tags"); s != tt.describe {
				t.Errorf("it describes itself as %q, want %q", s, tt.describe)
			}
		})
	}
}

// A hostileRepo writes objects that git would not.
type hostileRepo struct {
	t   *testing.T
	dir string
}

func (r hostileRepo) object(typ, data string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "git", "hash-object", "-w", "-t", typ, "--literally", "--stdin")
	cmd.Dir, cmd.Env, cmd.Stdin = r.dir, gitserver.Env(), strings.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// entry returns an entry of a tree.
func (r hostileRepo) entry(mode, name, id string) string {
	raw, err := hex.DecodeString(id)
	if err != nil {
		r.t.Fatal(err)
	}
	return mode + " " + name + "\x00" + string(raw)
}

func (r hostileRepo) branch(name string, entries ...string) {
	tree := r.object("tree", strings.Join(entries, ""))
	commit := r.object("commit", "tree "+tree+"\nauthor A <a@x> 1 +0000\ncommitter A <a@x> 1 +0000\n\nx\n")
	if _, err := gitserver.Script(r.t.Context(), r.dir, "git update-ref refs/heads/"+name+" "+commit); err != nil {
		r.t.Fatal(err)
	}
}

// TestGitHostile has repositories that want to be checked out elsewhere.
func TestGitHostile(t *testing.T) {
	t.Parallel()
	p := newGitPlace(t, true, nil)
	p.script("git init -q --bare -b main bad.git")
	r := hostileRepo{t, filepath.Join(p.root, "bad.git")}
	blob, link := r.object("blob", "x\n"), r.object("blob", "/etc")
	sub := r.object("tree", r.entry("100644", "x", blob))
	module := func(name, url string) string {
		return r.entry("100644", ".gitmodules", r.object("blob", fmt.Sprintf("[submodule %q]\n path = m\n url = %s\n", name, url)))
	}
	m := r.entry("160000", "m", blob)
	for branch, tt := range map[string]struct {
		entries []string
		want    string
	}{
		"dotdot":  {[]string{r.entry("100644", "..", blob)}, `a file named ".."`},
		"dotgit":  {[]string{r.entry("40000", ".GIT", sub)}, `".GIT"`},
		"slash":   {[]string{r.entry("100644", "a/../../b", blob)}, `"a/../../b"`},
		"both":    {[]string{r.entry("120000", "d", link), r.entry("40000", "d", sub)}, `"d" twice`},
		"deep":    {[]string{r.entry("40000", "a", r.object("tree", r.entry("100644", "git~1", blob)))}, `"git~1"`},
		"wrong":   {[]string{r.entry("100644", "a", sub)}, `"a" is a tree`},
		"empty":   {nil, "no files"},
		"modlink": {[]string{r.entry("120000", ".gitmodules", link)}, `".gitmodules"`},
		"modname": {[]string{module("../../x", "./x"), m}, "leads elsewhere"},
		"modfile": {[]string{module("x", "/etc"), m}, "no address of a repository"},
		"modext":  {[]string{module("x", "ext::sh -c touch"), m}, "no address of a repository"},
		"modnone": {[]string{m}, "says no address"},
		"modlost": {[]string{module("x", "./../bad.git"), m}, "a blob, not a commit"},
	} {
		r.branch(branch, tt.entries...)
		_, err := fetchGit(t, p.url+"/bad.git", source.GitOptions{Ref: branch, Attempts: 1})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", branch, err, tt.want)
		}
	}
}

// TestGitAccess: who is told the credentials, and what is said without them.
func TestGitAccess(t *testing.T) {
	t.Parallel()
	var foreign atomic.Int32
	other := newGitPlace(t, true, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "" {
				foreign.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	other.script("git init -q -b main w; cd w; echo o > o; git add .; git commit -qm o; cd ..; git clone -q --bare w other.git")
	p := newGitPlace(t, true, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, password, _ := r.BasicAuth()
			switch {
			case strings.HasPrefix(r.URL.Path, "/moved/"):
				http.Redirect(w, r, other.url+"/other.git/"+strings.TrimPrefix(r.URL.Path, "/moved/app.git/")+"?"+r.URL.RawQuery, http.StatusFound)
			case user == "x" && password == "secret":
				h.ServeHTTP(w, r)
			default:
				w.Header().Set("WWW-Authenticate", "Basic")
				w.WriteHeader(http.StatusUnauthorized)
			}
		})
	})
	p.script("git init -q -b main w; cd w; echo a > a; printf '[submodule \"o\"]\\n path = o\\n url = " + other.url + "/other.git\\n' > .gitmodules; git add .; git update-index --add --cacheinfo 160000,$(git -C " + other.root + "/w rev-parse HEAD),o; git commit -qm a; cd ..; git clone -q --bare w app.git")
	authorize := func(password string) source.GitOptions {
		r := http.Request{Header: http.Header{}}
		r.SetBasicAuth("x", password)
		return source.GitOptions{Looked: []string{"THE_SECRET"}, Authorize: func(u *git.URL) (string, string) {
			if u.Host != strings.TrimPrefix(p.url, "http://") {
				return "", ""
			}
			return r.Header.Get("Authorization"), "THE_SECRET"
		}}
	}
	got, err := fetchGit(t, p.url+"/app.git", authorize("secret"))
	if err != nil {
		t.Fatal(err)
	}
	if s := content(t, got.FS, "o/o"); s != "o\n" || foreign.Load() != 0 {
		t.Errorf("submodule %q; %d requests told another host the credentials", s, foreign.Load())
	}
	if _, err := fetchGit(t, strings.Replace(p.url, "://", "://x:secret@", 1)+"/app.git", source.GitOptions{SkipSubmodules: true}); err != nil {
		t.Errorf("credentials in the URL: %v", err)
	}
	if _, err := fetchGit(t, p.url+"/moved/app.git", authorize("secret")); err != nil || foreign.Load() != 0 {
		t.Errorf("after a redirect: %v; %d requests told another host the credentials", err, foreign.Load())
	}
	for name, tt := range map[string]struct {
		opt  source.GitOptions
		want []string
	}{
		"none":  {source.GitOptions{Looked: []string{"THE_SECRET"}}, []string{"401 Unauthorized, without credentials", "looked for in THE_SECRET"}},
		"wrong": {authorize("wrong"), []string{"401 Unauthorized, with THE_SECRET", "refuses these credentials"}},
	} {
		_, err := fetchGit(t, p.url+"/app.git", tt.opt)
		var access *source.GitAccessError
		if !errors.As(err, &access) {
			t.Fatalf("%s: %v", name, err)
		}
		said := err.Error() + access.Explain()
		for _, w := range tt.want {
			if !strings.Contains(said, w) {
				t.Errorf("%s: %s; want %q", name, said, w)
			}
		}
		if strings.Contains(said, "wrong") {
			t.Errorf("%s tells the secret", said)
		}
	}
}

// TestGitOnce: sources that differ in what they take of a commit fetch it once.
func TestGitOnce(t *testing.T) {
	t.Parallel()
	var packs atomic.Int32
	p := newGitPlace(t, false, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				packs.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	p.script(appRepo)
	client := gitClient(t)
	var wg sync.WaitGroup
	for _, opt := range []source.GitOptions{{SkipSubmodules: true}, {SkipSubmodules: true, KeepGitDir: true}, {SkipSubmodules: true, CommitTime: true}} {
		wg.Go(func() {
			opt.Time = checkoutTime
			got, err := source.FetchGit(t.Context(), client, p.url+"/app.git", opt)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := got.FS.Lstat(".git"); (err == nil) != opt.KeepGitDir {
				t.Errorf("%+v: .git: %v", opt, err)
			}
		})
	}
	wg.Wait()
	if n := packs.Load(); n != 1 {
		t.Errorf("fetched %d times, want once", n)
	}
}

func TestGitAgain(t *testing.T) {
	t.Parallel()
	var requests, failures atomic.Int32
	p := newGitPlace(t, true, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch n := requests.Add(1); {
			case n == 1:
				w.WriteHeader(http.StatusServiceUnavailable)
			case n <= 5 && r.Method == http.MethodPost: // breaks off in the middle
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
				w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
				_, _ = w.Write(rec.Body.Bytes()[:rec.Body.Len()/2])
				failures.Add(1)
			default:
				h.ServeHTTP(w, r)
			}
		})
	})
	p.script(appRepo)
	if _, err := fetchGit(t, p.url+"/app.git", source.GitOptions{}); err != nil {
		t.Error(err)
	}
	if failures.Load() == 0 {
		t.Error("no answer was cut")
	}
	requests.Store(10)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if _, err := source.FetchGit(ctx, gitClient(t), p.url+"/app.git", source.GitOptions{}); err == nil || requests.Load() > 11 {
		t.Errorf("canceled: %v after %d requests", err, requests.Load()-10)
	}
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	if _, err := fetchGit(t, dead.URL+"/app.git", source.GitOptions{Attempts: 2}); err == nil {
		t.Error("nobody is there")
	}
}

// TestGitRefused: a server that gives out tips only, in the second version too.
func TestGitRefused(t *testing.T) {
	t.Parallel()
	p := newGitPlace(t, true, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(strings.NewReader(string(b)))
			if strings.Contains(string(b), "command=fetch") && strings.Contains(string(b), "deepen") {
				w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
				_, _ = io.WriteString(w, "0020ERR upload-pack: not our ref")
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	p.script(appRepo)
	old := p.script("git -C app.git rev-parse v0")
	got, err := fetchGit(t, p.url+"/app.git", source.GitOptions{Ref: old})
	if err != nil {
		t.Fatal(err)
	}
	if got.Commit != old {
		t.Errorf("commit %s, want %s", got.Commit, old)
	}
}

func TestGitSSH(t *testing.T) {
	t.Parallel()
	p := newGitPlace(t, true, nil)
	p.script(nested)
	s, err := gitserver.ServeSSH(t.Context(), p.root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	agentWith := func(keys ...any) func(context.Context) (net.Conn, error) {
		ring := agent.NewKeyring()
		for _, k := range keys {
			if err := ring.Add(agent.AddedKey{PrivateKey: k}); err != nil {
				t.Fatal(err)
			}
		}
		return func(context.Context) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				defer ours.Close()
				_ = agent.ServeAgent(ring, ours)
			}()
			return theirs, nil
		}
	}
	url := "ssh://git@" + s.Addr + "/app.git"
	got, err := fetchGit(t, url, source.GitOptions{KnownHosts: s.KnownHosts(), Agent: agentWith(s.Key), KeepGitDir: true})
	if err != nil {
		t.Fatal(err)
	}
	if c := content(t, got.FS, "vendor/lib/deps/inner/i.txt"); c != "inner\n" {
		t.Errorf("submodule: %q", c)
	}
	var host *git.HostKeyError
	if _, err := fetchGit(t, url, source.GitOptions{Agent: agentWith(s.Key)}); !errors.As(err, &host) || host.Known {
		t.Errorf("an unknown host: %v", err)
	}
	other, err := gitserver.ServeSSH(t.Context(), p.root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	wrong := strings.Replace(other.KnownHosts(), other.Addr[strings.LastIndex(other.Addr, ":"):], s.Addr[strings.LastIndex(s.Addr, ":"):], 1)
	if _, err := fetchGit(t, url, source.GitOptions{KnownHosts: wrong, Agent: agentWith(s.Key)}); !errors.As(err, &host) || !host.Known {
		t.Errorf("another host's key: %v", err)
	}
	var access *source.GitAccessError
	if _, err := fetchGit(t, url, source.GitOptions{KnownHosts: s.KnownHosts(), Agent: agentWith(other.Key)}); !errors.As(err, &access) {
		t.Errorf("another key: %v", err)
	}
	if _, err := fetchGit(t, url, source.GitOptions{KnownHosts: s.KnownHosts()}); !errors.As(err, &access) || !errors.Is(err, git.ErrNoAgent) {
		t.Errorf("no agent: %v", err)
	}
	if _, err := fetchGit(t, "ssh://git@"+s.Addr+"/none.git", source.GitOptions{KnownHosts: s.KnownHosts(), Agent: agentWith(s.Key)}); err == nil || !strings.Contains(err.Error(), "none.git") {
		t.Errorf("no repository: %v", err)
	}
}

func TestGitDaemon(t *testing.T) {
	t.Parallel()
	p := newGitPlace(t, true, nil)
	p.script(nested)
	addr, stop, err := gitserver.Daemon(t.Context(), p.root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	var log []string
	got, err := fetchGit(t, "git://"+addr+"/app.git", source.GitOptions{Log: func(s string) { log = append(log, s) }})
	if err != nil {
		t.Fatal(err)
	}
	if len(list(t, got.FS)) == 0 || !slices.ContainsFunc(log, func(s string) bool { return strings.HasSuffix(s, "\trefs/heads/main") }) {
		t.Errorf("log %q", log)
	}
	if _, err := fetchGit(t, "git://"+addr+"/none.git", source.GitOptions{}); err == nil || !strings.Contains(err.Error(), "access denied or repository not exported") {
		t.Errorf("no repository: %v", err)
	}
}
