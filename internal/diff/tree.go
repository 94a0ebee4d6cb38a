// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package diff

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"hako/internal/tree"
)

// links knows the first name of each file that has several, in the order of the
// walk. Two trees have the same hard links if every name has the same first one.
type links map[tree.NodeID]string

func (l links) first(e *tree.Entry) string {
	if e.Node == (tree.NodeID{}) || e.Mode.IsDir() {
		return e.Path
	}
	if p, ok := l[e.Node]; ok {
		return p
	}
	l[e.Node] = e.Path
	return e.Path
}

// A pair walks two trees side by side.
type pair struct {
	*comparer
	a, b           tree.FS
	linksA, linksB links
}

func (c *comparer) trees(ctx context.Context, a, b *Manifest) error {
	ta, err := a.Ref.Tree(ctx)
	if err != nil {
		return fmt.Errorf("read %s: %w", a.Descriptor.Digest, err)
	}
	tb, err := b.Ref.Tree(ctx)
	if err != nil {
		return fmt.Errorf("read %s: %w", b.Descriptor.Digest, err)
	}
	p := &pair{comparer: c, a: ta, b: tb, linksA: links{}, linksB: links{}}
	ra, err := ta.Lstat("")
	if err != nil {
		return err
	}
	rb, err := tb.Lstat("")
	if err != nil {
		return err
	}
	if err := p.entry(&ra, &rb); err != nil {
		return err
	}
	return p.dir(ctx, "")
}

func (p *pair) dir(ctx context.Context, name string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	ea, err := p.a.ReadDir(name)
	if err != nil {
		return err
	}
	eb, err := p.b.ReadDir(name)
	if err != nil {
		return err
	}
	for len(ea) > 0 || len(eb) > 0 {
		cmp := 0
		switch {
		case len(eb) == 0:
			cmp = -1
		case len(ea) == 0:
			cmp = 1
		default:
			cmp = strings.Compare(ea[0].Name(), eb[0].Name())
		}
		switch {
		case cmp < 0:
			p.only(&ea[0], true)
			ea = ea[1:]
		case cmp > 0:
			p.only(&eb[0], false)
			eb = eb[1:]
		default:
			if err := p.both(ctx, &ea[0], &eb[0]); err != nil {
				return err
			}
			ea, eb = ea[1:], eb[1:]
		}
	}
	return nil
}

// only reports a name that one tree has. What is below it goes without saying.
func (p *pair) only(e *tree.Entry, inA bool) {
	if matches(p.opt.Paths, e.Path) {
		return
	}
	if inA {
		p.linksA.first(e)
		p.add("tree", "/"+e.Path, "entry", typeName(e.Mode), None)
		return
	}
	p.linksB.first(e)
	p.add("tree", "/"+e.Path, "entry", None, typeName(e.Mode))
}

func (p *pair) both(ctx context.Context, a, b *tree.Entry) error {
	if matches(p.opt.Paths, a.Path) {
		return nil
	}
	if err := p.entry(a, b); err != nil {
		return fmt.Errorf("compare /%s: %w", a.Path, err)
	}
	if a.Mode.IsDir() && b.Mode.IsDir() {
		return p.dir(ctx, a.Path)
	}
	return nil
}

// entry compares what two trees have at one path.
func (p *pair) entry(a, b *tree.Entry) error {
	fa, fb := p.linksA.first(a), p.linksB.first(b)
	p.attributes("tree", a, b)
	if a.Mode.Type() != b.Mode.Type() {
		return nil
	}
	p.field("tree", "/"+a.Path, "hardlink", "/"+fa, "/"+fb)
	if !a.Mode.IsRegular() || a.Size != b.Size || a.Size == 0 {
		return nil
	}
	da, db := a.Digest, b.Digest
	if da == "" || db == "" || da.Algorithm() != db.Algorithm() {
		var err error
		if da, err = contentDigest(p.a, a); err != nil {
			return err
		}
		if db, err = contentDigest(p.b, b); err != nil {
			return err
		}
	}
	p.field("tree", "/"+a.Path, "content", da.String(), db.String())
	return nil
}

func contentDigest(fsys tree.FS, e *tree.Entry) (digest.Digest, error) {
	r, err := fsys.Open(e.Path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return "", err
	}
	if n != e.Size {
		return "", errors.New("its content is not as long as its entry says")
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

// attributes compares all but content and hard links.
func (c *comparer) attributes(kind string, a, b *tree.Entry) {
	at := "/" + a.Path
	c.field(kind, at, "type", typeName(a.Mode), typeName(b.Mode))
	if a.Mode.Type() != b.Mode.Type() {
		return
	}
	c.field(kind, at, "mode", octal(a.Mode), octal(b.Mode))
	c.field(kind, at, "owner", owner(a), owner(b))
	c.xattrs(kind, at, a.Xattrs, b.Xattrs)
	switch {
	case a.Mode.IsRegular():
		c.field(kind, at, "size", strconv.FormatInt(a.Size, 10), strconv.FormatInt(b.Size, 10))
	case a.Mode.IsSymlink():
		c.field(kind, at, "link", a.Link, b.Link)
	case a.Mode.IsDevice():
		c.field(kind, at, "device", device(a), device(b))
	}
	// Layers have directories for what is in them, with whatever time.
	if c.opt.IgnoreMtimes || matches(c.opt.MtimesOf, a.Path) || kind != "tree" && a.Mode.IsDir() {
		return
	}
	n := len(c.report)
	c.field(kind, at, "mtime", mtime(a), mtime(b))
	for i := range c.report[n:] {
		c.report[n+i].Dir = a.Mode.IsDir() && b.Mode.IsDir()
	}
}

// xattrs compares extended attributes, whose values are bytes.
func (c *comparer) xattrs(kind, at string, a, b map[string]string) {
	for _, k := range keys(a, b) {
		va, oka := a[k]
		vb, okb := b[k]
		if oka == okb && va == vb {
			continue
		}
		quote := func(s string, ok bool) string {
			if !ok {
				return None
			}
			return strconv.Quote(s)
		}
		c.add(kind, at, "xattr "+k, quote(va, oka), quote(vb, okb))
	}
}

func octal(m tree.Mode) string    { return fmt.Sprintf("%04o", uint32(m.Perm())) }
func owner(e *tree.Entry) string  { return fmt.Sprintf("%d:%d", e.UID, e.GID) }
func device(e *tree.Entry) string { return fmt.Sprintf("%d:%d", e.Major, e.Minor) }
func mtime(e *tree.Entry) string  { return time.Unix(e.ModTime.Unix(), 0).UTC().Format(time.RFC3339) }
func typeName(m tree.Mode) string {
	switch m.Type() {
	case tree.ModeRegular:
		return "file"
	case tree.ModeDir:
		return "directory"
	case tree.ModeSymlink:
		return "symlink"
	case tree.ModeChar:
		return "character device"
	case tree.ModeBlock:
		return "block device"
	case tree.ModeFIFO:
		return "fifo"
	case tree.ModeSocket:
		return "socket"
	}
	return fmt.Sprintf("type %o", uint32(m.Type()))
}
