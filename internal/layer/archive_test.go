// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"hako/internal/layer"
	"hako/internal/store"
	"hako/internal/tree"
	"hako/internal/tree/treetest"
)

func openArchive(tb testing.TB, data []byte, again layer.Source) (*layer.Archive, string, error) {
	tb.Helper()
	dir := treetest.MemoryDir(tb)
	st, err := store.Open(dir)
	if err != nil {
		tb.Fatal(err)
	}
	a, err := layer.NewArchive(tb.Context(), st, bytes.NewReader(data), again)
	if err == nil {
		tb.Cleanup(func() { _ = a.Close() })
	}
	return a, dir, err
}

func pack(tb testing.TB, data []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := open(&b)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

func packed(tb testing.TB, data []byte) map[string][]byte {
	tb.Helper()
	return map[string][]byte{
		"plain": data,
		"gzip":  pack(tb, data, func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }),
		"zstd":  pack(tb, data, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }),
		"xz":    pack(tb, data, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }),
	}
}

// contextTar has what can be in the archive of a build context. Files are large
// enough that reading one means to start in the middle.
func contextTar(tb testing.TB) ([]byte, string) {
	link := func(name, to string) member {
		return member{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, ""}
	}
	ms := []member{
		{dirHeader("./", 0o700, 0), ""},
		{fileHeader("./Dockerfile"), "FROM scratch"},
		{fileHeader("d/.wh.x"), "no whiteout"},
		{fileHeader("/abs"), "below the root"},
		{tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "./Dockerfile"}, ""},
		link("lib", "usr/lib"), {fileHeader("usr/lib/a"), "a"}, {fileHeader("lib/b"), "through a link"},
		link("out", "/etc/passwd"), link("up", "../../etc/passwd"),
		{tar.Header{Typeflag: tar.TypeFifo, Name: "pipe"}, ""},
		{tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}, ""},
		{fileHeader("twice"), "one"}, {fileHeader("twice"), "two"},
		{tar.Header{Typeflag: tar.TypeReg, Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, "no attributes"},
	}
	want := `
/Dockerfile file 0644 t=1000 c=FROM scratch
/abs file 0644 t=1000 c=below the root
/d dir 0755
/d/.wh.x file 0644 t=1000 c=no whiteout
/hard hard /Dockerfile
/lib link usr/lib t=1000
/null char 0644 1,3 t=1000
/out link /etc/passwd t=1000
/pipe fifo 0644 t=1000
/twice file 0644 t=1000 c=two
/up link ../../etc/passwd t=1000
/usr dir 0755
/usr/lib dir 0755
/usr/lib/a file 0644 t=1000 c=a
/usr/lib/b file 0644 t=1000 c=through a link
/x file 0644 t=1000 c=no attributes
`
	for i := range ms {
		if ms[i].Mode == 0 {
			ms[i].Mode = 0o644
		}
	}
	return tarOf(tb, ms...), want
}

func TestArchive(t *testing.T) {
	t.Parallel()
	data, want := contextTar(t)
	for name, b := range packed(t, data) {
		for _, again := range []layer.Source{nil, blob(b)} {
			a, _, err := openArchive(t, b, again)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := "\n" + treetest.List(t, a, ""); got != want {
				t.Errorf("%s: %s", name, cmp.Diff(want, got))
			}
		}
	}
}

// bzip2 of a tar with the one file "a", since Go cannot write the format.
const bzip2Tar = "QlpoOTFBWSZTWdwwCPIAAHH7hMkAAEJAAHeAAADwIN4QAACACCAAVDSE0xMRp6hpnqCSEQGgBoFftr4hCDGYCRKluTQSKMkgcGHq" +
	"762TSXb0DYXkvUoMcsdgtibDAx9G5eDk7oiAaF3JFOFCQ3DAI8g="

func TestArchiveBzip2(t *testing.T) {
	t.Parallel()
	b, err := base64.StdEncoding.DecodeString(bzip2Tar)
	if err != nil {
		t.Fatal(err)
	}
	a, _, err := openArchive(t, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := treetest.List(t, a, ""), "/a file 0644 t=1000 c=bzip2\n"; got != want {
		t.Errorf("got %s want %s", got, want)
	}
	if _, _, err := openArchive(t, b[:len(b)-8], nil); !errors.Is(err, layer.ErrCutOff) {
		t.Errorf("cut off: %v", err)
	}
}

// The tree can be read in any order, and from where the archive lies.
func TestArchiveLarge(t *testing.T) {
	t.Parallel()
	var ms []member
	var bodies []string
	for i := range 12 {
		bodies = append(bodies, strings.Repeat(fmt.Sprintf("%d, and so on.\n", i*i), 90_000))
		ms = append(ms, member{fileHeader(fmt.Sprint("f", i)), bodies[i]})
	}
	for name, b := range packed(t, tarOf(t, ms...)) {
		a, dir, err := openArchive(t, b, blob(b))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, i := range []int{11, 0, 7, 3, 8} {
			rc, err := a.Open(fmt.Sprint("f", i))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, err := io.ReadAll(rc)
			if rc.Close(); err != nil || string(got) != bodies[i] {
				t.Errorf("%s: f%d has %d bytes, %v", name, i, len(got), err)
			}
		}
		if size := diskUse(t, dir); name == "plain" && size > 1<<20 {
			t.Errorf("%s: it can be read where it lies, but takes %d bytes", name, size)
		}
	}
}

func diskUse(t *testing.T, dir string) (n int64) {
	err := filepath.Walk(dir, func(_ string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			n += fi.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestArchiveBad(t *testing.T) {
	t.Parallel()
	f := func(name string) member { return member{fileHeader(name), "bad"} }
	hard := func(name, to string) member {
		return member{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}, ""}
	}
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"empty":          {nil, "no tar archive"},
		"text":           {bytes.Repeat([]byte("FROM scratch\n"), 100), "no tar archive"},
		"gzip of text":   {packed(t, bytes.Repeat([]byte("text\n"), 500))["gzip"], "no tar archive"},
		"climbs":         {tarOf(t, f("a"), f("../b")), `entry "../b" leaves`},
		"climbs later":   {tarOf(t, f("a/../../b")), "leaves"},
		"hard link out":  {tarOf(t, hard("a", "../../etc/shadow")), "leaves"},
		"hard link to /": {tarOf(t, hard("a", "/etc/shadow")), `hard link "a" to "etc/shadow", which the archive does not have`},
		"hard link late": {tarOf(t, hard("a", "b"), f("b")), `hard link "a" to "b"`},
		"link to a dir":  {tarOf(t, member{dirHeader("d", 0o755, 0), ""}, hard("a", "d")), `hard link "a" to the directory "d"`},
	} {
		a, _, err := openArchive(t, tt.data, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v; want %q", name, a, err, tt.want)
		}
	}
}

func TestArchiveCutOff(t *testing.T) {
	t.Parallel()
	var ms []member
	for i := range 40 {
		ms = append(ms, member{fileHeader(fmt.Sprint("f", i)), strings.Repeat(fmt.Sprint(i*i*i), 50*i)})
	}
	for name, b := range packed(t, tarOf(t, ms...)) {
		cuts := []int{len(b) / 3, len(b) / 2, len(b) - 2}
		if name == "plain" {
			cuts = []int{len(b) / 3, len(b) - 1024, 2048} // at the end of a file, too
		}
		for _, n := range cuts {
			if _, _, err := openArchive(t, b[:n], nil); !errors.Is(err, layer.ErrCutOff) {
				t.Errorf("%s: %d of %d bytes: %v", name, n, len(b), err)
			}
		}
		wrong := bytes.Clone(b)
		wrong[len(wrong)/2] ^= 0x55
		if _, _, err := openArchive(t, wrong, nil); err == nil && name != "plain" {
			t.Errorf("%s: a wrong byte is not seen", name)
		}
	}
}

// What would fill memory is refused before it does.
func TestArchiveBombs(t *testing.T) {
	t.Parallel()
	huge := packed(t, make([]byte, 4096))["xz"]
	header := huge[12 : 12+(int(huge[12])+1)*4] // of the first block, which says how large its dictionary is
	header[4] = 36                              // 1 GiB
	binary.LittleEndian.PutUint32(header[len(header)-4:], crc32.ChecksumIEEE(header[:len(header)-4]))
	if _, _, err := openArchive(t, huge, nil); !errors.Is(err, layer.ErrWindow) {
		t.Errorf("xz with a large dictionary: %v", err)
	}
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0x98, 1, 0, 0} // window descriptor 0x98: 512 MiB
	if _, _, err := openArchive(t, frame, nil); !errors.Is(err, layer.ErrWindow) {
		t.Errorf("zstd with a large window: %v", err)
	}
	one := tarOf(t, member{tar.Header{Typeflag: tar.TypeSymlink, Name: strings.Repeat("x", 60_000), Linkname: "x"}, ""})
	one = one[:len(one)-1024] // without the end
	st, err := store.Open(treetest.MemoryDir(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = layer.NewArchive(t.Context(), st, &repeat{b: one}, blob(nil))
	if !errors.Is(err, layer.ErrTooManyFiles) {
		t.Errorf("names without end: %v", err)
	}
}

// A repeat is the same bytes again and again.
type repeat struct {
	b  []byte
	at int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.b[r.at:])
	r.at = (r.at + n) % len(r.b)
	return n, nil
}

// FuzzArchive opens what others made, and follows every link in it.
func FuzzArchive(f *testing.F) {
	data, _ := contextTar(f)
	for _, b := range packed(f, data) {
		f.Add(b)
	}
	for _, name := range []string{"../a", "a/../../b", "/a", "a/../..", "./../a", ".", ".."} {
		f.Add(tarOf(f, member{fileHeader(name), "bad"}))
		f.Add(tarOf(f, member{tar.Header{Typeflag: tar.TypeLink, Name: "a", Linkname: name}, ""}))
		f.Add(tarOf(f, member{tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: name}, ""}, member{fileHeader("a/b"), "bad"}))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		a, _, err := openArchive(t, data, nil)
		if err != nil {
			return
		}
		_ = tree.Walk(t.Context(), a, "", func(e tree.Entry) error {
			if e.Path != tree.Clean(e.Path) || strings.HasPrefix(e.Path, "..") && strings.HasPrefix(e.Path+"/", "../") {
				t.Errorf("a path %q", e.Path)
			}
			to, err := tree.Resolve(a, e.Path, true)
			if err == nil && to != tree.Clean(to) {
				t.Errorf("%s leads to %q", e.Path, to)
			}
			if rc, err := a.Open(e.Path); err == nil {
				_, _ = rc.Read(make([]byte, 100))
				rc.Close()
			}
			return nil
		})
	})
}
