// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	// defaultLimit is for systems that do not tell what is free.
	defaultLimit = 20 << 30
	// A file that was begun so recently may not be locked yet.
	unlockedFor = time.Minute
	// Where locks do not work, age tells what is left of the dead.
	abandonedAfter = 24 * time.Hour
)

// A kept is a file that can be removed to make room.
type kept struct {
	name string
	size int64
	used time.Time
}

// list returns the files below dir.
func (d *Depot) list(dir string) (files []kept) {
	_ = fs.WalkDir(d.root.FS(), dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil //nolint:nilerr // what cannot be looked at takes no part
		}
		if fi, err := e.Info(); err == nil && fi.Mode().IsRegular() {
			files = append(files, kept{name: p, size: fi.Size(), used: fi.ModTime()})
		}
		return nil
	})
	return files
}

// limit is how much may lie here if used lies here now.
func (d *Depot) limit(used int64) int64 {
	if d.opt.Limit > 0 {
		return d.opt.Limit
	}
	f, err := d.root.Open(".")
	if err != nil {
		return defaultLimit
	}
	defer f.Close()
	free, total := space(f)
	if total == 0 {
		return defaultLimit
	}
	return used + free - total/10
}

// HasRoom makes room for a blob of the given size and tells whether there is any.
func (d *Depot) HasRoom(size int64) bool { return d.Writable() && d.makeRoom(size) }

// makeRoom removes what was not used for the longest time until size more bytes
// fit, and tells whether they do. What this build has used stays. What another
// one reads at the moment it can read to its end, or gets from the registry. Two
// processes that do this at once agree on what is the oldest.
func (d *Depot) makeRoom(size int64) bool {
	d.room.Lock()
	defer d.room.Unlock()
	files := append(d.list("blobs"), d.list("index")...)
	var total int64
	for _, dir := range []string{"sums", "tmp"} {
		for _, f := range d.list(dir) {
			total += f.size
		}
	}
	for _, f := range files {
		total += f.size
	}
	limit := d.limit(total)
	if total+size <= limit {
		return true
	}
	slices.SortFunc(files, func(a, b kept) int { return a.used.Compare(b.used) })
	var evict []kept
	for _, f := range files {
		d.mu.Lock()
		mine := d.used[f.name]
		d.mu.Unlock()
		if mine {
			continue
		}
		evict = append(evict, f)
		if total -= f.size; total+size <= limit {
			d.evict(evict)
			return true
		}
	}
	return false // removing all of it would be of no use
}

func (d *Depot) evict(files []kept) {
	for _, f := range files {
		_ = d.root.Remove(f.name)
		if rest, ok := strings.CutPrefix(f.name, "blobs/"); ok {
			_ = d.root.Remove(path.Join("sums", rest))
		}
	}
}

// sweep removes what killed processes have left: files that nobody has locked.
func (d *Depot) sweep() {
	dir, err := d.root.Open("tmp")
	if err != nil {
		return
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			continue
		}
		name := path.Join("tmp", e.Name())
		age := d.opt.Now().Sub(fi.ModTime())
		if age > unlockedFor && d.isAbandoned(name, e.IsDir(), age) {
			_ = d.root.RemoveAll(name)
		}
	}
}

func (d *Depot) isAbandoned(name string, isDir bool, age time.Duration) bool {
	if isDir {
		name = path.Join(name, "lock")
	}
	f, err := d.root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return age > abandonedAfter
	}
	defer f.Close()
	switch tryLock(f) {
	case locked:
		return true
	case lockedByOther:
		return false
	case noLocks:
	}
	return age > abandonedAfter
}

// What became of an attempt to lock a file.
type lockState int

const (
	locked lockState = iota
	lockedByOther
	noLocks // the file system has none
)
