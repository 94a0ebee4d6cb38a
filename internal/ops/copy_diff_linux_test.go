// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/solver/pb"
	fscopy "github.com/tonistiigi/fsutil/copy"
	"golang.org/x/sys/unix"

	"hako/internal/tree"
	"hako/internal/tree/treetest"
)

// The tests here compare with the code that BuildKit copies files with, run on
// directories of the disk. They need root.

// toDisk writes a tree below dir.
func toDisk(t *testing.T, fsys tree.FS, dir string) {
	t.Helper()
	first := map[tree.NodeID]string{}
	var walk func(p string)
	one := func(e tree.Entry) error {
		name := filepath.Join(dir, e.Path)
		if f, ok := first[e.Node]; ok && e.Node != (tree.NodeID{}) {
			return os.Link(f, name)
		}
		first[e.Node] = name
		var err error
		switch e.Mode.Type() {
		case tree.ModeDir:
			if err = os.Mkdir(name, 0o700); err == nil {
				walk(e.Path)
			}
		case tree.ModeRegular:
			r, oerr := fsys.Open(e.Path)
			if oerr != nil {
				return oerr
			}
			b, _ := io.ReadAll(r)
			err = os.WriteFile(name, b, 0o600)
		case tree.ModeSymlink:
			err = os.Symlink(e.Link, name)
		default:
			err = unix.Mknod(name, uint32(e.Mode), int(unix.Mkdev(e.Major, e.Minor)))
		}
		if err != nil {
			return err
		}
		if err := os.Lchown(name, int(e.UID), int(e.GID)); err != nil {
			return err
		}
		if !e.Mode.IsSymlink() {
			if err := unix.Chmod(name, uint32(e.Mode.Perm())); err != nil {
				return err
			}
		}
		ts, _ := unix.TimeToTimespec(e.ModTime)
		return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
	walk = func(p string) {
		es, err := fsys.ReadDir(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			if err := one(e); err != nil {
				t.Fatalf("write %q: %v", e.Path, err)
			}
		}
	}
	walk("")
}

// fromDisk reads what is below dir. Times after start are the clock's.
func fromDisk(t *testing.T, dir string, start, clock time.Time) *tree.Overlay {
	t.Helper()
	o := tree.NewOverlay(nil)
	first := map[uint64]string{}
	err := filepath.Walk(dir, func(name string, fi os.FileInfo, err error) error {
		p, _ := filepath.Rel(dir, name)
		if err != nil || p == "." {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		e := tree.Entry{Path: p, Mode: tree.Mode(st.Mode), UID: st.Uid, GID: st.Gid, ModTime: fi.ModTime()}
		if !e.ModTime.Before(start) {
			e.ModTime = clock
		}
		if f, ok := first[st.Ino]; ok && !fi.IsDir() {
			return o.Link(p, f)
		}
		first[st.Ino] = p
		switch e.Mode.Type() {
		case tree.ModeDir:
			return o.Mkdir(e)
		case tree.ModeRegular:
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			e.Size = int64(len(b))
			return o.Put(e, treetest.Content(b))
		case tree.ModeSymlink:
			e.Link, err = os.Readlink(name)
		default:
			e.Major, e.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		}
		if err != nil {
			return err
		}
		return o.Special(e)
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: owners are compared")
	}
}

// randomTree makes a small tree with every kind of file.
func randomTree(rnd *rand.Rand, n int, names string) *tree.Overlay {
	o := tree.NewOverlay(nil)
	dirs, files := []string{""}, []string{}
	for i := range n {
		p := tree.Join(dirs[rnd.IntN(len(dirs))], string(names[rnd.IntN(len(names))]))
		if _, err := o.Lstat(p); err == nil {
			continue
		}
		e := tree.Entry{
			Path: p, Mode: tree.Mode(rnd.IntN(0o1000)) | 0o400, UID: uint32(rnd.IntN(3)), GID: uint32(rnd.IntN(3)),
			ModTime: time.Unix(int64(1000+i), 0),
		}
		if rnd.IntN(6) == 0 {
			e.Mode |= tree.Mode(1+rnd.IntN(7)) << 9
		}
		switch k := rnd.IntN(12); {
		case k < 5:
			e.Mode |= tree.ModeDir
			_ = o.Mkdir(e)
			dirs = append(dirs, p)
		case k < 8:
			e.Mode |= tree.ModeRegular
			c := fmt.Appendf(nil, "%s-%d", names, i)
			e.Size = int64(len(c))
			_ = o.Put(e, treetest.Content(c))
			files = append(files, p)
		case k < 9 && len(files) > 0:
			_ = o.Link(p, files[rnd.IntN(len(files))])
		case k < 10:
			e.Mode |= tree.ModeFIFO
			_ = o.Special(e)
		default:
			e.Mode, e.Link = tree.ModeSymlink|0o777, pick(rnd, "a", "/b", "../c", "/a/b", "../b/d", "/no/where", "..")
			_ = o.Special(e)
		}
	}
	return o
}

func pick(rnd *rand.Rand, s ...string) string { return s[rnd.IntN(len(s))] }

func randomCopy(rnd *rand.Rand) *pb.FileActionCopy {
	a := &pb.FileActionCopy{
		Src:  pick(rnd, "/", "/a", "/b", "/a/b", "/c/", "/a/.", "/*", "/a/*", "/*/b", "/[ab]", "/?", "/d", "/[^a]*"),
		Dest: pick(rnd, "/", "/a", "/b/", "/a/b", "/n/e/w", "/n/e/w/", "/c/.", "/d/x", "/."),
		Mode: -1, Timestamp: -1, FollowSymlink: rnd.IntN(4) > 0, DirCopyContents: rnd.IntN(3) > 0,
		CreateDestPath: rnd.IntN(4) > 0, AllowWildcard: rnd.IntN(4) > 0, AllowEmptyWildcard: true,
		AlwaysReplaceExistingDestPaths: rnd.IntN(4) == 0,
	}
	switch rnd.IntN(5) {
	case 0:
		a.Mode = int32(pick(rnd, "\x01", "\x02")[0]) << 7 & 0o7777
		a.Mode |= int32(rnd.IntN(0o10000))
	case 1:
		a.ModeStr = pick(rnd, "u=rwX,go=rX", "a+x", "go-rwx", "u+s,g=u")
	}
	if a.Src == "/a/." {
		a.AlwaysReplaceExistingDestPaths = false // would remove the root
	}
	if rnd.IntN(4) == 0 {
		a.Timestamp = 77e9
	}
	if rnd.IntN(3) == 0 {
		a.IncludePatterns = []string{pick(rnd, "a", "*", "a/b", "**/b", "*/c", "b/**", "a/*/c", "!a")}
	}
	if rnd.IntN(3) == 0 {
		a.ExcludePatterns = []string{pick(rnd, "a", "**/b", "*/c", "b"), pick(rnd, "d", "!a/b", "!**/c", "x")}
	}
	if rnd.IntN(3) == 0 {
		a.Owner = &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: 7}}}
	}
	return a
}

// oracle does what BuildKit's backend does with a copy action.
func oracle(t *testing.T, src, dst string, a *pb.FileActionCopy) error {
	if !a.CreateDestPath {
		p := dst + "/" + resolveDisk(t, dst, a.Dest)
		if _, err := os.Lstat(filepath.Dir(filepath.Clean(p))); err != nil && filepath.Clean(p) != dst {
			return err
		}
	}
	matches := []string{cleanPath(a.Src)}
	if a.AllowWildcard {
		var err error
		if matches, err = fscopy.ResolveWildcards(src, matches[0], a.FollowSymlink); err != nil {
			return err
		}
	}
	opt := func(ci *fscopy.CopyInfo) {
		ci.IncludePatterns, ci.ExcludePatterns = a.IncludePatterns, a.ExcludePatterns
		if a.Owner != nil {
			fscopy.WithChown(7, 7)(ci)
		}
		if a.Timestamp != -1 {
			tm := time.Unix(0, a.Timestamp)
			ci.Utime = &tm
		}
		if m := int(a.Mode); a.ModeStr != "" {
			ci.ModeStr = a.ModeStr
		} else if m != -1 {
			ci.Mode = &m
		}
		ci.CopyDirContents, ci.FollowLinks = a.DirCopyContents, a.FollowSymlink
		ci.AlwaysReplaceExistingDestPaths = a.AlwaysReplaceExistingDestPaths
	}
	for _, m := range matches {
		if err := fscopy.Copy(t.Context(), src, m, dst, cleanPath(a.Dest), opt, fscopy.AllowXAttrErrors); err != nil {
			return err
		}
	}
	return nil
}

func resolveDisk(t *testing.T, dst, p string) string {
	r, err := tree.Resolve(fromDisk(t, dst, time.Unix(1<<40, 0), time.Time{}), tree.Clean(p), true)
	if err != nil {
		return "no/such"
	}
	return r
}

func TestCopyLikeBuildKit(t *testing.T) {
	needRoot(t)
	defer unix.Umask(unix.Umask(0))
	fscopy.UmaskIsZero = true // as buildkitd has it
	n, failed := 300, 0
	from, _ := strconv.ParseUint(os.Getenv("COPY_SEED"), 10, 64)
	for seed := range uint64(n) {
		if copyOnce(t, from+seed) {
			failed++
		}
		if t.Failed() {
			return
		}
	}
	if failed > n*2/3 || failed < n/50 {
		t.Errorf("%d of %d copies failed: the test tests too little", failed, n)
	}
}

// copyOnce reports whether the copy was an error, in both.
func copyOnce(t *testing.T, seed uint64) bool {
	rnd := rand.New(rand.NewPCG(seed, 2))
	src, base, a := randomTree(rnd, 14, "abcd"), randomTree(rnd, 10, "abcdx"), randomCopy(rnd)
	dir, err := os.MkdirTemp(os.Getenv("COPY_DIR"), "copy") //nolint:usetesting // thousands of trees: each goes at once
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s, d := filepath.Join(dir, "s"), filepath.Join(dir, "d")
	for _, p := range []string{s, d} {
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	before := treetest.List(t, base, "")
	toDisk(t, src, s)
	toDisk(t, base, d)
	clock := time.Unix(5e9, 0)
	start := time.Now().Add(-time.Minute)
	want := oracle(t, s, d, a)
	op := &pb.FileOp{Actions: []*pb.FileAction{{Input: 0, SecondaryInput: 1, Action: &pb.FileAction_Copy{Copy: a}}}}
	r, got := computeFile(t.Context(), op, []tree.FS{base, src}, fileEnv{Clock: clock})
	if got == nil && want != nil && len(a.IncludePatterns) > 0 && strings.Contains(want.Error(), "not a directory") {
		// The disk's links lead the copier astray, out of the root even,
		// where nothing would have been copied.
		return true
	}
	if (want == nil) != (got == nil) {
		t.Errorf("seed %d: %v\nbuildkit: %v\nhako: %v\nsource:\n%sbase:\n%s", seed, a, want, got, treetest.List(t, src, ""), before)
		return true
	}
	if after := treetest.List(t, base, ""); after != before {
		t.Errorf("seed %d: base changed", seed)
	}
	if want != nil {
		return true
	}
	defer r.Close()
	w := treetest.List(t, fromDisk(t, d, start, clock), "")
	g := treetest.List(t, r.Outputs[0].Overlay, "")
	if diff := cmp.Diff(moved(w, w, clock), moved(g, w, clock)); diff != "" {
		t.Errorf("seed %d: %v\n(-buildkit +hako):\n%s\nsource:\n%sbase:\n%s", seed, a, diff, treetest.List(t, src, ""), before)
	}
	return false
}

// moved drops from a list the times of directories that the disk's clock moved
// last in want, because something was put into them. Those keep the time that
// they had, were copied with or were made at, as a table test shows.
func moved(list, want string, clock time.Time) string {
	dirs := map[string]bool{}
	now := fmt.Sprintf("t=%d", clock.Unix())
	for l := range strings.Lines(want) {
		if f := strings.Fields(l); f[1] == "dir" && f[len(f)-1] == now {
			dirs[f[0]] = true
		}
	}
	var b strings.Builder
	for l := range strings.Lines(list) {
		f := strings.Fields(l)
		if dirs[f[0]] && strings.HasPrefix(f[len(f)-1], "t=") {
			f = f[:len(f)-1]
		}
		b.WriteString(strings.Join(f, " ") + "\n")
	}
	return b.String()
}
