// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/solver/pb"

	"hako/internal/git"
	"hako/internal/source"
	"hako/internal/store"
)

// openGit reads what fetching repositories needs: the keys of known ssh
// servers, before another root has other ones.
func openGit(opt *Options, n *network, st *store.Store) (*source.GitClient, error) {
	c := &source.GitClient{HTTP: n.client(), Dial: n.dial, Store: st}
	named := filepath.SplitList(opt.Env.Get("SSH_KNOWN_HOSTS"))
	for _, p := range named {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("read the ssh hosts that SSH_KNOWN_HOSTS names: %w", err)
		}
		c.KnownHosts = append(c.KnownHosts, b)
	}
	usual := []string{"/etc/ssh/ssh_known_hosts"}
	if home := opt.Env.Get("HOME"); home != "" && len(named) == 0 {
		usual = append([]string{filepath.Join(home, ".ssh", "known_hosts")}, usual...)
	}
	for _, p := range usual {
		if b := readIfThere(p); b != nil {
			c.KnownHosts = append(c.KnownHosts, b)
		}
	}
	return c, nil
}

// A gitOpener fetches repositories as build contexts.
type gitOpener struct {
	client  *source.GitClient
	network *network
	clock   time.Time
	log     func(format string, args ...any)
}

// resolveGit tells the frontend which commit a git source is.
func (b *build) resolveGit(ctx context.Context, op *pb.SourceOp) (*sourceresolver.ResolveGitResponse, error) {
	t, err := b.interp.FetchGit(ctx, op, nil)
	if err != nil {
		return nil, err
	}
	r := &sourceresolver.ResolveGitResponse{Ref: t.Ref, Checksum: t.ID, CommitObject: t.CommitObject, TagObject: t.TagObject}
	if t.ID != t.Commit {
		r.CommitChecksum = t.Commit
	}
	return r, nil
}

// isGitAddress reports whether a context is a repository, as docker writes it.
// What could be a directory is one if it exists.
func isGitAddress(s string) bool {
	ref, ok, err := dfgitutil.ParseGitRef(s)
	if err != nil {
		return ok // it is one, and the frontend says what is wrong with it
	}
	if !ref.IndistinguishableFromLocal {
		return true
	}
	_, err = os.Stat(s)
	return err != nil
}

// openGit opens a repository as the build context, if that is what it is:
// kaniko's forms are fetched here, docker's are the frontend's business.
func (c *contexts) openGit(ctx context.Context, opt *Options, g *gitOpener) (bool, error) {
	if opt.Executor && isKanikoGit(opt.Context) {
		return true, c.openKanikoGit(ctx, opt, g)
	}
	if opt.Git != (GitOptions{}) {
		return false, errors.New("--git is for contexts that begin with git://, of the executor")
	}
	if !isGitAddress(opt.Context) {
		return false, nil
	}
	if opt.ContextSubPath != "" {
		return true, errors.New("--context-sub-path: write the directory behind the branch: URL#BRANCH:DIRECTORY")
	}
	c.remote = &remoteContext{name: opt.Context}
	c.dir = opt.Context
	c.opts[localContext] = opt.Context
	return true, nil
}

// A kanikoGit is a git context as kaniko writes it.
type kanikoGit struct{ remote, ref, commit, dir string }

func isKanikoGit(s string) bool {
	if strings.HasPrefix(s, "git://") {
		return true
	}
	address, _, _ := strings.Cut(s, "#")
	return strings.HasPrefix(address, "https://") && strings.HasSuffix(address, ".git")
}

// parseKanikoGit reads git://[USER[:PASSWORD]@]HOST/PATH[#REF[:DIR][#COMMIT]],
// where git:// stands for the given method, http or https; https:// is itself.
// The directory is docker's.
func parseKanikoGit(s, method string) (kanikoGit, error) {
	parts := strings.Split(s, "#")
	if len(parts) > 3 {
		return kanikoGit{}, errors.New("it has more than two #: want URL#REF#COMMIT")
	}
	g := kanikoGit{remote: parts[0]}
	if rest, ok := strings.CutPrefix(parts[0], "git://"); ok {
		switch method {
		case "":
			method = "https"
		case "http", "https":
		default:
			return kanikoGit{}, fmt.Errorf("GIT_PULL_METHOD=%s: there are https and http", method)
		}
		g.remote = method + "://" + rest
	}
	if _, err := git.ParseURL(g.remote); err != nil {
		return kanikoGit{}, err
	}
	if len(parts) > 1 {
		g.ref, g.dir, _ = strings.Cut(parts[1], ":") // no ref has a colon
	}
	if len(parts) > 2 {
		g.commit = parts[2]
	}
	if _, ok := git.ParseID(g.commit); !ok && g.commit != "" {
		return kanikoGit{}, fmt.Errorf("%q is no commit: want its 40 digits", g.commit)
	}
	return g, nil
}

// openKanikoGit fetches a repository with its history, which commands may look
// at: kaniko leaves .git in the context.
func (c *contexts) openKanikoGit(ctx context.Context, opt *Options, g *gitOpener) error {
	k, err := parseKanikoGit(opt.Context, opt.Env.Get("GIT_PULL_METHOD"))
	if err != nil {
		return fmt.Errorf("build context %q: %w", RedactContext(opt.Context), err)
	}
	if b := opt.Git.Branch; b != "" {
		if k.ref != "" && k.ref != b {
			return fmt.Errorf("the build context names %q, --git branch=%s another branch", k.ref, b)
		}
		k.ref = b
	}
	dir := path.Join(k.dir, filepath.ToSlash(opt.ContextSubPath))
	if dir != "" && !filepath.IsLocal(dir) {
		return outsideError(dir)
	}
	o := source.GitOptions{
		Ref: k.ref, Subdir: dir, KeepGitDir: true, SkipSubmodules: !opt.Git.RecurseSubmodules,
		History: true, SingleBranch: opt.Git.SingleBranch, Depth: opt.Git.Depth, Time: g.clock,
		Authorize: kanikoCredentials(k.remote, opt.Env), Looked: []string{"GIT_TOKEN", "GIT_USERNAME and GIT_PASSWORD", "the URL"},
		Log: func(line string) { g.log("git context: %s", line) },
	}
	if k.commit != "" {
		o.Ref = k.commit
	}
	client := g.client
	if opt.Git.InsecureSkipTLS {
		client = &source.GitClient{HTTP: g.network.insecureClient(), Dial: client.Dial, Store: client.Store, KnownHosts: client.KnownHosts}
	}
	t, err := source.FetchGit(ctx, client, k.remote, o)
	if err != nil {
		return fmt.Errorf("build context: %w", err)
	}
	g.log("git context: commit %s", t.Commit)
	c.setRemote(t.FS, RedactContext(opt.Context), opt)
	return nil
}

// kanikoCredentials returns those of the environment, as kaniko reads it, for
// the host of the context: submodules elsewhere are not told.
func kanikoCredentials(remote string, env Env) func(*git.URL) (header, from string) {
	user, password, from := env.Get("GIT_TOKEN"), "", "GIT_TOKEN"
	if user == "" {
		user, password, from = env.Get("GIT_USERNAME"), env.Get("GIT_PASSWORD"), "GIT_USERNAME and GIT_PASSWORD"
	}
	main, err := git.ParseURL(remote)
	if user == "" && password == "" || err != nil {
		return nil
	}
	header := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	return func(u *git.URL) (string, string) {
		if u.Scheme != main.Scheme || u.Host != main.Host {
			return "", ""
		}
		return header, from
	}
}
