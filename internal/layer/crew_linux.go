// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package layer

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"hako/internal/tree"
)

const (
	// maxCrew is how many goroutines help to make a layer's files. More would
	// wait: one goroutine reads the layer, and the file system has one journal.
	maxCrew = 4
	// crewJobs is how many files each of them may have before it.
	crewJobs = 16
	// crewSize bounds the files that are made by others than the one that reads.
	crewSize = 64 << 10
)

// A crew makes the small regular files of one layer while the goroutine that
// reads the layer, the reader, goes on. Creating a file of 2 kB keeps the kernel
// busy for 50 µs on ext4 below overlayfs, which is most of what unpacking costs,
// and most of that needs no lock that another file of the same directory needs.
// When the helpers have enough to do, the reader makes files too.
//
// All that has an order stays with the reader. A file may be made late because
// nothing can tell: its directory was found without following a link, so its path
// is its only name; and whoever is about to use that path or one below it, or to
// remove something, or to change what its directory passes on, waits before
// ([Root.settle]). Where a name is taken by more than a file, which no path leads
// through, the job comes back for the reader to replace what is there.
//
// All fields belong to the reader; jobs are the helpers' between the two channels.
// A nil crew has no work and takes none.
type crew struct {
	limit   int       // of jobs
	work    chan *job // closed by dismiss
	done    chan *job // has room for all jobs
	helpers sync.WaitGroup

	free  []*job
	made  int             // jobs that there are
	out   map[string]*job // that are not over, by path
	back  []*job          // of these, those whose names were taken
	count int64           // of jobs handed out
	verb  string          // for errors
	late  error           // the error of the first entry that failed
	first int64           // which that is
}

// A job is a file to be made.
type job struct {
	n       int64 // its place in the order of the layer
	up      *directory
	name    string
	e       tree.Entry
	buf     []byte
	content []byte
	err     error
	taken   bool // the name is, by something that the reader has to remove
}

// hire gives the Root a crew for one layer, if there is more than one CPU.
func (r *Root) hire(verb string) {
	n := min(runtime.GOMAXPROCS(0)-1, maxCrew)
	// Without openat2 links on the way to a directory cannot be told, and below a
	// mount point the same directory may be found a second time.
	if n < 1 || !r.openat2 || r.CrossMounts {
		return
	}
	c := &crew{limit: n * crewJobs, verb: verb, out: make(map[string]*job)}
	c.work, c.done = make(chan *job, c.limit), make(chan *job, c.limit)
	for range n {
		c.helpers.Go(func() {
			for j := range c.work {
				r.runJob(j)
				c.done <- j
			}
		})
	}
	r.crew = c
}

// dismiss ends the crew's work. What failed in it has been told by settle.
func (r *Root) dismiss() {
	if r.crew == nil {
		return
	}
	_ = r.settle()
	close(r.crew.work)
	r.crew.helpers.Wait()
	r.crew = nil
}

// hand has a regular file made by a helper. It returns false, and leaves content
// as it is, if the file is large or the helpers have enough to do.
func (r *Root) hand(up *directory, e *tree.Entry, content io.Reader) (bool, error) {
	c := r.crew
	if c == nil || !up.plain || !e.Mode.IsRegular() || e.Size >= crewSize {
		return false, nil
	}
	j := c.job()
	if j == nil {
		return false, nil
	}
	j.e, j.name = *e, tree.Base(e.Path)
	var err error
	if j.content, err = fill(j.buf, content, e.Size); err != nil {
		c.free = append(c.free, j)
		return true, err
	}
	c.count++
	up.users++
	j.n, j.up = c.count, up
	c.out[e.Path] = j
	c.work <- j
	return true, nil
}

// job returns one that is free, nil if there is none.
func (c *crew) job() *job {
	if n := len(c.free); n > 0 {
		j := c.free[n-1]
		c.free = c.free[:n-1]
		return j
	}
	if c.made == c.limit {
		return nil
	}
	c.made++
	return &job{buf: make([]byte, crewSize)}
}

// fill reads all of content, which has size bytes, into buf, which is larger.
func fill(buf []byte, content io.Reader, size int64) ([]byte, error) {
	n := 0
	for int64(n) <= size {
		k, err := content.Read(buf[n : size+1])
		n += k
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return buf[:n], sizeError(int64(n), size)
}

// runJob makes a file, on a helper's goroutine.
func (r *Root) runJob(j *job) {
	j.err = r.makeJob(j)
	if j.err != unix.EEXIST {
		return
	}
	// A file of a lower layer, most likely: nothing is found by way of it, and
	// nobody looks at its name before this one is made.
	var st unix.Stat_t
	if err := unix.Fstatat(j.up.fd, j.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		j.taken, j.err = true, nil
		return
	}
	if err := unix.Unlinkat(j.up.fd, j.name, 0); err != nil {
		j.err = fmt.Errorf("replace: %w", err)
		return
	}
	j.err = r.makeJob(j)
}

func (r *Root) makeJob(j *job) error {
	return r.regular(j.up.fd, j.name, &j.e, func(fd int) (int64, error) { return r.write(fd, j.content) })
}

// look takes back what is done, without waiting.
func (r *Root) look() error {
	c := r.crew
	if c == nil {
		return nil
	}
	for len(c.done) > 0 {
		r.takeBack(<-c.done)
	}
	if len(c.back) > 0 || c.late != nil {
		return r.settle()
	}
	return nil
}

// settle waits until every file that was put is made. It returns the error of
// the first entry that failed, with its path.
func (r *Root) settle() error {
	c := r.crew
	if c == nil {
		return nil
	}
	for len(c.out) > len(c.back) {
		r.takeBack(<-c.done)
	}
	slices.SortFunc(c.back, func(a, b *job) int { return int(a.n - b.n) })
	for _, j := range c.back {
		if c.late == nil || j.n < c.first {
			j.err = r.overwrite(j.up.fd, j.name, &j.e, bytes.NewReader(j.content))
		}
		r.release(j)
	}
	c.back = c.back[:0]
	return c.late
}

// takeBack takes a job that a helper is done with.
func (r *Root) takeBack(j *job) {
	if j.taken {
		r.crew.back = append(r.crew.back, j)
		return
	}
	r.release(j)
}

// release ends a job.
func (r *Root) release(j *job) {
	c := r.crew
	if j.err != nil && (c.late == nil || j.n < c.first) {
		c.late, c.first = fmt.Errorf("%s /%s: %w", c.verb, j.e.Path, j.err), j.n
	}
	delete(c.out, j.e.Path)
	j.up.leave()
	*j = job{buf: j.buf}
	c.free = append(c.free, j)
}

// isAt tells whether a file is being made at p, or in place of a directory above it.
func (c *crew) isAt(p string, orAbove bool) bool {
	if c == nil || len(c.out) == 0 {
		return false
	}
	for ; p != ""; p = tree.Parent(p) {
		if c.out[p] != nil {
			return true
		}
		if !orAbove {
			break
		}
	}
	return false
}

// isIdle tells whether no file is being made.
func (c *crew) isIdle() bool { return c == nil || len(c.out) == 0 }

// isIn tells whether a file is being made in the directory p.
func (c *crew) isIn(p string) bool {
	if c == nil {
		return false
	}
	for _, j := range c.out {
		if tree.Parent(j.e.Path) == p {
			return true
		}
	}
	return false
}
