// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// An Overlay is a tree with pending changes on top of another tree, which it
// never modifies. It is an [FS] at any moment between two changes, so one change
// can resolve paths through what an earlier one made. [Overlay.Changes] gives
// the difference to the base.
//
// Paths handed to methods are resolved ones: a component that is a symbolic
// link is not followed, and the parent of a new name must be a directory.
//
// An Overlay is safe for concurrent use, but Changes must not run at the same
// time as a mutation.
type Overlay struct {
	mu   sync.RWMutex
	base FS // nil: nothing
	root *item
	dev  uint64 // NodeID.Dev of files that were linked here
	ids  uint64 // last NodeID.Ino given
}

// An item is a name that has something pending: its own metadata or, if it is
// a directory, names below.
type item struct {
	// file is what the name is now; nil for a name that is gone (deleted) and
	// for a directory of the base that is as it was.
	file    *inode
	kids    map[string]*item
	deleted bool
	// opaque: nothing that the base has below this directory shows through.
	opaque bool
}

// An inode is a file behind one or more items. It is kept small, as copying a
// big directory makes a hundred thousand of them.
type inode struct {
	mode     Mode
	uid, gid uint32
	nsec     int32
	sec      int64
	size     int64  // for devices major<<32 | minor
	text     string // target of a symbolic link, digest of a regular file
	xattrs   map[string]string
	open     Opener
	id       uint64 // NodeID.Ino once it had a second name
	links    int32  // names in the overlay
}

// NewOverlay returns an overlay without changes. Without a base (nil) it is an
// empty tree whose root is a directory 0755 0:0.
func NewOverlay(base FS) *Overlay {
	o := &Overlay{base: base, dev: math.MaxUint64, root: &item{}}
	if b, ok := base.(*Overlay); ok {
		o.dev = b.dev - 1
	}
	if base == nil {
		o.root = &item{file: &inode{mode: ModeDir | 0o755, links: 1}, opaque: true}
	}
	return o
}

// Base returns the tree that the changes are against; nil is an empty one.
func (o *Overlay) Base() FS { return o.base }

// Clone returns an overlay with the same base and the same changes, which then
// go their own ways.
func (o *Overlay) Clone() *Overlay {
	o.mu.RLock()
	defer o.mu.RUnlock()
	seen := map[*inode]*inode{}
	var clone func(it *item) *item
	clone = func(it *item) *item {
		c := &item{deleted: it.deleted, opaque: it.opaque}
		if it.file != nil {
			f := seen[it.file]
			if f == nil {
				v := *it.file
				v.xattrs = maps.Clone(v.xattrs)
				f = &v
				if v.links > 1 {
					seen[it.file] = f
				}
			}
			c.file = f
		}
		if it.kids != nil {
			c.kids = make(map[string]*item, len(it.kids))
			for name, k := range it.kids {
				c.kids[name] = clone(k)
			}
		}
		return c
	}
	return &Overlay{base: o.base, dev: o.dev, ids: o.ids, root: clone(o.root)}
}

// isDir reports whether it, which is not deleted, is a directory.
func (it *item) isDir() bool { return it.file == nil || it.file.mode.IsDir() }

// find walks to p. It returns the item, if there is one, and whether the base
// shows at p where there is none.
func (o *Overlay) find(p string) (it *item, base bool) {
	it, base = o.root, o.base != nil
	for p != "" {
		if it.deleted || !it.isDir() {
			return nil, false
		}
		base = base && !it.opaque
		name, rest, _ := strings.Cut(p, "/")
		if it = it.kids[name]; it == nil {
			return nil, base
		}
		p = rest
	}
	return it, base
}

// Lstat implements [FS].
func (o *Overlay) Lstat(p string) (Entry, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.lstat(p)
}

func (o *Overlay) lstat(p string) (Entry, error) {
	it, base := o.find(p)
	switch {
	case it != nil && it.deleted:
	case it != nil && it.file != nil:
		return o.entry(p, it.file), nil
	case base:
		return o.base.Lstat(p)
	}
	return Entry{}, NotExist("lstat", p)
}

// entry describes f under the name p.
func (o *Overlay) entry(p string, f *inode) Entry {
	e := Entry{
		Path: p, Mode: f.mode, UID: f.uid, GID: f.gid,
		ModTime: time.Unix(f.sec, int64(f.nsec)).UTC(), Xattrs: f.xattrs,
	}
	switch {
	case f.mode.IsRegular():
		e.Size, e.Digest = f.size, digest.Digest(f.text)
	case f.mode.IsSymlink():
		e.Link = f.text
	case f.mode.IsDevice():
		e.Major, e.Minor = uint32(f.size>>32), uint32(f.size)
	}
	if f.links > 1 {
		e.Node = NodeID{Dev: o.dev, Ino: f.id}
	}
	return e
}

// newInode is the inverse of entry.
func newInode(e Entry, open Opener) *inode {
	f := &inode{
		mode: e.Mode, uid: e.UID, gid: e.GID, xattrs: e.Xattrs,
		sec: e.ModTime.Unix(), nsec: int32(e.ModTime.Nanosecond()), links: 1,
	}
	if e.ModTime.IsZero() {
		f.sec, f.nsec = 0, 0
	}
	switch {
	case e.Mode.IsRegular():
		f.size, f.text, f.open = e.Size, string(e.Digest), open
	case e.Mode.IsSymlink():
		f.text = e.Link
	case e.Mode.IsDevice():
		f.size = int64(e.Major)<<32 | int64(e.Minor)
	}
	return f
}

// ReadDir implements [FS].
func (o *Overlay) ReadDir(p string) ([]Entry, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	it, base := o.find(p)
	if it == nil {
		if base {
			return o.base.ReadDir(p)
		}
		return nil, NotExist("readdir", p)
	}
	if it.deleted {
		return nil, NotExist("readdir", p)
	}
	if !it.isDir() {
		return nil, &fs.PathError{Op: "readdir", Path: "/" + p, Err: syscall.ENOTDIR}
	}
	var out []Entry
	if base && !it.opaque {
		es, err := o.base.ReadDir(p)
		if err != nil {
			return nil, err
		}
		for _, e := range es {
			if it.kids[e.Name()] == nil {
				out = append(out, e)
			}
		}
	}
	for name, k := range it.kids {
		if k.deleted {
			continue
		}
		e, err := o.lstat(Join(p, name))
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Name(), b.Name()) })
	return out, nil
}

// Open implements [FS].
func (o *Overlay) Open(p string) (io.ReadCloser, error) {
	open, err := o.Opener(p)
	if err != nil {
		return nil, err
	}
	return open()
}

// Opener returns an opener of what the regular file at p holds now, whatever
// becomes of the name. The opener's readers fail if there is less or more to
// read than the file's size.
func (o *Overlay) Opener(p string) (Opener, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	it, base := o.find(p)
	switch {
	case it == nil && base:
		return OpenerOf(o.base, p)
	case it == nil || it.deleted:
		return nil, NotExist("open", p)
	case it.file == nil || !it.file.mode.IsRegular():
		return nil, &fs.PathError{Op: "open", Path: "/" + p, Err: errors.New("not a regular file")}
	}
	return CheckSize(it.file.open, p, it.file.size), nil
}

// Mkdir makes the directory e. A directory that is there keeps its contents and
// takes e's metadata; anything else of that name goes.
func (o *Overlay) Mkdir(e Entry) error {
	if !e.Mode.IsDir() {
		return fmt.Errorf("make directory %q: mode %o is not a directory's", e.Path, e.Mode)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if old, err := o.lstat(e.Path); err == nil && old.Mode.IsDir() {
		it, err := o.touch(e.Path)
		if err != nil {
			return err
		}
		it.file = newInode(e, nil)
		return nil
	}
	return o.put(e.Path, &item{file: newInode(e, nil), opaque: true})
}

// Put makes the regular file e with the content that open gives; open may be
// nil if the size is 0. It replaces what has the name.
func (o *Overlay) Put(e Entry, open Opener) error {
	if !e.Mode.IsRegular() {
		return fmt.Errorf("put file %q: mode %o is not a regular file's", e.Path, e.Mode)
	}
	if open == nil && e.Size > 0 {
		return fmt.Errorf("put file %q: no content", e.Path)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.put(e.Path, &item{file: newInode(e, open)})
}

// Special makes a symbolic link, device, FIFO or socket. It replaces what has
// the name.
func (o *Overlay) Special(e Entry) error {
	if e.Mode.IsDir() || e.Mode.IsRegular() {
		return fmt.Errorf("make special file %q: mode %o", e.Path, e.Mode)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.put(e.Path, &item{file: newInode(e, nil)})
}

// put sets the item of p, whose parent is a directory.
func (o *Overlay) put(p string, it *item) error {
	if p == "" {
		return errors.New("replace the root of a tree")
	}
	dir, err := o.touchDir(Parent(p))
	if err != nil {
		return err
	}
	if dir.kids == nil {
		dir.kids = map[string]*item{}
	}
	name := Base(p)
	if old := dir.kids[name]; old != nil {
		old.unlink()
	}
	dir.kids[name] = it
	return nil
}

// unlink takes it and all below it out of the link counts.
func (it *item) unlink() {
	if it.file != nil {
		it.file.links--
	}
	for _, k := range it.kids {
		k.unlink()
	}
}

// touchDir returns the item of the directory p, made if there was none.
func (o *Overlay) touchDir(p string) (*item, error) {
	it, base := o.root, o.base != nil
	for done, rest := "", p; rest != ""; {
		base = base && !it.opaque
		name, more, _ := strings.Cut(rest, "/")
		done, rest = Join(done, name), more
		k := it.kids[name]
		if k == nil {
			if !base {
				return nil, NotExist("open", done)
			}
			e, err := o.base.Lstat(done)
			if err != nil {
				return nil, err
			}
			if !e.Mode.IsDir() {
				return nil, &fs.PathError{Op: "open", Path: "/" + done, Err: syscall.ENOTDIR}
			}
			k = &item{}
			if it.kids == nil {
				it.kids = map[string]*item{}
			}
			it.kids[name] = k
		}
		if k.deleted {
			return nil, NotExist("open", done)
		}
		if !k.isDir() {
			return nil, &fs.PathError{Op: "open", Path: "/" + done, Err: syscall.ENOTDIR}
		}
		it = k
	}
	return it, nil
}

// touch returns the item of the existing name p with a file of its own: what
// only the base has is taken over, which cuts hard links of the base.
func (o *Overlay) touch(p string) (*item, error) {
	e, err := o.lstat(p)
	if err != nil {
		return nil, err
	}
	if e.Mode.IsDir() {
		it, err := o.touchDir(p)
		if err == nil && it.file == nil {
			it.file = newInode(e, nil)
		}
		return it, err
	}
	if it, _ := o.find(p); it != nil {
		return it, nil
	}
	var open Opener
	if e.Mode.IsRegular() && e.Size > 0 {
		if open, err = OpenerOf(o.base, p); err != nil {
			return nil, err
		}
	}
	it := &item{file: newInode(e, open)}
	return it, o.put(p, it)
}

// Link makes newpath one more name of the file at oldpath, which is not a
// directory. It replaces what has the name.
func (o *Overlay) Link(newpath, oldpath string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if newpath == oldpath {
		return &fs.PathError{Op: "link", Path: "/" + newpath, Err: fs.ErrExist}
	}
	e, err := o.lstat(oldpath)
	if err != nil {
		return err
	}
	if e.Mode.IsDir() {
		return &fs.PathError{Op: "link", Path: "/" + oldpath, Err: fs.ErrPermission}
	}
	it, err := o.touch(oldpath)
	if err != nil {
		return err
	}
	if err := o.put(newpath, &item{file: it.file}); err != nil {
		return err
	}
	if it.file.links++; it.file.id == 0 {
		o.ids++
		it.file.id = o.ids
	}
	return nil
}

// SetAttr changes mode bits, owner, time and xattrs of the name p (and of its
// hard links made here) as fn does with its entry. The type stays. Of a
// regular file, content is replaced with [Overlay.SetContent].
func (o *Overlay) SetAttr(p string, fn func(e *Entry)) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	it, err := o.touch(p)
	if err != nil {
		return err
	}
	e := o.entry(p, it.file)
	e.Xattrs = maps.Clone(e.Xattrs)
	fn(&e)
	f := it.file
	f.mode, f.uid, f.gid = f.mode.Type()|e.Mode.Perm(), e.UID, e.GID
	f.sec, f.nsec, f.xattrs = e.ModTime.Unix(), int32(e.ModTime.Nanosecond()), e.Xattrs
	if len(f.xattrs) == 0 {
		f.xattrs = nil
	}
	return nil
}

// SetContent replaces what the regular file at p holds, under all its names
// made here, as writing to it would.
func (o *Overlay) SetContent(p string, size int64, open Opener) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	it, err := o.touch(p)
	if err != nil {
		return err
	}
	if !it.file.mode.IsRegular() {
		return &fs.PathError{Op: "write", Path: "/" + p, Err: errors.New("not a regular file")}
	}
	it.file.size, it.file.open, it.file.text = size, open, ""
	return nil
}

// Remove removes the name p and all below it. That it is not there is no error.
func (o *Overlay) Remove(p string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if p == "" {
		return errors.New("remove the root of a tree")
	}
	if _, err := o.lstat(p); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	dir, err := o.touchDir(Parent(p))
	if err != nil {
		return err
	}
	name := path.Base(p)
	if old := dir.kids[name]; old != nil {
		old.unlink()
	}
	// Below an opaque directory nothing shows, so nothing has to be hidden.
	if _, base := o.find(p); !base {
		delete(dir.kids, name)
		return nil
	}
	if dir.kids == nil {
		dir.kids = map[string]*item{}
	}
	dir.kids[name] = &item{deleted: true}
	return nil
}
