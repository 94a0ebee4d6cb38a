// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Depot is a directory of base images that many builds share: blobs by digest,
// and indexes of layers by diffID. Below "hako" in it are
//
//	blobs/<algorithm>/<hex>           blobs: manifests, configs, layers
//	sums/<algorithm>/<hex>            what each piece of the blob has to be
//	index/<format>/<algorithm>/<hex>  packed indexes of layers, by diffID
//	tmp/                              files being written, locked by who writes them
//
// and beside it may lie what kaniko's warmer has written, which is only read.
//
// Nothing of it is trusted: a blob is compared piece by piece while it is read,
// and what is broken is deleted. Nothing of it is needed either: whatever does
// not work, the caller goes to the registry. It is used through handles that are
// opened at the start, since while a command runs in place paths lead elsewhere.
//
// A Depot is safe for concurrent use, also by several processes.
type Depot struct {
	opt  DepotOptions
	dir  string
	top  *os.Root
	root *os.Root // of "hako"; nil if there is none

	warn     sync.Once
	foreign  func() *foreign
	room     sync.Mutex // held while looking for room
	mu       sync.Mutex
	readOnly bool
	used     map[string]bool // files that this build has had to do with: they stay
	renewed  map[digest.Digest]bool
}

// DepotDir is the name of the one directory that a Depot writes to.
const DepotDir = "hako"

// DepotOptions say what may be done with a Depot.
type DepotOptions struct {
	// Create makes the directory if it is missing.
	Create bool
	// ReadOnly writes nothing. A directory that cannot be written to is used so too.
	ReadOnly bool
	// Limit is how many bytes may lie there; 0 leaves a tenth of the file system free.
	Limit int64
	// Warn is told, once, what keeps files from being written.
	Warn func(err error)
	// Now is the time; nil is time.Now.
	Now func() time.Time
}

// OpenDepot opens the directory. One that is missing is an error that satisfies
// fs.ErrNotExist.
func OpenDepot(dir string, opt DepotOptions) (*Depot, error) {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Create {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return nil, err
		}
	}
	top, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	d := &Depot{opt: opt, dir: dir, top: top, readOnly: opt.ReadOnly, used: map[string]bool{}, renewed: map[digest.Digest]bool{}}
	d.foreign = sync.OnceValue(func() *foreign { return findForeign(top) })
	if !d.readOnly {
		err := top.MkdirAll(path.Join(DepotDir, "tmp"), 0o777)
		d.failed(err)
	}
	if d.root, err = top.OpenRoot(DepotDir); err != nil {
		d.root = nil // only what others have written can be used
		d.mu.Lock()
		d.readOnly = true
		d.mu.Unlock()
	}
	if d.Writable() {
		d.probe()
	}
	return d, nil
}

// probe finds out whether files can be written, and removes what killed
// processes have left of theirs.
func (d *Depot) probe() {
	f, name, err := d.create()
	d.failed(err)
	if err != nil {
		return
	}
	_ = f.Close()
	_ = d.root.Remove(name)
	d.sweep()
}

// Close ends the use of the directory.
func (d *Depot) Close() error {
	err := d.top.Close()
	if d.root != nil {
		err = errors.Join(err, d.root.Close())
	}
	return err
}

// Dir returns the directory's path.
func (d *Depot) Dir() string { return d.dir }

// Writable tells whether files can be written.
func (d *Depot) Writable() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.readOnly
}

// failed takes note of an error of writing. That it is not allowed is in order;
// of all else the first is worth a warning, and the last attempt.
func (d *Depot) failed(err error) {
	if err == nil {
		return
	}
	d.mu.Lock()
	d.readOnly = true
	d.mu.Unlock()
	isRefused := errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
	if !isRefused && d.opt.Warn != nil {
		d.warn.Do(func() { d.opt.Warn(err) })
	}
}

// blobFile and sumsFile name the files of a blob, indexFile that of an index.
func blobFile(dg digest.Digest) string {
	return path.Join("blobs", dg.Algorithm().String(), dg.Encoded())
}

func sumsFile(dg digest.Digest) string {
	return path.Join("sums", dg.Algorithm().String(), dg.Encoded())
}

func indexFile(format string, diffID digest.Digest) string {
	return path.Join("index", format, diffID.Algorithm().String(), diffID.Encoded())
}

// touch notes that a file is of use, now.
func (d *Depot) touch(name string) {
	d.mu.Lock()
	known, write := d.used[name], !d.readOnly
	d.used[name] = true
	d.mu.Unlock()
	if now := d.opt.Now(); write && !known {
		_ = d.root.Chtimes(name, now, now)
	}
}

// Has tells whether the blob is there; whether it is whole shows when it is read.
func (d *Depot) Has(dg digest.Digest, size int64) bool {
	if dg.Validate() != nil {
		return false
	}
	if d.root != nil {
		b, err := d.root.Stat(blobFile(dg))
		if err == nil && b.Mode().IsRegular() && b.Size() == size {
			s, err := d.root.Stat(sumsFile(dg))
			return err == nil && s.Size() == sumsSize(size)
		}
	}
	_, ok := d.foreign().find(dg, size)
	return ok
}

// Delete removes a blob, if that is possible.
func (d *Depot) Delete(dg digest.Digest) {
	if d.root == nil || !d.Writable() || dg.Validate() != nil {
		return
	}
	_ = d.root.Remove(blobFile(dg))
	_ = d.root.Remove(sumsFile(dg))
}

// Renew removes a blob that is to be had anew, once: not what was got since.
func (d *Depot) Renew(dg digest.Digest) {
	d.mu.Lock()
	isOld := !d.renewed[dg]
	d.renewed[dg] = true
	d.mu.Unlock()
	if isOld {
		d.Delete(dg)
	}
}

// ErrNotKept is returned for a blob that is not there, or not whole.
var ErrNotKept = errors.New("not in the directory of base images")

// ReadAll returns a blob of at most limit bytes, verified.
func (d *Depot) ReadAll(dg digest.Digest, limit int64) ([]byte, error) {
	if err := dg.Validate(); err != nil {
		return nil, err
	}
	if d.root == nil {
		return d.foreign().readAll(dg, limit)
	}
	f, err := d.root.Open(blobFile(dg))
	if err != nil {
		return d.foreign().readAll(dg, limit)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err == nil && int64(len(b)) > limit:
		return nil, fmt.Errorf("blob %s: more than %d bytes", dg, limit)
	case err != nil || dg.Algorithm().FromBytes(b) != dg:
		d.Delete(dg)
		return d.foreign().readAll(dg, limit)
	}
	d.touch(blobFile(dg))
	return b, nil
}

// Put stores a small blob under its digest.
func (d *Depot) Put(dg digest.Digest, b []byte) {
	if dg.Validate() != nil || d.Has(dg, int64(len(b))) {
		return
	}
	w := d.Create(dg, int64(len(b)))
	if w == nil {
		return
	}
	defer w.Discard()
	if _, err := w.Write(b); err == nil {
		_ = w.Commit() // what is wrong, it has told
	}
}

// Age tells since when the blob has neither been used nor checked.
func (d *Depot) Age(dg digest.Digest) time.Duration {
	if d.root == nil {
		return 0
	}
	fi, err := d.root.Stat(blobFile(dg))
	if err != nil {
		return 0
	}
	return d.opt.Now().Sub(fi.ModTime())
}

// Check reads a blob and tells whether it is whole; one that is not is gone then.
func (d *Depot) Check(dg digest.Digest, size int64) bool {
	r, err := d.Open(dg, size, 0)
	if err != nil {
		return false
	}
	defer r.Close() //nolint:errcheck // only read from
	h := dg.Algorithm().Hash()
	if _, err := io.Copy(h, r); err != nil {
		return false
	}
	if digest.NewDigest(dg.Algorithm(), h) != dg {
		d.Delete(dg)
		return false
	}
	return true
}

// create starts a file and locks it for as long as it is open.
func (d *Depot) create() (*os.File, string, error) {
	name := path.Join("tmp", rand.Text())
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, fs.ErrNotExist) { // somebody has tidied up
		if err = d.root.MkdirAll("tmp", 0o777); err == nil {
			f, err = d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		}
	}
	if err != nil {
		return nil, "", err
	}
	_ = tryLock(f)
	return f, name, nil
}

// rename moves a finished file to its place.
func (d *Depot) rename(from, to string) error {
	if err := d.root.MkdirAll(path.Dir(to), 0o777); err != nil {
		return err
	}
	return d.root.Rename(from, to)
}

// Scratch makes a directory that is the caller's until end is called, and
// returns its path.
func (d *Depot) Scratch() (dir string, end func() error, err error) {
	if d.root == nil {
		return "", nil, fmt.Errorf("write to %s: %w", d.dir, fs.ErrPermission)
	}
	name := path.Join("tmp", rand.Text())
	if err := d.root.Mkdir(name, 0o700); err != nil {
		return "", nil, err
	}
	lock, err := d.root.OpenFile(path.Join(name, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", nil, errors.Join(err, d.root.RemoveAll(name))
	}
	_ = tryLock(lock)
	return path.Join(d.dir, DepotDir, name), func() error {
		return errors.Join(d.root.RemoveAll(name), lock.Close())
	}, nil
}
