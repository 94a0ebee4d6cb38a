// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package git_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hako/internal/git"
	"hako/test/gitserver"
)

// diskFile is a git.File.
type diskFile struct{ *os.File }

func (f diskFile) Open() (git.FileReader, error) { return os.Open(f.Name()) }

func newFile(t testing.TB) diskFile {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "pack"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return diskFile{f}
}

func script(t testing.TB, dir, s string) string {
	t.Helper()
	out, err := gitserver.Script(t.Context(), dir, s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// history makes a repository with long chains of deltas, a tag of a tag, and
// a file that is stored whole.
const history = `
git init -q -b main repo; cd repo
seq 1 400 > numbers; mkdir -p a/b; echo x > a/b/x; : > empty
head -c 3000000 /dev/zero > zeros
git add .; git commit -qm first
for i in $(seq 1 60); do echo "line $i" >> numbers; sed -i "$((i*3))s/.*/changed $i/" numbers; git commit -qam "change $i"; done
git tag -a -m 'a tag' v1; git tag -a -m 'a tag of it' v1again v1
git repack -adfq --depth=50 --window=50
`

func TestIndex(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	script(t, top, history)
	for name, flags := range map[string]string{"offsets": "--delta-base-offset", "ids": "", "whole": "--window=0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			script(t, filepath.Join(top, "repo"), "git rev-list --objects --all | cut -d' ' -f1 > "+dir+"/ids; sort -u -o "+dir+"/ids "+dir+"/ids; "+
				"git pack-objects -q "+flags+" --stdout < "+dir+"/ids > "+dir+"/p.pack; git index-pack --index-version=2 "+dir+"/p.pack")
			f := newFile(t)
			p, err := git.Index(t.Context(), bytes.NewReader(readFile(t, dir+"/p.pack")), f)
			if err != nil {
				t.Fatal(err)
			}
			var idx bytes.Buffer
			if err := p.WriteIdx(&idx); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(idx.Bytes(), readFile(t, dir+"/p.idx")) {
				t.Error("the index is not git's")
			}
			if !bytes.Equal(readFile(t, f.Name()), readFile(t, dir+"/p.pack")) {
				t.Error("the pack was not copied as it is")
			}
			compareObjects(t, p, script(t, filepath.Join(top, "repo"), "git cat-file --batch-check < "+dir+"/ids"), filepath.Join(top, "repo"))
			testCommit(t, p, filepath.Join(top, "repo"))
		})
	}
}

// compareObjects compares the objects of a list "ID TYPE SIZE" with git's.
func compareObjects(t *testing.T, p *git.Pack, list, repo string) {
	t.Helper()
	lines := strings.Split(list, "\n")
	if p.Len() != len(lines) {
		t.Errorf("%d objects, want %d", p.Len(), len(lines))
	}
	for i, line := range lines {
		id, ok := git.ParseID(line[:40])
		if !ok {
			t.Fatalf("line %q", line)
		}
		typ, size, err := p.Stat(id)
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Open(id)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || r.Close() != nil {
			t.Fatal(err)
		}
		if int64(len(got)) != size || !strings.HasPrefix(line[41:], typ.String()+" ") {
			t.Fatalf("%s: %s of %d bytes, Stat says %d", line, typ, len(got), size)
		}
		if i%7 == 0 { // each is a process
			want := script(t, repo, "git cat-file "+typ.String()+" "+id.String()+" | git hash-object -t "+typ.String()+" --stdin")
			if want != id.String() {
				t.Fatalf("git reads %s as %s", id, want)
			}
		}
	}
}

func testCommit(t *testing.T, p *git.Pack, repo string) {
	t.Helper()
	id, _ := git.ParseID(script(t, repo, "git rev-parse v1again"))
	c, err := p.Commit(id)
	if err != nil {
		t.Fatal(err)
	}
	if want := script(t, repo, "git rev-parse 'v1again^{commit}'"); c.ID.String() != want {
		t.Errorf("the tag leads to %s, want %s", c.ID, want)
	}
	if c.Time.Unix() != 1600000060 || c.Tag == nil {
		t.Errorf("time %v, tag %q", c.Time, c.Tag)
	}
	if _, err := p.Commit(git.ID{1}); !errors.Is(err, git.ErrNotFound) {
		t.Errorf("an object that is not there: %v", err)
	}
}

// TestIndexDamaged flips and cuts bytes: nothing damaged may pass for whole.
func TestIndexDamaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script(t, dir, "git init -q -b main r; cd r; seq 1 50 > f; git add .; git commit -qm 1; echo 51 >> f; git commit -qam 2; git rev-list --objects --all | cut -d' ' -f1 | git pack-objects -q --delta-base-offset --stdout > ../p.pack")
	pack := readFile(t, dir+"/p.pack")
	for at := range pack {
		bad := bytes.Clone(pack)
		bad[at] ^= 0x41
		if _, err := git.Index(t.Context(), bytes.NewReader(bad), newFile(t)); err == nil {
			t.Errorf("byte %d of %d is wrong, and nobody noticed", at, len(pack))
		}
		if _, err := git.Index(t.Context(), bytes.NewReader(pack[:at]), newFile(t)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", at, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := git.Index(ctx, bytes.NewReader(pack), newFile(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func FuzzIndex(f *testing.F) {
	dir := f.TempDir()
	script(f, dir, "git init -q -b main r; cd r; seq 1 50 > f; git add .; git commit -qm 1; echo 51 >> f; git commit -qam 2; git rev-list --objects --all | cut -d' ' -f1 > ../ids; git pack-objects -q --delta-base-offset --stdout < ../ids > ../p.pack; git pack-objects -q --stdout < ../ids > ../q.pack")
	f.Add(readFile(f, dir+"/p.pack"))
	f.Add(readFile(f, dir+"/q.pack"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := git.Index(t.Context(), bytes.NewReader(b), newFile(t))
		if err != nil {
			return
		}
		if err := p.WriteIdx(io.Discard); err != nil {
			t.Errorf("a pack that was read has no index: %v", err)
		}
	})
}
