// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"

	"hako/internal/git"
	"hako/internal/layer"
	"hako/internal/source"
)

const schemeGit = "git"

// gitAttrs are the attributes of a git source that are honoured.
func gitAttrs() []string {
	return []string{
		pb.AttrKeepGitDir, pb.AttrFullRemoteURL, pb.AttrAuthHeaderSecret, pb.AttrAuthTokenSecret, pb.AttrKnownSSHHosts,
		pb.AttrMountSSHSock, pb.AttrGitChecksum, pb.AttrGitSkipSubmodules, pb.AttrGitMTime, pb.AttrGitFetchByCommit, pb.AttrGitAdvice,
	}
}

// git fetches a repository: git://HOST/PATH[#REF[:DIR]], where the attribute
// git.fullurl has the address with its scheme.
func (in *Interpreter) git(ctx context.Context, op *pb.SourceOp, dgst digest.Digest) (*layer.Ref, error) {
	t, err := in.FetchGit(ctx, op, func(line string) { in.logf(dgst, "%s", line) })
	if err != nil {
		return nil, err
	}
	return &layer.Ref{FS: t.FS}, nil
}

// A fetchedGit is a repository that was fetched, or is being fetched.
type fetchedGit struct {
	mu   sync.Mutex
	tree *source.GitTree
}

// FetchGit fetches the repository that a git source names, once: the frontend
// may want to know about it before the graph is computed.
func (in *Interpreter) FetchGit(ctx context.Context, op *pb.SourceOp, log func(string)) (*source.GitTree, error) {
	key := op.Identifier
	for _, k := range slices.Sorted(maps.Keys(op.Attrs)) {
		key += "\x00" + k + "\x00" + op.Attrs[k]
	}
	in.mu.Lock()
	f := in.gits[key]
	if f == nil {
		f = &fetchedGit{}
		in.gits[key] = f
	}
	in.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.tree != nil {
		return f.tree, nil
	}
	var err error
	f.tree, err = in.fetchGit(ctx, op, log)
	return f.tree, err
}

func (in *Interpreter) fetchGit(ctx context.Context, op *pb.SourceOp, log func(string)) (*source.GitTree, error) {
	remote, opt, err := in.gitOptions(op)
	if err != nil {
		return nil, err
	}
	opt.Log = log
	return source.FetchGit(ctx, in.opt.Git, remote, opt)
}

func (in *Interpreter) gitOptions(op *pb.SourceOp) (remote string, opt source.GitOptions, err error) {
	_, rest, _ := strings.Cut(op.Identifier, "://")
	remote, fragment, _ := strings.Cut(rest, "#")
	remote = "https://" + remote
	if full := op.Attrs[pb.AttrFullRemoteURL]; full != "" {
		remote = full
		if !strings.Contains(full, "://") && !strings.Contains(full, "@") {
			remote = "https://" + full
		}
	}
	ref, dir, _ := strings.Cut(fragment, ":")
	isTrue := func(key string) bool { return op.Attrs[key] == "true" }
	opt = source.GitOptions{
		Ref: ref, Subdir: dir, Checksum: op.Attrs[pb.AttrGitChecksum],
		KeepGitDir: isTrue(pb.AttrKeepGitDir), SkipSubmodules: isTrue(pb.AttrGitSkipSubmodules),
		FetchByCommit: isTrue(pb.AttrGitFetchByCommit), Time: in.opt.Clock,
		KnownHosts: op.Attrs[pb.AttrKnownSSHHosts],
	}
	switch m := op.Attrs[pb.AttrGitMTime]; m {
	case "", "checkout":
	case "commit":
		opt.CommitTime = true
	default:
		return "", opt, fmt.Errorf("%s=%s is not known", pb.AttrGitMTime, m)
	}
	if id := op.Attrs[pb.AttrMountSSHSock]; id != "" && in.opt.Agent != nil {
		opt.Agent = in.opt.Agent(id)
	}
	opt.Authorize, opt.Looked, err = in.gitCredentials(remote, op.Attrs)
	return remote, opt, err
}

// gitCredentials finds the secret that holds the credentials for a repository:
// a whole header or a token, the one for the host first (BuildKit source/git).
//
// They are for that repository alone, except on github.com, where one token is
// commonly for all: submodules elsewhere are not told.
func (in *Interpreter) gitCredentials(remote string, attrs map[string]string) (func(*git.URL) (header, from string), []string, error) {
	main, err := git.ParseURL(remote)
	if err != nil {
		return nil, nil, err
	}
	headerID, tokenID := attrs[pb.AttrAuthHeaderSecret], attrs[pb.AttrAuthTokenSecret]
	var looked []string
	for _, s := range []struct {
		id, suffix string
		token      bool
	}{{headerID, "." + main.Host, false}, {tokenID, "." + main.Host, true}, {headerID, "", false}, {tokenID, "", true}} {
		if s.id == "" {
			continue
		}
		id := s.id + s.suffix
		v, ok, err := in.opt.Secret(id)
		if err != nil {
			return nil, nil, err
		}
		if !ok {
			looked = append(looked, "--secret id="+id)
			continue
		}
		header := strings.TrimRight(string(v), "\r\n")
		if s.token {
			header = "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+header))
		}
		return func(u *git.URL) (string, string) {
			if !inScope(main, u) {
				return "", ""
			}
			return header, "the secret " + id
		}, []string{"--secret id=" + id}, nil
	}
	return nil, looked, nil
}

// inScope reports whether u may see the credentials for main.
func inScope(main, u *git.URL) bool {
	scope := main.String()
	for _, all := range []string{"https://github.com/", "https://www.github.com/"} {
		if strings.HasPrefix(scope, all) {
			scope = all
		}
	}
	scope = strings.TrimSuffix(scope, "/")
	return u.String() == scope || strings.HasPrefix(u.String(), scope+"/")
}
