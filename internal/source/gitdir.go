// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"hako/internal/git"
	"hako/internal/tree"
)

const gitDir = ".git"

// gitExtra are the files of a checkout that are not in the repository: .git,
// by path.
type gitExtra struct{ files map[string]*extraFile }

// An extraFile is a file, or a directory if it has children.
type extraFile struct {
	mode     tree.Mode
	size     int64
	open     tree.Opener
	children map[string]bool
}

func (x *gitExtra) at(p string) *extraFile {
	if x == nil {
		return nil
	}
	return x.files[p]
}

func (x *extraFile) entry(p string, at time.Time) tree.Entry {
	return tree.Entry{Path: p, Mode: x.mode, Size: x.size, ModTime: at}
}

func (x *extraFile) names() []string { return slices.Sorted(maps.Keys(x.children)) }

// dir adds a directory and, within .git, those above it.
func (x *gitExtra) dir(p string) error {
	if f := x.files[p]; f != nil {
		if f.children == nil {
			return fmt.Errorf("%s would be a file and a directory", p)
		}
		return nil
	}
	x.files[p] = &extraFile{mode: tree.ModeDir | 0o755, children: make(map[string]bool)}
	return x.name(p)
}

// name makes a path known to the directory it is in.
func (x *gitExtra) name(p string) error {
	parent := tree.Parent(p)
	if parent != gitDir && !strings.HasPrefix(parent, gitDir+"/") {
		return nil // a directory of the repository: .git itself, or that of a submodule
	}
	if err := x.dir(parent); err != nil {
		return err
	}
	x.files[parent].children[tree.Base(p)] = true
	return nil
}

func (x *gitExtra) add(p string, f *extraFile) error {
	if x.files[p] != nil {
		return fmt.Errorf("%s would be there twice", p)
	}
	x.files[p] = f
	return x.name(p)
}

func (x *gitExtra) text(p, s string) error {
	return x.add(p, &extraFile{
		mode: tree.ModeRegular | 0o644, size: int64(len(s)),
		open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(s)), nil },
	})
}

// stored adds a file of the store.
func (x *gitExtra) stored(p string, mode tree.Mode, f storeFile, size int64) error {
	return x.add(p, &extraFile{mode: tree.ModeRegular | mode, size: size, open: func() (io.ReadCloser, error) {
		r, err := f.Open()
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(r, 0, size), r}, nil
	}})
}

// gitExclude is what git puts into a new .git/info/exclude.
const gitExclude = `# git ls-files --others --exclude-from=.git/info/exclude
# Lines that start with '#' are comments.
# For a project mostly in C, the following would be a good set of
# exclude patterns (uncomment them if you want to use them):
# *.[oa]
# *~
`

// gitDirs makes the .git of a checkout, with those of submodules in its
// modules, as git clone --recurse-submodules leaves them.
func (f *gitFetch) gitDirs(ctx context.Context, r *gitRepo) (*gitExtra, error) {
	x := &gitExtra{files: make(map[string]*extraFile)}
	if err := f.gitDir(ctx, x, r, gitDir, ""); err != nil {
		return nil, fmt.Errorf("make .git: %w", err)
	}
	return x, nil
}

// gitDir adds the directory dir, which belongs to the checkout at work.
func (f *gitFetch) gitDir(ctx context.Context, x *gitExtra, r *gitRepo, dir, work string) error {
	for _, d := range []string{"info", "objects/info", "objects/pack", "refs/heads", "refs/tags"} {
		if err := x.dir(tree.Join(dir, d)); err != nil {
			return err
		}
	}
	files := map[string]string{
		"config":       f.gitConfig(r, dir, work),
		"description":  "Unnamed repository; edit this file 'description' to name the repository.\n",
		"info/exclude": gitExclude,
	}
	if len(r.shallow) > 0 {
		var b strings.Builder
		for _, id := range r.shallow {
			fmt.Fprintln(&b, id)
		}
		files["shallow"] = b.String()
	}
	if err := f.gitRefs(r, files); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := x.text(tree.Join(dir, name), files[name]); err != nil {
			return err
		}
	}
	if err := f.gitPack(x, r, dir); err != nil {
		return err
	}
	if err := f.gitIndex(ctx, x, r, dir); err != nil {
		return err
	}
	for _, p := range slices.Sorted(maps.Keys(r.subs)) {
		at, modules := tree.Join(work, p), tree.Join(dir, "modules/"+tree.Clean(r.modules[p].Name))
		back, err := filepath.Rel(at, modules)
		if err != nil {
			return err
		}
		if err := x.text(tree.Join(at, gitDir), "gitdir: "+filepath.ToSlash(back)+"\n"); err != nil {
			return err
		}
		if err := f.gitDir(ctx, x, r.subs[p], modules, at); err != nil {
			return err
		}
	}
	return nil
}

func (f *gitFetch) gitConfig(r *gitRepo, dir, work string) string {
	var b bytes.Buffer
	b.WriteString("[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n")
	if dir != gitDir {
		if back, err := filepath.Rel(dir, tree.Join("", work)); err == nil {
			fmt.Fprintf(&b, "\tworktree = %s\n", quoteConfig(filepath.ToSlash(back)))
		}
	}
	fmt.Fprintf(&b, "[remote \"origin\"]\n\turl = %s\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n", quoteConfig(withoutUser(r.remote)))
	for _, p := range slices.Sorted(maps.Keys(r.subs)) {
		name := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(r.modules[p].Name)
		fmt.Fprintf(&b, "[submodule \"%s\"]\n\tactive = true\n\turl = %s\n", name, quoteConfig(withoutUser(r.subs[p].remote)))
	}
	return b.String()
}

// quoteConfig returns a value for git-config(1), in quotes if it needs them.
func quoteConfig(s string) string {
	q := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`).Replace(s)
	if q != s || strings.ContainsAny(s, "#; ") {
		return `"` + q + `"`
	}
	return s
}

// withoutUser returns a URL without the credentials in it.
func withoutUser(remote string) string {
	u, err := url.Parse(remote)
	if err != nil || u.User == nil || u.Scheme == "ssh" {
		return remote
	}
	u.User = nil
	return u.String()
}

// gitRefs adds HEAD and the refs.
//
// A branch also becomes a tag: BuildKit fetches branches as tags on the way,
// and git describe finds those.
func (f *gitFetch) gitRefs(r *gitRepo, files map[string]string) error {
	name, id := r.found.Name, r.found.ID.String()+"\n"
	files["HEAD"] = r.head.ID.String() + "\n"
	branch, isBranch := strings.CutPrefix(name, headsPrefix)
	_, isCommit := git.ParseID(name)
	if !isCommit && !isRefName(name) {
		return fmt.Errorf("the server has a ref named %q", name)
	}
	switch {
	case isCommit:
	case f.opt.History:
		if isBranch {
			files[name] = r.head.ID.String() + "\n"
			files["HEAD"] = "ref: " + name + "\n"
		}
	case isBranch:
		files[name] = id
		if f.opt.Ref != "" {
			branch = f.opt.Ref
		}
		files[tagsPrefix+branch] = id
	default:
		files[name] = id
	}
	if !f.opt.History {
		return nil
	}
	if packed := packedRefs(r.refs); packed != "" {
		files["packed-refs"] = packed
	}
	return nil
}

// packedRefs returns the branches, as those of the remote, and the tags.
func packedRefs(refs []git.Ref) string {
	lines := make(map[string]git.Ref)
	for _, r := range refs {
		if !isRefName(r.Name) {
			continue
		}
		name := r.Name
		if b, ok := strings.CutPrefix(name, headsPrefix); ok {
			name = "refs/remotes/origin/" + b
		}
		lines[name] = r
	}
	if len(lines) == 0 {
		return ""
	}
	b := bytes.NewBufferString("# pack-refs with: peeled fully-peeled sorted \n")
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		fmt.Fprintf(b, "%s %s\n", lines[name].ID, name)
		if p := lines[name].Peeled; !p.IsZero() {
			fmt.Fprintf(b, "^%s\n", p)
		}
	}
	return b.String()
}

// isRefName reports whether a ref can have that name, git-check-ref-format(1),
// and so be a file's below .git.
func isRefName(s string) bool {
	if !strings.HasPrefix(s, "refs/") || strings.Contains(s, "..") || strings.Contains(s, "@{") ||
		strings.HasSuffix(s, ".") || strings.ContainsAny(s, " ~^:?*[\\\x7f") {
		return false
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' })
}

// gitPack adds the pack and its index.
func (f *gitFetch) gitPack(x *gitExtra, r *gitRepo, dir string) error {
	base := tree.Join(dir, "objects/pack/pack-"+r.pack.Checksum())
	if err := x.stored(base+".pack", 0o444, r.file, r.pack.Size()); err != nil {
		return err
	}
	idx, size, err := f.spool(r.pack.WriteIdx)
	if err != nil {
		return err
	}
	return x.stored(base+".idx", 0o444, idx, size)
}

// gitIndex adds the list of files that are checked out.
func (f *gitFetch) gitIndex(ctx context.Context, x *gitExtra, r *gitRepo, dir string) error {
	n := 0
	if err := r.walk(ctx, r.root(), func(gitNode) { n++ }); err != nil {
		return err
	}
	idx, size, err := f.spool(func(w io.Writer) error {
		out := git.NewCheckoutIndex(w, n)
		if err := r.walk(ctx, r.root(), func(c gitNode) { out.Add(c.path, c.Mode, c.ID) }); err != nil {
			return err
		}
		return out.Close()
	})
	if err != nil {
		return err
	}
	return x.stored(tree.Join(dir, "index"), 0o644, idx, size)
}

// walk calls f for all that is not a directory of this repository itself,
// sorted by path in byte order.
func (r *gitRepo) walk(ctx context.Context, n gitNode, f func(gitNode)) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	list, err := r.tree(n.ID)
	if err != nil {
		return err
	}
	// A directory sorts as if its name ended with a slash.
	sorted := slices.Clone(list)
	key := func(e git.TreeEntry) string {
		if e.Mode == git.Directory {
			return e.Name + "/"
		}
		return e.Name
	}
	slices.SortFunc(sorted, func(a, b git.TreeEntry) int { return strings.Compare(key(a), key(b)) })
	for _, e := range sorted {
		c := gitNode{repo: r, path: tree.Join(n.path, e.Name), TreeEntry: e}
		if e.Mode != git.Directory {
			f(c)
			continue
		}
		if err := r.walk(ctx, c, f); err != nil {
			return err
		}
	}
	return nil
}

// spool writes a file into the store's session.
func (f *gitFetch) spool(write func(io.Writer) error) (_ storeFile, size int64, err error) {
	w, err := f.client.Store.Create()
	if err != nil {
		return storeFile{}, 0, err
	}
	defer func() {
		if err != nil {
			w.Discard()
		}
	}()
	if err := write(w); err != nil {
		return storeFile{}, 0, err
	}
	fi, err := w.Stat()
	if err != nil {
		return storeFile{}, 0, err
	}
	return storeFile{w}, fi.Size(), w.Close()
}
