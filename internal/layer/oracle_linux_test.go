// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/google/go-cmp/cmp"

	"hako/internal/layer"
	"hako/internal/tree"
	"hako/internal/tree/treetest"
)

// needRoot skips what sets owners and makes devices.
func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("needs root")
	}
}

// disk describes the directory at p as treetest does.
func disk(tb testing.TB, p string) string {
	tb.Helper()
	d, err := tree.OpenDir(p)
	if err != nil {
		tb.Fatal(err)
	}
	defer d.Close()
	return treetest.List(tb, d.WithXattrs(), "")
}

// unpacked applies layers to a new directory.
func unpacked(tb testing.TB, layers ...*layer.Layer) (string, error) {
	tb.Helper()
	dir := tb.TempDir()
	r, err := layer.OpenRoot(dir)
	if err != nil {
		tb.Fatal(err)
	}
	for _, l := range layers {
		if err = r.Apply(tb.Context(), l, true); err != nil {
			break
		}
	}
	return dir, errors.Join(err, r.Close())
}

// containerd does the same with containerd's code.
func containerd(tb testing.TB, tars ...[]byte) (string, error) {
	tb.Helper()
	dir := tb.TempDir()
	for _, b := range tars {
		if _, err := archive.Apply(tb.Context(), dir, bytes.NewReader(b)); err != nil {
			return dir, err
		}
	}
	return dir, nil
}

// withoutDirTimes removes what implied directories have by chance.
func withoutDirTimes(list string) string {
	return regexp.MustCompile(`(?m)^(\S+ dir .*?) t=\d+`).ReplaceAllString(list, "$1")
}

// A layerMaker makes random layers that every runtime should read alike: what
// depends on the order of a tar's entries in ways that the spec leaves open is not
// in them.
type layerMaker struct {
	r     *rand.Rand
	below []string // names of lower layers, some gone
	files map[string]tar.Header
	dirs  map[string]bool
	// through allows entries below links of their own layer.
	through bool
}

func (m *layerMaker) path(depth int) string {
	var c []string
	for range 1 + m.r.IntN(depth) {
		c = append(c, string("abcd"[m.r.IntN(4)]))
	}
	return strings.Join(c, "/")
}

// layer returns a tar with about n entries.
func (m *layerMaker) layer(n int) []member {
	var out []member
	kinds := map[string]byte{} // of this layer's names
	add := func(h tar.Header, content string) {
		kinds[strings.TrimSuffix(h.Name, "/")] = h.Typeflag
		if h.Typeflag != tar.TypeLink {
			h.ModTime = time.Unix(int64(m.r.IntN(1e9)), 0)
		}
		if m.files[h.Name] = h; h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeLink {
			delete(m.files, h.Name)
		}
		out = append(out, member{h, content})
	}
	var gone []string
	for range m.r.IntN(3) {
		if len(m.below) > 0 {
			gone = append(gone, m.below[m.r.IntN(len(m.below))])
		}
	}
	slices.Sort(gone)
	for _, p := range slices.Compact(gone) {
		if slices.ContainsFunc(gone, func(q string) bool { return p != q && tree.Within(p, q) }) {
			continue
		}
		name := path.Join(path.Dir(p), ".wh."+path.Base(p))
		if m.dirs[p] && m.r.IntN(2) == 0 {
			name = path.Join(p, ".wh..wh..opq")
			kinds[p] = 'o'
		}
		out = append(out, member{tar.Header{Name: name}, ""})
	}
	for range n {
		p := m.path(3)
		if !m.free(kinds, p) {
			continue
		}
		m.entry(kinds, p, add)
	}
	for p, k := range kinds {
		m.below = append(m.below, p)
		m.dirs[p] = k == tar.TypeDir
	}
	slices.Sort(m.below)
	return out
}

// free tells whether p can be made without being in the way of this layer's.
func (m *layerMaker) free(kinds map[string]byte, p string) bool {
	for q, k := range kinds {
		passable := k == tar.TypeDir || k == 'o' || k == tar.TypeSymlink && m.through
		if q == p || !passable && tree.Within(p, q) || tree.Within(q, p) {
			return false
		}
	}
	return true
}

func (m *layerMaker) entry(kinds map[string]byte, p string, add func(tar.Header, string)) {
	h := tar.Header{Name: p, Uid: m.r.IntN(3) * 1000, Gid: m.r.IntN(2) * 7, Mode: int64(m.r.IntN(0o10000))}
	switch m.r.IntN(12) {
	case 0, 1, 2:
		// No setgid: what implied directories below inherit is another matter.
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, p+"/", h.Mode&^0o2000
		add(h, "")
	case 3, 4:
		h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
		h.Linkname = []string{m.path(2), "/" + m.path(2), "../" + m.path(1), "."}[m.r.IntN(4)]
		add(h, "")
	case 5, 6:
		var files []string
		for q, k := range kinds {
			if k == tar.TypeReg || k == tar.TypeLink {
				files = append(files, q)
			}
		}
		if m.r.IntN(2) == 0 {
			files = append(files, m.below...)
		}
		files = slices.DeleteFunc(files, func(q string) bool { return m.files[q].Name == "" })
		if len(files) > 0 {
			slices.Sort(files)
			// The header of a link repeats what its file is.
			to := files[m.r.IntN(len(files))]
			h, h.Name = m.files[to], p
			h.Typeflag, h.Linkname = tar.TypeLink, to
			add(h, "")
		}
	case 7:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, int64(m.r.IntN(9))
		add(h, "")
	case 8:
		h.Typeflag = tar.TypeFifo
		add(h, "")
	default:
		h.Typeflag = tar.TypeReg
		if m.r.IntN(4) == 0 {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
		}
		add(h, fmt.Sprint("content ", m.r.IntN(1000)))
	}
}

// Random stacks of layers look the same as a tree view, unpacked here, and
// unpacked by containerd.
func TestStacksAgainstContainerd(t *testing.T) {
	t.Parallel()
	needRoot(t)
	seeds, refused := 300, 0
	if testing.Short() {
		seeds = 60
	}
	for seed := range seeds {
		m := &layerMaker{files: map[string]tar.Header{}, dirs: map[string]bool{}, r: rand.New(rand.NewPCG(uint64(seed), 1)), through: seed%4 == 0}
		st := open(t)
		var tars [][]byte
		var layers []*layer.Layer
		var text strings.Builder
		for range 1 + m.r.IntN(4) {
			ms := m.layer(2 + m.r.IntN(8))
			fmt.Fprintln(&text, "layer")
			for _, e := range ms {
				fmt.Fprintf(&text, "  %c %s %s\n", e.Typeflag, e.Name, e.Linkname)
			}
			b := tarOf(t, ms...)
			tars, layers = append(tars, b), append(layers, foreign(st, b, b))
		}
		want, err := containerd(t, tars...)
		if err != nil {
			refused++
			continue
		}
		got, err := unpacked(t, layers...)
		if err != nil {
			t.Errorf("seed %d: %v\n%s", seed, err, &text)
			continue
		}
		wantList := withoutDirTimes(disk(t, want))
		if d := cmp.Diff(wantList, withoutDirTimes(disk(t, got))); d != "" {
			t.Errorf("seed %d: unpacked (-containerd +hako):\n%s\n%s", seed, d, &text)
			continue
		}
		view, err := (&layer.Ref{Layers: layers}).Tree(t.Context())
		if err != nil {
			t.Errorf("seed %d: %v\n%s", seed, err, &text)
			continue
		}
		if d := cmp.Diff(wantList, withoutDirTimes(treetest.List(t, view, ""))); d != "" {
			t.Errorf("seed %d: view (-containerd +hako):\n%s\n%s", seed, d, &text)
		}
	}
	if refused > seeds/2 {
		t.Errorf("containerd refused %d of %d stacks: the test says little", refused, seeds)
	}
}
