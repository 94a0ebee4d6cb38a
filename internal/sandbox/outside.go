// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import "sync"

// An Outside is the container's own file tree, wherever it is: in /, or parked
// while an image's root is there. The zero value is in /. A nil one is too, and
// stays.
type Outside struct {
	mu  sync.RWMutex
	dir string
}

// Use calls f with the directory that the tree is in, "" for /. The tree is not
// moved before f returns, so f must end.
func (o *Outside) Use(f func(dir string) error) error {
	if o == nil {
		return f("")
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	return f(o.dir)
}

// move calls f, which moves the tree to dir, and waits for those that use it
// before. A tree half moved is where it was going to.
func (o *Outside) move(dir string, f func() error) error {
	if o == nil {
		return f()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dir = dir
	return f()
}
