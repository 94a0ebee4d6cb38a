// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/moby/buildkit/solver/pb"
	"github.com/ulikunitz/xz"

	"hako/internal/store"
	"hako/internal/tree"
	"hako/internal/tree/treetest"
)

func clock() time.Time { return time.Unix(99, 0) }

// dockerfileCopy is a copy action as the Dockerfile frontend makes it.
func dockerfileCopy(src, dest string, opts ...func(*pb.FileActionCopy)) *pb.FileActionCopy {
	a := &pb.FileActionCopy{
		Src: src, Dest: dest, Mode: -1, Timestamp: -1, FollowSymlink: true, DirCopyContents: true,
		CreateDestPath: true, AllowWildcard: true, AllowEmptyWildcard: true,
	}
	for _, o := range opts {
		o(a)
	}
	return a
}

func byName(user, group string, input int64) *pb.ChownOpt {
	o := &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: user, Input: input}}}}
	if group != "" {
		o.Group = &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: group, Input: input}}}
	}
	return o
}

const tableSource = `
/a file 0640 5:6 t=1 c=a
/dir dir 0750 5:6 t=2
/dir/f file 0600 5:6 t=3 c=f
/dir/g hard /dir/f
/dir/l link f 5:6 t=4
/dir/sub dir 0711 5:6 t=5
/dir/sub/x file 0755 5:6 t=6 c=x
/dir/sub/y file 0644 5:6 t=6 c=y
/lnk link dir t=7
/pipe fifo 0600 t=8
/sock sock 0640 t=8
/one.go file t=9
/two.go file t=9
/[x] file t=9
/cap file 0755 t=9 c=1 x.security.capability=cap
`

const tableBase = `
/etc/passwd file t=1 c=web:x:33:34::/:/bin/sh
/etc/group file t=1 c=staff:x:50:
/have dir 0700 1:1 t=1
/have/dir dir 0700 1:1 t=1
/have/file file t=1 c=old
/to link have t=1
/sg dir 2775 0:50 t=1
`

func TestCopyRows(t *testing.T) {
	t.Parallel()
	type cp = pb.FileActionCopy
	mode := func(m int32) func(*cp) { return func(a *cp) { a.Mode = m } }
	modeStr := func(m string) func(*cp) { return func(a *cp) { a.Mode, a.ModeStr = 0, m } }
	chown := func(o *pb.ChownOpt) func(*cp) { return func(a *cp) { a.Owner = o } }
	exclude := func(p ...string) func(*cp) { return func(a *cp) { a.ExcludePatterns = p } }
	parents := func(p, req string) func(*cp) {
		return func(a *cp) { a.IncludePatterns, a.RequiredPaths = []string{p}, strings.Fields(req) }
	}
	ids := &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: 8}}}
	for _, tt := range []struct {
		name string
		copy *cp
		want string // below /out, or all of /have for that destination
		err  string
	}{
		{"K1 trailing slash", dockerfileCopy("/a", "/out/"), "/out/a file 0640 5:6 t=1 c=a", ""},
		{"K2 dots stop at the root", dockerfileCopy("../../a", "/out/"), "/out/a file 0640 5:6 t=1 c=a", ""},
		{"K3 wildcard", dockerfileCopy("/*.go", "/out/"), "/out/one.go file 0644 t=9\n/out/two.go file 0644 t=9", ""},
		{"K3 no match", dockerfileCopy("/*.c", "/out/"), "", ""},
		{"K3 escape", dockerfileCopy("/[[]x]", "/out/"), "/out/[x] file 0644 t=9", ""},
		{"K3 missing", dockerfileCopy("/nope", "/out/"), "", `"/nope": not found`},
		{"K4 named link", dockerfileCopy("/lnk/sub", "/out"), "/out/x file 0755 5:6 t=6 c=x\n/out/y file 0644 5:6 t=6 c=y", ""},
		{"K5 dest link", dockerfileCopy("/a", "/to/n"), "/have/dir dir 0700 1:1 t=1\n/have/file file 0644 t=1 c=old\n/have/n file 0640 5:6 t=1 c=a", ""},
		{"K6 K16 dir", dockerfileCopy("/dir", "/out"), "/out/f file 0600 5:6 t=3 c=f\n/out/g hard /out/f\n/out/l link f 5:6 t=4\n/out/sub dir 0711 5:6 t=5\n/out/sub/x file 0755 5:6 t=6 c=x\n/out/sub/y file 0644 5:6 t=6 c=y", ""},
		{"K7 name", dockerfileCopy("/a", "/out/b"), "/out/b file 0640 5:6 t=1 c=a", ""},
		{"K8 file over dir", dockerfileCopy("/a", "/have/dir/../file/"), "", "not a directory"},
		{"K8 dir over file", dockerfileCopy("/dir", "/have/file"), "", "cannot copy to non-directory"},
		{"K10 owner", dockerfileCopy("/dir/l", "/out/l"), "/out/l file 0600 5:6 t=3 c=f", ""},
		{"K11 name", dockerfileCopy("/a", "/out/b", chown(byName("web", "", 0))), "/out/b file 0640 33:34 t=1 c=a", ""},
		{"K11 name and group", dockerfileCopy("/a", "/out/b", chown(byName("web", "staff", 0))), "/out/b file 0640 33:50 t=1 c=a", ""},
		{"K11 unknown", dockerfileCopy("/a", "/out/b", chown(byName("who", "none", 0))), "/out/b file 0640 t=1 c=a", ""},
		{"K11 number", dockerfileCopy("/a", "/out/n/b", chown(ids)), "/out/n dir 0755 8:8 t=99\n/out/n/b file 0640 8:8 t=1 c=a", ""},
		{"K12 octal", dockerfileCopy("/dir/sub", "/out/n", mode(0o4700)), "/out/n dir 0700 t=5\n/out/n/x file 4700 5:6 t=6 c=x\n/out/n/y file 4700 5:6 t=6 c=y", ""},
		{"K12 symbolic", dockerfileCopy("/dir/sub", "/out/n", modeStr("u=rwX,go=X")), "/out/n dir 0755 t=5\n/out/n/x file 0711 5:6 t=6 c=x\n/out/n/y file 0600 5:6 t=6 c=y", ""},
		{"K13 parents", dockerfileCopy("/a", "/out/p/q/"), "/out/p dir 0755 t=99\n/out/p/q dir 0755 t=99\n/out/p/q/a file 0640 5:6 t=1 c=a", ""},
		{"K17 fifo", dockerfileCopy("/pipe", "/out/"), "/out/pipe fifo 0600 t=8", ""},
		{"K17 socket", dockerfileCopy("/sock", "/out/"), "/out/sock file 0640 t=8", ""},
		{"K18 xattr", dockerfileCopy("/cap", "/out/"), "/out/cap file 0755 t=9 c=1 x.security.capability=cap", ""},
		{"K20 name without a tree", dockerfileCopy("/a", "/out/", chown(byName("web", "", -1))), "", "invalid user index: -1"},
		{"K21 parents", dockerfileCopy("/", "/out", parents("dir/sub/x", "/dir/sub/x")), "/out/dir dir 0750 5:6 t=99\n/out/dir/sub dir 0711 5:6 t=5\n/out/dir/sub/x file 0755 5:6 t=6 c=x", ""},
		{"K21 missing", dockerfileCopy("/", "/out", parents("dir/no", "/dir/no")), "", `"/dir/no": not found`},
		{"K22 exclude", dockerfileCopy("/dir", "/out", exclude("*", "!sub/y")), "/out/sub dir 0711 5:6 t=99\n/out/sub/y file 0644 5:6 t=6 c=y", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			op := &pb.FileOp{Actions: []*pb.FileAction{{SecondaryInput: 1, Action: &pb.FileAction_Copy{Copy: tt.copy}}}}
			inputs := []tree.FS{treetest.New(t, tableBase), treetest.New(t, tableSource)}
			r, err := computeFile(t.Context(), op, inputs, fileEnv{Clock: clock()})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			o, root := r.Outputs[0].Overlay, "out"
			if strings.HasPrefix(tt.want, "/have") {
				root = "have"
			}
			var got string
			if _, err := o.Lstat(root); err == nil {
				got = treetest.List(t, o, root)
			}
			want := tt.want
			if tt.name == "K21 parents" {
				// what is made late is made by the clock
				want = strings.Replace(want, "0711 5:6 t=5", "0711 5:6 t=99", 1)
			}
			if d := cmp.Diff(want, strings.TrimSpace(got)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestFileGraph(t *testing.T) {
	t.Parallel()
	mkfile := func(in, out int64, path, data string) *pb.FileAction {
		return &pb.FileAction{Input: in, SecondaryInput: -1, Output: out, Action: &pb.FileAction_Mkfile{
			Mkfile: &pb.FileActionMkFile{Path: path, Mode: 0o644, Data: []byte(data), Timestamp: -1},
		}}
	}
	base := treetest.New(t, "/b file c=base\n/sg dir 2775 0:50")
	for _, tt := range []struct {
		name    string
		actions []*pb.FileAction
		want    []string
		err     string
	}{
		{"heredoc", []*pb.FileAction{
			mkfile(-1, -1, "/f", "x"),
			{Input: 0, SecondaryInput: 1, Action: &pb.FileAction_Copy{Copy: dockerfileCopy("f", "/g")}},
		}, []string{"/b file 0644 c=base\n/g file 0644 t=99 c=x\n/sg dir 2775 0:50\n"}, ""},
		{"shared result", []*pb.FileAction{mkfile(0, -1, "/f", "1"), mkfile(1, 0, "/f", "2"), mkfile(1, 1, "/h", "3")}, []string{
			"/b file 0644 c=base\n/f file 0644 t=99 c=2\n/sg dir 2775 0:50\n",
			"/b file 0644 c=base\n/f file 0644 t=99 c=1\n/h file 0644 t=99 c=3\n/sg dir 2775 0:50\n",
		}, ""},
		{"setgid parent", []*pb.FileAction{{Input: 0, SecondaryInput: -1, Action: &pb.FileAction_Mkdir{
			Mkdir: &pb.FileActionMkDir{Path: "/sg/a/b", Mode: 0o755, MakeParents: true, Timestamp: 5e9},
		}}}, []string{"/b file 0644 c=base\n/sg dir 2775 0:50\n/sg/a dir 2755 0:50 t=5\n/sg/a/b dir 2755 0:50 t=5\n"}, ""},
		{"loop", []*pb.FileAction{mkfile(2, 0, "/f", ""), mkfile(1, -1, "/f", "")}, nil, "loop"},
		{"missing output", []*pb.FileAction{mkfile(0, 1, "/f", "")}, nil, "missing output index 0"},
		{"no output", []*pb.FileAction{mkfile(0, -1, "/f", "")}, nil, "no outputs"},
		{"bad index", []*pb.FileAction{mkfile(7, 0, "/f", "")}, nil, "invalid input index"},
		{"rm", []*pb.FileAction{{Input: 0, SecondaryInput: -1, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/b"}}}}, nil, "not supported"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := computeFile(t.Context(), &pb.FileOp{Actions: tt.actions}, []tree.FS{base}, fileEnv{Clock: clock()})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range r.Outputs {
				if o.Base != 0 {
					t.Errorf("base %d, want 0", o.Base)
				}
				got = append(got, treetest.List(t, o.Overlay, ""))
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestNotFoundError(t *testing.T) {
	t.Parallel()
	op := &pb.FileOp{Actions: []*pb.FileAction{{SecondaryInput: 0, Input: -1, Action: &pb.FileAction_Copy{Copy: dockerfileCopy("/src/ap", "/")}}}}
	_, err := computeFile(t.Context(), op, []tree.FS{treetest.New(t, "/src/app file")}, fileEnv{})
	if e, ok := errors.AsType[*NotFoundError](err); !ok || e.Path != "/src/ap" {
		t.Errorf("error %v, want a NotFoundError with the path", err)
	}
}

// tarOf makes an archive; names ending in "/" are directories, "a->b" symbolic
// and "a=b" hard links.
func tarOf(t testing.TB, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		h := &tar.Header{Name: n, Typeflag: tar.TypeReg, Mode: 0o640, Uid: 3, Gid: 4, ModTime: time.Unix(7, 0)}
		content := "data of " + n
		if a, l, ok := strings.Cut(n, "->"); ok {
			h.Name, h.Linkname, h.Typeflag, content = a, l, tar.TypeSymlink, ""
		} else if a, l, ok := strings.Cut(n, "="); ok {
			h.Name, h.Linkname, h.Typeflag, content = a, l, tar.TypeLink, ""
		} else if strings.HasSuffix(n, "/") {
			h.Typeflag, content = tar.TypeDir, ""
		}
		h.Size = int64(len(content))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	return b.Bytes()
}

// add runs an ADD of an archive to dest on base.
func add(t testing.TB, base tree.FS, archive []byte, dest string, opts ...func(*pb.FileActionCopy)) (*fileResults, error) {
	t.Helper()
	return addIn(t, t.TempDir(), base, archive, dest, opts...)
}

func addIn(t testing.TB, dir string, base tree.FS, archive []byte, dest string, opts ...func(*pb.FileActionCopy)) (*fileResults, error) {
	t.Helper()
	src := tree.NewOverlay(nil)
	e := tree.Entry{Path: "x.tar", Mode: tree.ModeRegular | 0o644, Size: int64(len(archive)), ModTime: time.Unix(1, 0)}
	if err := src.Put(e, treetest.Content(archive)); err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	a := dockerfileCopy("/x.tar", dest, opts...)
	a.AttemptUnpackDockerCompatibility = true
	op := &pb.FileOp{Actions: []*pb.FileAction{{SecondaryInput: 1, Action: &pb.FileAction_Copy{Copy: a}}}}
	return computeFile(t.Context(), op, []tree.FS{base, src}, fileEnv{Clock: clock(), Store: st})
}

func TestUnpack(t *testing.T) {
	t.Parallel()
	base := "/etc link usr/etc\n/usr/etc dir 0755 1:1\n/d dir 0700\n/d/f file c=old\n/d/l link /up\n/up dir"
	for _, tt := range []struct {
		name, dest string
		names      []string
		want, err  string
	}{
		{"plain", "/n", []string{"a/b", "c/"}, "/n dir 0755 t=99\n/n/a dir 0755 t=99\n/n/a/b file 0640 3:4 t=7 c=data of a/b\n/n/c dir 0640 3:4 t=7", ""},
		{"through a link of the archive", "/n", []string{"d/", "l->d", "l/x"}, "/n dir 0755 t=99\n/n/d dir 0640 3:4 t=7\n/n/d/x file 0640 3:4 t=7 c=data of l/x\n/n/l link d 3:4 t=7", ""},
		{"out by dots", "/n", []string{"../../x"}, "/n dir 0755 t=99\n/n/x file 0640 3:4 t=7 c=data of ../../x", ""},
		{"out by absolute link", "/n", []string{"l->/d", "l/x"}, "", ""},
		{"the base's link stays inside too", "/d", []string{"l/x"}, "", ""},
		{"hard link", "/n", []string{"a", "b=a"}, "/n dir 0755 t=99\n/n/a file 0640 3:4 t=7 c=data of a\n/n/b hard /n/a", ""},
		{"hard link out", "/n", []string{"b=../d/f"}, "", "file does not exist"},
		{"file for dir", "/", []string{"d"}, "", ""},
		{"whiteout name", "/", []string{"a/.wh.b"}, "", ".wh.b"},
		{"onto a file", "/d/f", []string{"a"}, "", "not a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := treetest.New(t, base)
			r, err := add(t, b, tarOf(t, tt.names...), tt.dest)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			o := r.Outputs[0].Overlay
			if o.Base() != tree.FS(b) {
				t.Error("overlay has another base")
			}
			for c, err := range o.Changes() {
				if err != nil {
					t.Fatal(err)
				}
				if d := tree.Clean(tt.dest); !tree.Within(c.Path, d) && !tree.Within(d, c.Path) {
					t.Errorf("%q changed outside of %q", c.Path, d)
				}
			}
			if tt.want == "" {
				return
			}
			var got []string
			for l := range strings.Lines(treetest.List(t, o, "")) {
				if strings.HasPrefix(l, tt.dest) {
					got = append(got, l)
				}
			}
			if d := cmp.Diff(tt.want, strings.TrimSpace(strings.Join(got, ""))); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestUnpackCompressed(t *testing.T) {
	t.Parallel()
	plain := tarOf(t, "dir/", "dir/file")
	pack := func(w io.WriteCloser, b *bytes.Buffer) []byte {
		_, _ = w.Write(plain)
		w.Close()
		return b.Bytes()
	}
	var g, x, z bytes.Buffer
	xw, err := xz.NewWriter(&x)
	if err != nil {
		t.Fatal(err)
	}
	zw, err := zstd.NewWriter(&z)
	if err != nil {
		t.Fatal(err)
	}
	// The same archive: Go has no bzip2 writer.
	bz, err := base64.StdEncoding.DecodeString("QlpoOTFBWSZTWcvLYhcAAI77gNOAQABAAN+AAERnJJ4ACAggAHQSUIZADQNDTQSSTTQGTQAA+1stkw9IB9KSETj0QMCcqHQHFQhDAMt+YKNY8uaIeMBG/DhDjCMTXJpwYMgQg7cdUE1KkmW+k/DoeplkhqoNoUMhIPxdyRThQkMvLYhc")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"bzip2": bz, "none": plain, "gzip": pack(gzip.NewWriter(&g), &g), "xz": pack(xw, &x), "zstd": pack(zw, &z),
	} {
		r, err := add(t, nil, b, "/out", func(a *pb.FileActionCopy) {
			a.Mode = 0o777 // has no effect on what is unpacked
			a.Owner = &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByID{ByID: 8}}}
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := "/out dir 0755 8:8 t=99\n/out/dir dir 0640 8:8 t=7\n/out/dir/file file 0640 8:8 t=7 c=data of dir/file\n"
		if d := cmp.Diff(want, treetest.List(t, r.Outputs[0].Overlay, "")); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		r.Close()
	}
	// No archive: copied as it is.
	r, err := add(t, nil, []byte("text"), "/out")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff("/out file 0644 t=1 c=text\n", treetest.List(t, r.Outputs[0].Overlay, "")); d != "" {
		t.Errorf("no archive (-want +got):\n%s", d)
	}
	if _, err := add(t, nil, plain[:1030], "/out"); err == nil {
		t.Error("truncated archive: no error")
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(tarOf(f, "a/b", "l->/a", "l/c", "h=a/b", "../x"))
	f.Add([]byte("\x1f\x8b\x08 no archive"))
	f.Fuzz(func(t *testing.T, b []byte) {
		base := treetest.New(t, "/safe file c=1\n/d/l link /safe\n/d/up link ..")
		r, err := addIn(t, treetest.MemoryDir(t), base, b, "/d/")
		if err != nil {
			return
		}
		defer r.Close()
		for c, err := range r.Outputs[0].Overlay.Changes() {
			if err != nil {
				t.Fatal(err)
			}
			if !tree.Within(c.Path, "d") {
				t.Fatalf("%q changed outside of the destination", c.Path)
			}
		}
	})
}
