// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"hako/internal/git"
	"hako/internal/store"
	"hako/internal/tree"
)

// A GitClient is how git servers are reached. It opens no files: hosts' keys and
// connections to agents are its maker's business. It is one build's: what one
// source has fetched of a repository serves others that want the same of it.
type GitClient struct {
	HTTP       *http.Client
	Dial       git.Dial
	Store      *store.Store
	KnownHosts [][]byte // files of known_hosts(5)

	mu    sync.Mutex
	known map[gitWish]*sharedRepo
}

// A gitWish is what is fetched in one go.
type gitWish struct {
	remote string
	goal   gitGoal
}

// A sharedRepo is what was fetched for a wish, or is being fetched.
type sharedRepo struct {
	mu   sync.Mutex
	repo *gitRepo // nil: nobody had success yet
}

func (c *GitClient) shared(w gitWish) *sharedRepo {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = make(map[gitWish]*sharedRepo)
	}
	if c.known[w] == nil {
		c.known[w] = &sharedRepo{}
	}
	return c.known[w]
}

// GitOptions say what is fetched of a repository.
type GitOptions struct {
	// Ref is a branch, a tag, a full name (refs/…) or the 40 digits of a
	// commit; "" is the server's default branch.
	Ref string
	// Checksum is the beginning of the ID that Ref has to have: of a commit or
	// of an annotated tag.
	Checksum string
	// Subdir is the directory that becomes the tree's root.
	Subdir string
	// KeepGitDir adds a .git, unless there is a Subdir.
	KeepGitDir     bool
	SkipSubmodules bool
	// FetchByCommit takes the commit from Checksum without asking what Ref is.
	FetchByCommit bool
	// CommitTime gives all files the commit's time instead of Time.
	CommitTime bool
	Time       time.Time
	// History fetches all branches and tags, or with SingleBranch what Ref is
	// made of, Depth commits deep; 0 is all. Without it only the commit itself
	// is fetched.
	History      bool
	SingleBranch bool
	Depth        int

	// Authorize returns the header for a server, and where it comes from for
	// messages; "" is none. It decides who is told what: submodules can be
	// anywhere.
	Authorize func(u *git.URL) (header, from string)
	// Looked are the names of the credentials that Authorize looks for.
	Looked []string
	// Agent connects to the ssh agent; nil if there is none.
	Agent func(context.Context) (net.Conn, error)
	// KnownHosts is used for hosts that the client's files do not have.
	KnownHosts string

	Log      func(line string) // what is fetched, a line each
	Attempts int               // how often to try; 0 means 5
	Delay    time.Duration     // wait before the second attempt, doubled each time; 0 means 500 ms
}

// A GitTree is a commit's files as git would check them out.
type GitTree struct {
	FS     tree.FS
	Ref    string // the full name that was found, or the commit
	ID     string // of Ref: a commit, or an annotated tag
	Commit string // the commit that is checked out

	CommitObject []byte
	TagObject    []byte // nil if Ref is no annotated tag
}

// FetchGit fetches one commit of a repository, and those of its submodules,
// and returns their files as BuildKit's checkout has them: owned 0:0, 0644 or
// 0755, with line ends and $Id$ as .gitattributes asks. Nothing is checked
// out: what is read of the tree is read from the pack that the server sent.
//
// What may pass by itself is tried again, as by [FetchHTTP].
func FetchGit(ctx context.Context, client *GitClient, remote string, opt GitOptions) (*GitTree, error) {
	if opt.Log == nil {
		opt.Log = func(string) {}
	}
	f := &gitFetch{client: client, opt: &opt}
	t, err := f.run(ctx, remote)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", redactGit(remote), err)
	}
	return t, nil
}

func redactGit(remote string) string {
	u, err := git.ParseURL(remote)
	if err != nil {
		return "a repository"
	}
	return u.String()
}

type gitFetch struct {
	client *GitClient
	opt    *GitOptions
	count  int // of repositories
}

// A gitGoal is the commit that is wanted of a repository.
type gitGoal struct {
	ref    string // as asked for; "" for the default branch
	id     git.ID // the commit, if it is known from the start
	hasID  bool
	depth  int
	all    bool   // all branches and tags too
	search bool   // the commit has to be looked for in all of history
	verify string // checksum
}

func (f *gitFetch) run(ctx context.Context, remote string) (*GitTree, error) {
	goal, err := f.goal()
	if err != nil {
		return nil, err
	}
	r, err := f.repository(ctx, remote, goal)
	if err != nil {
		return nil, err
	}
	if err := r.check(ctx); err != nil {
		return nil, err
	}
	if list, err := r.tree(r.head.Tree); err == nil && len(list) == 0 {
		return nil, fmt.Errorf("commit %s has no files", r.head.ID)
	}
	if !f.opt.SkipSubmodules {
		if err := f.submodules(ctx, r, 0); err != nil {
			return nil, err
		}
	}
	fsys, err := f.view(ctx, r)
	if err != nil {
		return nil, err
	}
	return &GitTree{
		FS: fsys, Ref: r.found.Name, ID: r.found.ID.String(), Commit: r.head.ID.String(),
		CommitObject: r.head.Raw, TagObject: r.head.Tag,
	}, nil
}

// goal reads the options as BuildKit's source/git does.
func (f *gitFetch) goal() (gitGoal, error) {
	o := f.opt
	g := gitGoal{ref: o.Ref, depth: 1, all: o.History && !o.SingleBranch, verify: o.Checksum}
	if o.History {
		g.depth = o.Depth
	}
	if strings.Trim(o.Checksum, "0123456789abcdefABCDEF") != "" {
		return g, fmt.Errorf("checksum %q: want the hexadecimal digits of a commit", o.Checksum)
	}
	if strings.HasPrefix(o.Ref, "-") {
		return g, fmt.Errorf("%q is no name of a branch or tag", o.Ref)
	}
	if len(o.Ref) == 64 && strings.Trim(o.Ref, "0123456789abcdef") == "" {
		return g, git.ErrObjectFormat
	}
	if g.id, g.hasID = git.ParseID(o.Ref); g.hasID {
		if !strings.HasPrefix(o.Ref, o.Checksum) {
			return g, &GitChecksumError{Want: o.Checksum, Got: []string{o.Ref}}
		}
		return g, nil
	}
	if !o.FetchByCommit {
		return g, nil
	}
	if g.id, g.hasID = git.ParseID(o.Checksum); !g.hasID {
		return g, errors.New("fetch-by-commit needs the 40 digits of a commit, as checksum or ref")
	}
	if o.Ref != "" && !strings.HasPrefix(o.Ref, "refs/") {
		g.ref = "refs/heads/" + o.Ref
	}
	return g, nil
}

// repository returns what the goal needs, fetched once.
func (f *gitFetch) repository(ctx context.Context, remote string, goal gitGoal) (*gitRepo, error) {
	s := f.client.shared(gitWish{remote, goal})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.repo == nil {
		r, err := f.retry(ctx, remote, goal)
		if err != nil {
			return nil, err
		}
		s.repo = r
	}
	// Each has its own view of it.
	r := s.repo
	return &gitRepo{remote: r.remote, found: r.found, head: r.head, pack: r.pack, file: r.file, refs: r.refs, shallow: r.shallow}, nil
}

// retry fetches what the goal needs, with more attempts if it may help.
func (f *gitFetch) retry(ctx context.Context, remote string, goal gitGoal) (*gitRepo, error) {
	u, err := git.ParseURL(remote)
	if err != nil {
		return nil, err
	}
	attempts, delay := f.opt.Attempts, f.opt.Delay
	if attempts <= 0 {
		attempts = 5
	}
	if delay <= 0 {
		delay = 500 * time.Millisecond
	}
	for n := 1; ; n++ {
		r, err := f.attempt(ctx, u, goal)
		if err == nil {
			r.remote = remote
			return r, nil
		}
		if cerr := context.Cause(ctx); cerr != nil {
			return nil, cerr // the connection was closed because of it
		}
		if errors.Is(err, errRefused) && !goal.search {
			goal.search = true
			continue
		}
		var again *passingError
		if n >= attempts || !errors.As(passing(err), &again) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(delay << (n - 1)):
		}
	}
}

// passing marks err as worth another attempt, if it is.
func passing(err error) error {
	var s *git.StatusError
	if errors.As(err, &s) {
		return statusError(&http.Response{StatusCode: s.Status})
	}
	return transportError(err)
}

// attempt connects once and fetches.
func (f *gitFetch) attempt(ctx context.Context, u *git.URL, goal gitGoal) (_ *gitRepo, err error) {
	c, err := f.dial(ctx, u)
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = c.Close() // what was wanted is there, or there is an error already
	}()
	r := &gitRepo{}
	if err := f.choose(ctx, c, goal, r); err != nil {
		return nil, err
	}
	if err := f.fetch(ctx, c, goal, r); err != nil {
		return nil, err
	}
	if r.head, err = r.pack.Commit(r.found.ID); err != nil {
		return nil, err
	}
	if err := goal.verified(r); err != nil {
		return nil, err
	}
	return r, nil
}

func (f *gitFetch) dial(ctx context.Context, u *git.URL) (*git.Remote, error) {
	switch u.Scheme {
	case "ssh":
		hosts := f.client.KnownHosts
		if f.opt.KnownHosts != "" {
			hosts = append(hosts[:len(hosts):len(hosts)], []byte(f.opt.KnownHosts))
		}
		c, err := git.DialSSH(ctx, u, git.SSHOptions{Dial: f.client.Dial, Agent: f.opt.Agent, KnownHosts: hosts})
		return c, sshAccess(u, err)
	case "git":
		return git.DialGit(ctx, u, f.client.Dial)
	}
	var header, from string
	if f.opt.Authorize != nil {
		header, from = f.opt.Authorize(u)
	}
	c, err := git.DialHTTP(ctx, u, git.HTTPOptions{Client: f.client.HTTP, Authorization: header})
	if header == "" && u.User != nil {
		from = "the user and password of the URL"
	}
	return c, httpAccess(u, err, from, f.opt.Looked)
}

// choose finds out which object is wanted and which refs there are.
func (f *gitFetch) choose(ctx context.Context, c *git.Remote, goal gitGoal, r *gitRepo) error {
	if goal.hasID {
		r.found = git.Ref{Name: goal.id.String(), ID: goal.id}
		if goal.ref != "" {
			r.found.Name = goal.ref
		}
	}
	if !goal.hasID {
		found, err := resolveRef(ctx, c, goal.ref)
		if err != nil {
			return err
		}
		r.found = found
		f.opt.Log(found.ID.String() + "\t" + found.Name)
		if !goal.fits(found) {
			got := []string{found.ID.String()}
			if !found.Peeled.IsZero() {
				got = append(got, found.Peeled.String())
			}
			return &GitChecksumError{Want: goal.verify, Got: got}
		}
	}
	if goal.all || goal.search || goal.hasID && !c.GivesAny() {
		refs, err := c.Refs(ctx, "refs/heads/", "refs/tags/")
		if err != nil {
			return err
		}
		r.refs = branchesAndTags(refs)
	}
	return nil
}

// fits reports whether what a name means fits the checksum.
func (g gitGoal) fits(found git.Ref) bool {
	return strings.HasPrefix(found.ID.String(), g.verify) ||
		!found.Peeled.IsZero() && strings.HasPrefix(found.Peeled.String(), g.verify)
}

// verified compares what was fetched with the checksum: its own ID, or that of
// the commit it leads to.
func (g gitGoal) verified(r *gitRepo) error {
	id, commit := r.found.ID.String(), r.head.ID.String()
	if strings.HasPrefix(id, g.verify) || strings.HasPrefix(commit, g.verify) {
		return nil
	}
	got := []string{id}
	if commit != id {
		got = append(got, commit)
	}
	return &GitChecksumError{Want: g.verify, Got: got}
}

func branchesAndTags(refs []git.Ref) []git.Ref {
	var list []git.Ref
	for _, r := range refs {
		if strings.HasPrefix(r.Name, "refs/heads/") || strings.HasPrefix(r.Name, "refs/tags/") {
			list = append(list, r)
		}
	}
	return list
}

// fetch gets the pack. A server that does not give out single commits is
// asked for all branches and tags: the commit may be in their history.
func (f *gitFetch) fetch(ctx context.Context, c *git.Remote, goal gitGoal, r *gitRepo) error {
	depth := goal.depth
	if !c.IsShallow() {
		depth = 0
	}
	wants := []git.ID{r.found.ID}
	switch {
	case goal.search || goal.hasID && !c.GivesAny() && !isTip(r.refs, goal.id):
		return f.search(ctx, c, r)
	case goal.all:
		wants = tips(r.refs, r.found.ID, true)
	}
	err := f.receive(ctx, c, git.FetchRequest{Wants: wants, Depth: depth}, r)
	switch {
	case git.IsRefused(err) && goal.hasID:
		return errRefused
	case git.IsRefused(err):
		return &passingError{err: err} // the branch has moved since it was looked up
	}
	return err
}

// errRefused asks for another connection, over which all is fetched.
var errRefused = errors.New("the server gives out no commits that are not the tip of a branch or tag")

func isTip(refs []git.Ref, id git.ID) bool {
	for _, r := range refs {
		if r.ID == id || r.Peeled == id {
			return true
		}
	}
	return false
}

// tips returns the IDs of refs, once each, and id if it is asked for.
func tips(refs []git.Ref, id git.ID, withID bool) []git.ID {
	seen := make(map[git.ID]bool)
	var ids []git.ID
	add := func(id git.ID) {
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	if withID {
		add(id)
	}
	for _, r := range refs {
		add(r.ID)
	}
	return ids
}

// search fetches the history of all branches and tags, and looks for the
// commit there.
func (f *gitFetch) search(ctx context.Context, c *git.Remote, r *gitRepo) error {
	f.opt.Log("the server gives out no single commits: fetching all branches and tags")
	ids := tips(r.refs, git.ID{}, false)
	if len(ids) == 0 {
		return &GitRefError{Ref: r.found.ID.String()}
	}
	if err := f.receive(ctx, c, git.FetchRequest{Wants: ids}, r); err != nil {
		return err
	}
	if !r.pack.Has(r.found.ID) {
		return &GitRefError{Ref: r.found.ID.String()}
	}
	return nil
}

// receive fetches a pack into a file of the store's session, which goes with it.
func (f *gitFetch) receive(ctx context.Context, c *git.Remote, req git.FetchRequest, r *gitRepo) (err error) {
	w, err := f.client.Store.Create()
	if err != nil {
		return err
	}
	file := storeFile{w}
	defer func() {
		if err != nil {
			w.Discard()
		}
	}()
	r.shallow, err = c.Fetch(ctx, req, func(in io.Reader) error {
		r.pack, err = git.Index(ctx, in, file)
		return err
	})
	if err != nil {
		return err
	}
	r.file = file
	return w.Close()
}

// A storeFile is a file of the store's session that is opened anew for each
// reader, so that nobody has to say when the last one is done.
type storeFile struct{ w *store.Writer }

// Write implements [git.File].
func (f storeFile) Write(b []byte) (int, error) { return f.w.Write(b) }

// Open implements [git.File].
func (f storeFile) Open() (git.FileReader, error) { return os.Open(f.w.Name()) }
