// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer_test

import (
	"archive/tar"
	"fmt"
	"strings"
	"testing"

	"hako/internal/layer"
	"hako/internal/tree"
)

const benchEntries = 100_000

// benchTar returns a tar like that of a distribution: many small files of text,
// some directories and links.
func benchTar(b *testing.B) (plain, packed []byte) {
	b.Helper()
	text := strings.Repeat("The quick brown fox jumps over the lazy dog, line after line.\n", 1000)
	ms := make([]member, 0, benchEntries)
	for i := range benchEntries {
		d := fmt.Sprintf("usr/share/pkg%d", i/50)
		switch {
		case i%50 == 0:
			ms = append(ms, member{dirHeader(d, 0o755, 0), ""})
		case i%8 == 1:
			ms = append(ms, member{tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprintf("%s/link%d", d, i), Linkname: "file1"}, ""})
		default:
			ms = append(ms, member{fileHeader(fmt.Sprintf("%s/file%d", d, i)), text[i%100 : i%100+(i*37)%9000]})
		}
	}
	plain = tarOf(b, ms...)
	return plain, gzipped(b, 6, plain)
}

// BenchmarkScan builds the index of a foreign layer; BenchmarkUnpack makes its
// files as well.
func BenchmarkScan(b *testing.B) {
	plain, packed := benchTar(b)
	for name, blob := range map[string][]byte{"plain": plain, "gzip": packed} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				l := foreign(open(b), plain, blob)
				if _, err := (&layer.Ref{Layers: []*layer.Layer{l}}).Tree(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(benchEntries*b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

func BenchmarkUnpack(b *testing.B) {
	needRoot(b)
	plain, packed := benchTar(b)
	b.SetBytes(int64(len(plain)))
	b.ReportAllocs()
	for b.Loop() {
		dir, err := unpacked(b, foreign(open(b), plain, packed))
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := layer.RemoveAll(dir + "/usr"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(benchEntries*b.N)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkWalk looks at every name of a stack of ten layers.
func BenchmarkWalk(b *testing.B) {
	plain, packed := benchTar(b)
	st := open(b)
	layers := []*layer.Layer{foreign(st, plain, packed)}
	for i := range 9 {
		one := tarOf(b, member{fileHeader(fmt.Sprintf("usr/share/pkg%d/more", i)), "x"})
		layers = append(layers, foreign(st, one, one))
	}
	fsys, err := (&layer.Ref{Layers: layers}).Tree(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		walkNames(b, fsys, "")
	}
	b.ReportMetric(float64(benchEntries*b.N)/b.Elapsed().Seconds(), "entries/s")
}

func walkNames(b *testing.B, fsys tree.FS, dir string) {
	list, err := fsys.ReadDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	for i := range list {
		if list[i].Mode.IsDir() {
			walkNames(b, fsys, list[i].Path)
		}
	}
}
