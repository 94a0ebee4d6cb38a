// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package git reads repositories from git servers, without a git program.
//
// A [Remote] speaks what "git fetch" speaks with the service upload-pack, in
// version 2 of the protocol or in the first one: over HTTP, ssh or a bare
// connection, all through the connections its caller makes. What the server
// sends is one pack file; [Index] makes it a [Pack], whose objects are read
// where they lie. Nothing is ever checked out: names in a repository can be
// hostile, and the only files written here have names of our own.
//
// Only repositories with SHA-1 names are known. Their hashes are computed with
// the same detection of known collision attacks as git's.
package git

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// An ID is the name of an object: the SHA-1 of its type, size and content.
type ID [20]byte

// ParseID reads the 40 lower-case digits of an ID.
func ParseID(s string) (ID, bool) {
	var id ID
	if len(s) != 2*len(id) || strings.ToLower(s) != s {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(s))
	return id, err == nil
}

// String returns the ID as 40 digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is no object's name.
func (id ID) IsZero() bool { return id == ID{} }

// A Type is the type of an object.
type Type uint8

// The types of objects, as pack files number them.
const (
	Commit Type = 1
	Tree   Type = 2
	Blob   Type = 3
	Tag    Type = 4

	offsetDelta Type = 6
	idDelta     Type = 7
)

// String returns the name that is part of what an object's ID is made of.
func (t Type) String() string {
	switch t {
	case Commit:
		return "commit"
	case Tree:
		return "tree"
	case Blob:
		return "blob"
	case Tag:
		return "tag"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// ErrNotFound is in the error for an object that a pack does not have.
var ErrNotFound = errors.New("no such object")

// ErrObjectFormat is in the error for a repository whose names are not SHA-1.
var ErrObjectFormat = errors.New("only repositories with SHA-1 names are supported")

// A RemoteError is what a server said instead of an answer.
type RemoteError struct{ Text string }

func (e *RemoteError) Error() string { return fmt.Sprintf("the server says %q", e.Text) }

// IsRefused reports whether the server does not give out an object that is no
// tip of a branch or tag. There is no code for that, only these words of
// git's upload-pack.c and fetch-pack.c.
func IsRefused(err error) bool {
	var e *RemoteError
	return errors.As(err, &e) && (strings.Contains(e.Text, "not our ref") || strings.Contains(e.Text, "unadvertised object"))
}

// A StatusError is an HTTP answer other than success.
type StatusError struct{ Status int }

func (e *StatusError) Error() string { return fmt.Sprintf("HTTP status %d", e.Status) }
