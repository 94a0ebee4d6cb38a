// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"archive/tar"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"path"
	"slices"
	"time"
)

// baseVersion is part of the tag of the bases. It must change with what they
// hold, since those of an earlier run are kept.
const baseVersion = "1"

// shares are how the entries and the bytes of a base spread over its layers.
func shares() []float64 { return []float64{0.06, 0.04, 0.12, 0.50, 0.28} }

// A basePlan is a base image that has yet to be written: each layer's entries,
// without contents.
type basePlan struct {
	layers [][]baseEntry
}

// A baseEntry is one tar entry. A file's content follows from seed.
type baseEntry struct {
	name string
	kind byte // tar.Type…
	link string
	size int64
	mode int64
	seed uint64
	data []byte // instead of seed
}

// planBase lays out a root like that of a Debian with build tools: a share of
// 12 % symlinks, hard links, many small files and a few big ones, later layers
// that add to earlier directories and replace and delete some earlier files.
func planBase(entries int, bytes int64) basePlan {
	p := planner{rnd: rand.New(rand.NewPCG(3, 5)), dirs: tops(), known: map[string]bool{}}
	var plan basePlan
	for _, share := range shares() {
		plan.layers = append(plan.layers, p.layer(int(share*float64(entries)), int64(share*float64(bytes))))
	}
	return plan
}

func tops() []string {
	return []string{
		"etc", "usr/bin", "usr/include", "usr/lib/gcc", "usr/lib/python3", "usr/lib/x86_64-linux-gnu", "usr/share/doc",
		"usr/share/locale", "usr/share/man", "usr/share/perl", "usr/share/zoneinfo", "var/lib/dpkg/info",
	}
}

// A planner remembers what lower layers hold.
type planner struct {
	rnd   *rand.Rand
	dirs  []string
	files []string
	known map[string]bool
}

func (p *planner) layer(entries int, bytes int64) []baseEntry {
	set := map[string]baseEntry{}
	var here []string // files of this layer, in the order of making
	for len(set) < entries {
		dir := p.dirs[p.rnd.IntN(len(p.dirs))]
		parents(set, dir)
		switch n := p.rnd.IntN(1000); {
		case n < 75: // a directory
			if sub := path.Join(dir, p.name()); len(sub) < 90 {
				p.dirs = append(p.dirs, sub)
				parents(set, sub)
			}
		case n < 205 && len(here) > 0:
			name := path.Join(dir, p.name())
			set[name] = baseEntry{name: name, kind: tar.TypeSymlink, link: p.target(here), mode: 0o777}
		case n < 220 && len(here) > 0:
			name := path.Join(dir, p.name())
			set[name] = baseEntry{name: name, kind: tar.TypeLink, link: here[p.rnd.IntN(len(here))], mode: 0o644}
		case n < 226 && len(p.files) > 0: // replaced or deleted below
			p.change(set)
		default:
			name := path.Join(dir, p.name())
			set[name] = baseEntry{name: name, kind: tar.TypeReg, mode: 0o644, seed: p.rnd.Uint64()}
			here = append(here, name)
		}
	}
	p.files = append(p.files, here...)
	list := sorted(set)
	p.sizes(list, bytes)
	return list
}

func (p *planner) name() string {
	b := make([]byte, 4+p.rnd.IntN(18))
	for i := range b {
		b[i] = "etaoinshrdlucmfwypvbgkqjxz-0123456789"[min(p.rnd.IntN(37), p.rnd.IntN(37))]
	}
	return string(b) + []string{"", ".h", ".so", ".py", ".md", ".list"}[p.rnd.IntN(6)]
}

func (p *planner) target(here []string) string {
	t := here[p.rnd.IntN(len(here))]
	if p.rnd.IntN(2) == 0 {
		return path.Base(t)
	}
	return "/" + t
}

func (p *planner) change(set map[string]baseEntry) {
	i := p.rnd.IntN(len(p.files))
	name := p.files[i]
	p.files = slices.Delete(p.files, i, i+1)
	parents(set, path.Dir(name))
	if p.rnd.IntN(2) == 0 {
		wh := path.Join(path.Dir(name), ".wh."+path.Base(name))
		set[wh] = baseEntry{name: wh, kind: tar.TypeReg, mode: 0o644, data: []byte{}}
		return
	}
	set[name] = baseEntry{name: name, kind: tar.TypeReg, mode: 0o644, seed: p.rnd.Uint64()}
}

// parents puts the directories down to dir into the layer, as builders do.
func parents(set map[string]baseEntry, dir string) {
	for d := dir; d != "."; d = path.Dir(d) {
		set[d] = baseEntry{name: d, kind: tar.TypeDir, mode: 0o755}
	}
}

// sorted orders entries by name, hard links after all files.
func sorted(set map[string]baseEntry) []baseEntry {
	list := make([]baseEntry, 0, len(set))
	for _, e := range set {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b baseEntry) int {
		if x, y := a.kind == tar.TypeLink, b.kind == tar.TypeLink; x != y {
			if x {
				return 1
			}
			return -1
		}
		switch {
		case a.name < b.name:
			return -1
		case a.name > b.name:
			return 1
		}
		return 0
	})
	return list
}

// sizes spreads bytes over the files: the median is 2.5 KB and the mean 22 KB.
func (p *planner) sizes(list []baseEntry, bytes int64) {
	weights := make([]float64, len(list))
	var sum float64
	for i, e := range list {
		if e.kind == tar.TypeReg && e.data == nil {
			weights[i] = math.Exp(2.1 * p.rnd.NormFloat64())
			sum += weights[i]
		}
	}
	for i, w := range weights {
		list[i].size = int64(w / sum * float64(bytes))
	}
}

// write writes entries as a tar.
func (c *content) write(w io.Writer, entries []baseEntry) error {
	tw := tar.NewWriter(w)
	mtime := time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, ModTime: mtime}
		switch {
		case e.kind == tar.TypeDir:
			h.Name += "/"
		case e.data != nil:
			h.Size = int64(len(e.data))
		default:
			h.Size = e.size
		}
		if err := tw.WriteHeader(h); err != nil {
			return fmt.Errorf("write header of %q: %w", e.name, err)
		}
		if err := c.body(tw, e); err != nil {
			return fmt.Errorf("write %q: %w", e.name, err)
		}
	}
	return tw.Close()
}

func (c *content) body(w io.Writer, e baseEntry) error {
	if e.data != nil {
		_, err := w.Write(e.data)
		return err
	}
	rnd := rand.New(rand.NewPCG(e.seed, 1))
	for left := e.size; left > 0; {
		pool := c.kind(rnd)
		from := rnd.IntN(len(pool))
		// A big file is of several kinds, like a program with its tables.
		n := min(left, int64(len(pool)-from), 1<<20)
		if _, err := w.Write(pool[from : from+int(n)]); err != nil {
			return err
		}
		left -= n
	}
	return nil
}
