// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A CommitInfo is what a checkout needs to know of a commit.
type CommitInfo struct {
	ID   ID
	Tree ID
	Time time.Time // the committer's, in seconds
	Raw  []byte    // the object
	Tag  []byte    // the annotated tag that led here, nil if none did
}

// maxTags bounds tags of tags.
const maxTags = 16

// Commit returns the commit with that ID, or the one that a tag with that ID
// leads to.
func (p *Pack) Commit(id ID) (*CommitInfo, error) {
	var tag []byte
	for range maxTags {
		typ, _, err := p.Stat(id)
		if err != nil {
			return nil, err
		}
		if typ != Tag {
			c, err := p.commit(id)
			if err == nil {
				c.Tag = tag
			}
			return c, err
		}
		b, err := p.Read(id, Tag)
		if err != nil {
			return nil, err
		}
		if tag == nil {
			tag = b
		}
		target, ok := ParseID(field(b, "object"))
		if !ok {
			return nil, fmt.Errorf("tag %s names no object", id)
		}
		id = target
	}
	return nil, errors.New("a tag of a tag of a tag, and so on")
}

func (p *Pack) commit(id ID) (*CommitInfo, error) {
	b, err := p.Read(id, Commit)
	if err != nil {
		return nil, err
	}
	c := &CommitInfo{ID: id, Raw: b}
	var ok bool
	if c.Tree, ok = ParseID(field(b, "tree")); !ok {
		return nil, fmt.Errorf("commit %s names no tree", id)
	}
	// "Name <address> seconds zone"
	words := strings.Fields(field(b, "committer"))
	if len(words) < 2 {
		return nil, fmt.Errorf("commit %s has no committer", id)
	}
	seconds, err := strconv.ParseInt(words[len(words)-2], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("commit %s has no time: %w", id, err)
	}
	c.Time = time.Unix(seconds, 0)
	return c, nil
}

// field returns the value of a header line of a commit or tag.
func field(b []byte, name string) string {
	head, _, _ := bytes.Cut(b, []byte("\n\n"))
	for line := range bytes.Lines(head) {
		if v, ok := bytes.CutPrefix(line, []byte(name+" ")); ok {
			return string(bytes.TrimSuffix(v, []byte("\n")))
		}
	}
	return ""
}

// A Mode is what a tree says of the kind of an entry.
type Mode uint32

// The modes of entries.
const (
	Directory  Mode = 0o040000
	Regular    Mode = 0o100644
	Executable Mode = 0o100755
	Symlink    Mode = 0o120000
	Submodule  Mode = 0o160000
)

// A TreeEntry is one name of a tree.
type TreeEntry struct {
	Name string
	Mode Mode
	ID   ID
}

// A NameError is returned for a tree with a name that git does not check out.
type NameError struct{ Name string }

func (e *NameError) Error() string { return fmt.Sprintf("the repository has a file named %q", e.Name) }

// Explain says why that is not allowed.
func (e *NameError) Explain() string {
	return " why     such a name would lead out of the checkout, or into its .git: git refuses it too\n" +
		" try     another commit; whoever made this one may have meant harm"
}

// Tree returns the entries of a tree, sorted by name. Its names have no
// slash, are not "." or ".." or a form of ".git", and none is there twice.
func (p *Pack) Tree(id ID) ([]TreeEntry, error) {
	b, err := p.Read(id, Tree)
	if err != nil {
		return nil, err
	}
	list, err := parseTree(b)
	if err != nil {
		return nil, fmt.Errorf("tree %s: %w", id, err)
	}
	return list, nil
}

func parseTree(b []byte) ([]TreeEntry, error) {
	var list []TreeEntry
	for len(b) > 0 {
		head, rest, ok := bytes.Cut(b, []byte{0})
		digits, name, ok2 := strings.Cut(string(head), " ")
		if !ok || !ok2 || len(rest) < len(ID{}) {
			return nil, errors.New("it is damaged")
		}
		mode, err := parseMode(digits)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		if !isSafeName(name) || mode == Symlink && isModulesName(name) {
			return nil, &NameError{Name: name}
		}
		list = append(list, TreeEntry{Name: name, Mode: mode, ID: ID(rest[:len(ID{})])})
		b = rest[len(ID{}):]
	}
	slices.SortFunc(list, func(a, b TreeEntry) int { return strings.Compare(a.Name, b.Name) })
	for i := range len(list) - 1 {
		if list[i].Name == list[i+1].Name {
			return nil, fmt.Errorf("it has the name %q twice", list[i].Name)
		}
	}
	return list, nil
}

// parseMode returns the mode that git makes of what is written: of a file's
// permissions only the owner's x counts.
func parseMode(digits string) (Mode, error) {
	n, err := strconv.ParseUint(digits, 8, 32)
	if err != nil {
		return 0, errors.New("its mode is no number")
	}
	switch n & 0o170000 {
	case 0o100000:
		if n&0o100 != 0 {
			return Executable, nil
		}
		return Regular, nil
	case uint64(Directory), uint64(Symlink), uint64(Submodule):
		return Mode(n & 0o170000), nil
	}
	return 0, fmt.Errorf("its mode is %s", digits)
}

// isSafeName reports whether git would check a name out: see verify_path in
// read-cache.c, with core.protectNTFS as it is by default.
func isSafeName(name string) bool {
	switch name {
	case "", ".", "..":
		return false
	}
	return !strings.ContainsAny(name, "/\x00") && !isNTFSName(name, ".git", "git~1")
}

func isModulesName(name string) bool { return isNTFSName(name, ".gitmodules", "gitmod~1") }

// isNTFSName reports whether a Windows file system would take name for long,
// whose short name is short: in any case, with dots, spaces or a stream's name
// behind it.
func isNTFSName(name, long, short string) bool {
	for _, n := range []string{long, short} {
		if len(name) < len(n) || !strings.EqualFold(name[:len(n)], n) {
			continue
		}
		rest := strings.TrimLeft(name[len(n):], ". ")
		if rest == "" || rest[0] == ':' || rest[0] == '\\' {
			return true
		}
	}
	return false
}
