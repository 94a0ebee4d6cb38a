// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"archive/tar"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
	"hako/internal/tree/treetest"
)

// alone unpacks on one goroutine, as is done where there may be mount points;
// together as is done elsewhere, if there is more than one CPU.
func alone(tb testing.TB, tars ...[]byte) (string, error)    { return apply(tb, true, tars) }
func together(tb testing.TB, tars ...[]byte) (string, error) { return apply(tb, false, tars) }

func apply(tb testing.TB, alone bool, tars [][]byte) (string, error) {
	tb.Helper()
	dir := treetest.MemoryDir(tb)
	st, err := store.Open(treetest.MemoryDir(tb))
	if err != nil {
		tb.Fatal(err)
	}
	r, err := layer.OpenRoot(dir)
	if err != nil {
		tb.Fatal(err)
	}
	r.CrossMounts = alone
	if err := r.FlushEvery(1 << 14); err != nil {
		tb.Fatal(err)
	}
	for _, b := range tars {
		if err = r.Apply(tb.Context(), foreign(st, b, b), false); err != nil {
			break
		}
	}
	return dir, errors.Join(err, r.Close())
}

func crewFile(name, content string) member { return member{fileHeader(name), content} }

func crewDir(name string) member { return member{dirHeader(name, 0o755, 0), ""} }

func crewLink(name, to string) member {
	return member{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, ""}
}

func crewHard(name, to string) member {
	return member{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}, ""}
}

// hazards are entries that depend on the one before them, below a directory each.
func hazards() map[string][2][]member {
	return map[string][2][]member{
		"same name twice":       {nil, {crewFile("f", "first"), crewFile("f", "second")}},
		"link to a file":        {nil, {crewFile("f", "x"), crewHard("g", "f")}},
		"link to a new version": {{crewFile("f", "old"), crewHard("h", "f")}, {crewFile("f", "new"), crewHard("g", "f")}},
		"link in place of a file": {
			{crewFile("other", "other")}, {crewFile("f", "x"), crewHard("f", "other")},
		},
		"symlink in place of a file":    {nil, {crewFile("f", "x"), crewLink("f", "nowhere")}},
		"FIFO in place of a file":       {nil, {crewFile("f", "x"), {tar.Header{Typeflag: tar.TypeFifo, Name: "f"}, ""}}},
		"large file in place of a file": {nil, {crewFile("f", "x"), crewFile("f", strings.Repeat("y", 100_000))}},
		"directory in place of a file":  {nil, {crewFile("f", "x"), crewDir("f"), crewFile("f/g", "y")}},
		"implied directory in place of a file that is a link below": {
			{crewDir("d"), crewLink("f", "d")}, {crewFile("f", "x"), crewDir("f"), crewFile("f/g", "y"), crewFile("d/h", "z")},
		},
		"file in place of a directory": {
			{crewDir("d"), crewFile("d/old", "x")}, {crewFile("d", "x"), crewFile("e", "y"), crewHard("g", "d")},
		},
		"file in place of a directory and back": {
			{crewDir("d"), crewFile("d/old", "x")}, {crewFile("d/new", "y"), crewFile("d", "x"), crewDir("d"), crewFile("d/f", "z")},
		},
		"file in place of a link":     {{crewFile("to", "x"), crewLink("l", "to")}, {crewFile("l", "y")}},
		"file of a lower layer, link": {{crewFile("f", "old"), crewHard("g", "f")}, {crewFile("f", "new")}},
		"the same by another path":    {{crewDir("d"), crewLink("l", "d")}, {crewFile("d/f", "first"), crewFile("l/f", "second")}},
		"the same by a path in use": {
			{crewDir("d"), crewLink("l", "d")}, {crewFile("l/x", "x"), crewFile("d/f", "first"), crewFile("l/f", "second")},
		},
		"link in place of a directory above it": {{crewDir("d"), crewDir("d/e")}, {crewFile("d/e/f", "x"), crewLink("d", "nowhere")}},
		"link in place of its directory":        {{crewDir("d")}, {crewFile("d/f", "x"), crewLink("d", "nowhere")}},
		"file in place of its directory": {
			{crewDir("d"), crewFile("o", "x")}, {crewFile("d/f", "x"), crewHard("d", "o")},
		},
		"link by another path":           {{crewDir("d"), crewLink("l", "d")}, {crewFile("d/f", "x"), crewHard("g", "l/f")}},
		"deletion by another path":       {{crewDir("d"), crewLink("l", "d")}, {crewFile("d/f", "x"), crewFile("l/.wh.f", "")}},
		"opaque by another path":         {{crewDir("d"), crewLink("l", "d")}, {crewFile("d/f", "x"), crewFile("l/.wh..wh..opq", "")}},
		"directory through another path": {{crewDir("d"), crewLink("l", "d")}, {crewFile("d/f", "x"), crewDir("l/f"), crewFile("d/f/g", "x")}},
		"deletion of what is replaced":   {{crewDir("d"), crewFile("d/f", "x")}, {crewFile("d", "x"), crewFile(".wh.d", "")}},
		"deletion beside": {
			{crewDir("d"), crewFile("d/f", "x")}, {crewFile("d/g", "x"), crewFile(".wh.d", ""), crewFile("d/h", "y")},
		},
	}
}

// below moves members below a directory.
func below(dir string, ms []member) []member {
	out := make([]member, len(ms))
	for i, m := range ms {
		m.Name = dir + "/" + m.Name
		if m.Typeflag == tar.TypeLink {
			m.Linkname = dir + "/" + m.Linkname
		}
		out[i] = m
	}
	return out
}

// What depends on a file that others make waits for it.
func TestCrewOrder(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for name, ms := range hazards() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var low, high []member
			for i := range 40 {
				dir := fmt.Sprint("r", i)
				low = append(append(low, crewDir(dir)), below(dir, ms[0])...)
				// Something for the others to be busy with.
				for k := range i % 8 {
					high = append(high, crewFile(fmt.Sprint(dir, "/busy", k), strings.Repeat("b", 20*i)))
				}
				high = append(high, below(dir, ms[1])...)
			}
			same(t, tarOf(t, low...), tarOf(t, high...))
		})
	}
}

// same unpacks alone and together, and compares. It returns the error of both.
func same(t *testing.T, tars ...[]byte) error {
	t.Helper()
	want, err := alone(t, tars...)
	got, gotErr := together(t, tars...)
	if fmt.Sprint(err) != fmt.Sprint(gotErr) {
		t.Errorf("error %v, want %v", gotErr, err)
	}
	if err != nil || gotErr != nil {
		return err
	}
	if d := cmp.Diff(withoutDirTimes(disk(t, want)), withoutDirTimes(disk(t, got))); d != "" {
		t.Errorf("(-alone +together):\n%s", d)
	}
	return nil
}

// crewLayer returns random entries of few names, among files that are in nobody's way.
func crewLayer(r *rand.Rand, busy string) []member {
	name := func() string {
		var c []string
		for range 1 + r.IntN(3) {
			c = append(c, string("abc"[r.IntN(3)]))
		}
		return strings.Join(c, "/")
	}
	var ms []member
	for i := range 60 {
		p := name()
		for k := range r.IntN(4) {
			ms = append(ms, crewFile(fmt.Sprintf("%s%d-%d", busy, i, k), strings.Repeat("b", r.IntN(5000))))
		}
		switch r.IntN(16) {
		case 0, 1, 2:
			ms = append(ms, crewDir(p))
		case 3:
			ms = append(ms, crewLink(p, name()))
		case 4, 5:
			ms = append(ms, crewHard(p, name()))
		case 6:
			ms = append(ms, crewFile(tree.Join(tree.Parent(p), ".wh."+tree.Base(p)), ""))
		case 7:
			ms = append(ms, crewFile(p+"/.wh..wh..opq", ""))
		case 8:
			ms = append(ms, crewFile(p, strings.Repeat("L", 70_000)))
		default:
			ms = append(ms, crewFile(p, fmt.Sprint("content ", i)))
		}
	}
	return ms
}

// Whatever the order of the entries, it makes no difference who makes the files.
func TestCrewRandom(t *testing.T) {
	t.Parallel()
	needRoot(t)
	seeds := 30
	if testing.Short() {
		seeds = 6
	}
	good := 0
	for seed := range seeds {
		r := rand.New(rand.NewPCG(uint64(seed), 3))
		one, two := crewLayer(r, "busy"), crewLayer(r, "a-busy")
		for range 60 {
			err := same(t, tarOf(t, one...), tarOf(t, two...))
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
			if err == nil {
				good++
				break
			}
			one, two = without(one, err), without(two, err)
		}
	}
	if good < seeds/2 {
		t.Errorf("only %d of %d stacks can be unpacked: the test says little", good, seeds)
	}
}

// without removes the entries that an error names.
func without(ms []member, err error) []member {
	var out []member
	for _, m := range ms {
		p := "/" + strings.TrimSuffix(strings.NewReplacer("/.wh..wh..opq", "", ".wh.", "").Replace(m.Name), "/")
		if !strings.Contains(err.Error(), p+":") && !strings.Contains(err.Error(), p+" to") {
			out = append(out, m)
		}
	}
	return out
}

// The error is that of the first entry that fails, whoever makes it.
func TestCrewErrors(t *testing.T) {
	t.Parallel()
	needRoot(t)
	long := strings.Repeat("n", 300)
	bad := func(name string) member {
		h := fileHeader(name)
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "nonsense"}
		return member{h, "x"}
	}
	for name, ms := range map[string][]member{
		"/x/1" + long: {crewFile("x/1"+long, "x"), crewFile("x/2"+long, "x"), bad("x/3")},
		"/x/bad":      {bad("x/bad"), crewDir("x/" + long), crewHard("x/h", "x/nothing")},
		"/x/d" + long: {crewFile("x/good", "x"), crewDir("x/d" + long), bad("x/bad")},
		"/x/f/g":      {crewFile("x/f", "x"), crewFile("x/f/g", "x"), bad("x/bad")},
		"/x/l/g":      {crewFile("x/f", "x"), crewLink("x/l", "f"), crewFile("x/l/g", "x"), bad("x/bad")},
		"/x/h":        {crewFile("x/f", "x"), crewHard("x/h", "x/nothing"), bad("x/bad")},
		"/x/last":     {bad("x/last")},
	} {
		for busy := range 4 {
			crewError(t, name, busy*6, ms)
		}
	}
}

// crewError unpacks entries of which one fails, with files before and behind.
func crewError(t *testing.T, name string, busy int, ms []member) {
	t.Helper()
	all := []member{crewDir("x")}
	for i := range busy {
		all = append(all, crewFile(fmt.Sprint("x/before", i), strings.Repeat("b", 1000)))
	}
	all = append(all, ms...)
	if name != "/x/last" {
		for i := range 20 {
			all = append(all, crewFile(fmt.Sprint("x/after", i), ""))
		}
	}
	b := tarOf(t, all...)
	if err := same(t, b); err == nil || !strings.Contains(err.Error(), " "+name) {
		t.Errorf("error %v, want one of %s", err, name)
	}
}

// A layer is given up soon after the error.
func TestCrewStops(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const after = 20_000
	ms := []member{crewDir("x"), crewFile("x/"+strings.Repeat("n", 300), "x")}
	for i := range after {
		ms = append(ms, crewFile(fmt.Sprint("x/after", i), ""))
	}
	dir, err := together(t, tarOf(t, ms...))
	if made, _ := filepath.Glob(dir + "/x/after*"); err == nil || len(made) == after {
		t.Errorf("error %v, %d files made after it", err, len(made))
	}
}

// What a directory's entry says of it is not for the files that came before: they
// do not inherit the access list that it gives to new ones.
func TestCrewInherited(t *testing.T) {
	t.Parallel()
	needRoot(t)
	list := []byte{2, 0, 0, 0}
	for _, e := range [][3]uint32{{1, 7, ^uint32(0)}, {2, 7, 1000}, {4, 5, ^uint32(0)}, {16, 7, ^uint32(0)}, {32, 5, ^uint32(0)}} {
		list = binary.LittleEndian.AppendUint16(list, uint16(e[0]))
		list = binary.LittleEndian.AppendUint16(list, uint16(e[1]))
		list = binary.LittleEndian.AppendUint32(list, e[2])
	}
	passing := func(name string) member {
		h := dirHeader(name, 0o755, 0)
		h.PAXRecords = map[string]string{"SCHILY.xattr.system.posix_acl_default": string(list)}
		return member{h, ""}
	}
	var low, high []member
	for i := range 50 {
		d := fmt.Sprint("d", i)
		low = append(low, crewDir(d))
		for k := range i % 10 {
			high = append(high, crewFile(fmt.Sprint(d, "/f", k), "x"))
		}
		high = append(high, passing(d), crewFile(d+"/later", "x"))
	}
	for k := range 8 {
		high = append(high, crewFile(fmt.Sprint("f", k), "x"))
	}
	high = append(high, passing("."))
	dir, err := together(t, tarOf(t, low...), tarOf(t, high...))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Lgetxattr(dir+"/d1/later", "system.posix_acl_access", nil); err != nil {
		t.Skipf("no access lists here: %v", err)
	}
	made, _ := filepath.Glob(dir + "/d*/f*")
	top, _ := filepath.Glob(dir + "/f*")
	for _, f := range append(made, top...) {
		if _, err := unix.Lgetxattr(f, "system.posix_acl_access", nil); err == nil {
			t.Errorf("%s has an access list", f)
		}
	}
}

// A build that is cancelled stops unpacking, and nothing goes on behind it.
func TestCrewCancel(t *testing.T) {
	t.Parallel()
	needRoot(t)
	ms := []member{crewDir("x")}
	for i := range 2000 {
		ms = append(ms, crewFile(fmt.Sprint("x/", i), "content"))
	}
	b := tarOf(t, ms...)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	enough := errors.New("enough")
	dir := t.TempDir()
	r, err := layer.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	r.Adapt = func(e *tree.Entry) (*tree.Entry, error) {
		if e.Path == "x/500" {
			cancel(enough)
		}
		return e, nil
	}
	err = r.Apply(ctx, foreign(open(t), b, b), true)
	made, _ := filepath.Glob(dir + "/x/*")
	if !errors.Is(err, enough) || len(made) > 501 {
		t.Errorf("%d files, error %v", len(made), err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if later, _ := filepath.Glob(dir + "/x/*"); len(later) != len(made) {
		t.Errorf("%d files were made afterwards", len(later)-len(made))
	}
}

// More directories than are kept open: each file comes into its own, and no
// descriptor is left. It is not parallel: it counts the process's descriptors.
func TestCrewDirectories(t *testing.T) { //nolint:paralleltest // see above
	needRoot(t)
	var ms []member
	for i := range 3000 {
		dir := fmt.Sprint("d", i*7%151)
		if i < 151 {
			ms = append(ms, crewDir(dir))
		}
		ms = append(ms, crewFile(fmt.Sprintf("%s/f%d", dir, i), fmt.Sprintf("%s/f%d", dir, i)))
		if i%500 == 499 {
			ms = append(ms, crewFile(fmt.Sprint(".wh.none", i), "")) // flushes
		}
	}
	b := tarOf(t, ms...)
	if _, err := together(t, b); err != nil { // what opens only once is open
		t.Fatal(err)
	}
	before := descriptors(t)
	dir, err := together(t, b)
	if err != nil {
		t.Fatal(err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	for _, m := range ms {
		if m.Typeflag != tar.TypeReg || m.content == "" {
			continue
		}
		if got, err := os.ReadFile(filepath.Join(dir, m.Name)); err != nil || string(got) != m.content {
			t.Errorf("%s: %q, %v", m.Name, got, err)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// A file that is to be left alone is not read, and none that has changed.
func TestApplySkips(t *testing.T) {
	t.Parallel()
	needRoot(t)
	l := write(t, open(t), dir("d"), file("d/f", "x"), file("d/g", "y"))
	root := t.TempDir()
	r, err := layer.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	r.Skip = func(p string) bool { return p == "d/f" }
	if err := errors.Join(r.Apply(t.Context(), l, false), r.Close()); err != nil {
		t.Error(err)
	}
	if got := withoutDirTimes(disk(t, root)); strings.Contains(got, "/d/f") || !strings.Contains(got, "/d/g") {
		t.Errorf("got:\n%s", got)
	}
}
