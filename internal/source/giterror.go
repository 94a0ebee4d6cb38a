// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"hako/internal/git"
)

// A GitRefError is returned for a branch, tag or commit that a repository does
// not have.
type GitRefError struct {
	Ref   string
	Near  []string // names that may have been meant, the likeliest first
	Empty bool     // the repository has no refs at all
}

func (e *GitRefError) Error() string {
	switch {
	case e.Empty:
		return "the repository is empty"
	case e.Ref == "":
		return "the repository names no default branch"
	}
	if _, ok := git.ParseID(e.Ref); ok {
		return fmt.Sprintf("the repository has no commit %s in the history of any branch or tag", e.Ref)
	}
	return fmt.Sprintf("the repository has no branch or tag %q", e.Ref)
}

// Explain lists names that are like it.
func (e *GitRefError) Explain() string {
	var s string
	if len(e.Near) > 0 {
		s = " near    " + strings.Join(e.Near, ", ") + "\n"
	}
	switch {
	case e.Empty:
		return " try     push a commit first"
	case e.Ref == "":
		return s + " try     name a branch, a tag or a commit behind #"
	case len(e.Ref) >= 4 && len(e.Ref) < 40 && strings.Trim(e.Ref, "0123456789abcdefABCDEF") == "":
		return s + " try     a commit needs all of its 40 digits: servers do not look up shorter ones"
	}
	return s + " try     check the name; tags can be written as refs/tags/NAME"
}

// A GitChecksumError is returned if a ref is not the commit it should be.
type GitChecksumError struct {
	Want string
	Got  []string // the commit; of an annotated tag, the tag before it
}

func (e *GitChecksumError) Error() string {
	return fmt.Sprintf("checksum is %s, want %s", strings.Join(e.Got, " or "), e.Want)
}

// Explain tells what to do if the change is meant.
func (e *GitChecksumError) Explain() string {
	return fmt.Sprintf(" why     the branch or tag is not the commit that the checksum names: it may have moved\n"+
		" try     look at what is there now; if it is what you want: --checksum=%s", e.Got[len(e.Got)-1])
}

// A GitAccessError is returned if a server does not let us in.
type GitAccessError struct {
	Host   string
	Status int      // of HTTP; 0 for ssh
	From   string   // the credentials that were sent; "" if there were none
	Looked []string // the names of credentials that were looked for
	Err    error
}

func (e *GitAccessError) Error() string {
	switch {
	case e.Status == 0:
		return e.Host + ": " + e.Err.Error()
	case e.From == "":
		return fmt.Sprintf("%s: %d %s, without credentials", e.Host, e.Status, http.StatusText(e.Status))
	}
	return fmt.Sprintf("%s: %d %s, with %s", e.Host, e.Status, http.StatusText(e.Status), e.From)
}

// Unwrap returns the cause.
func (e *GitAccessError) Unwrap() error { return e.Err }

// Explain tells which credentials would be used.
func (e *GitAccessError) Explain() string {
	switch {
	case errors.Is(e.Err, git.ErrNoAgent):
		return " why     ssh servers want a key\n try     --ssh default with a running ssh-agent, or --ssh default=KEYFILE"
	case e.Status == 0:
		return " why     the server accepts none of the keys that --ssh gives\n try     add the public key to the account that may read the repository"
	case e.Status == http.StatusNotFound:
		return " why     there is no such repository, or these credentials may not see it\n try     check the URL; " + e.names()
	case e.From == "":
		return " why     the repository is private, or not there\n try     " + e.names()
	}
	return " why     the server refuses these credentials: they may have expired, or may not read this repository\n try     " + e.names()
}

func (e *GitAccessError) names() string {
	if len(e.Looked) == 0 {
		return "name a user and a token in the URL"
	}
	return "credentials are looked for in " + strings.Join(e.Looked, ", then ")
}

// httpAccess gives a refusal our type. 404 is how some servers refuse.
func httpAccess(u *git.URL, err error, from string, looked []string) error {
	var s *git.StatusError
	if !errors.As(err, &s) {
		return err
	}
	switch s.Status {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
		return &GitAccessError{Host: u.Host, Status: s.Status, From: from, Looked: looked, Err: err}
	}
	return err
}

func sshAccess(u *git.URL, err error) error {
	var l *git.LoginError
	if errors.As(err, &l) || errors.Is(err, git.ErrNoAgent) {
		return &GitAccessError{Host: u.Host, Err: err}
	}
	return err
}

// A GitPathError is returned for a subdirectory that is not one.
type GitPathError struct {
	Path  string
	What  string // what is at the path, or at the part of it that is no directory
	Exist bool
}

func (e *GitPathError) Error() string {
	if !e.Exist {
		return fmt.Sprintf("the repository has no directory %q", e.Path)
	}
	return fmt.Sprintf("%q in the repository is %s, not a directory", e.Path, e.What)
}

// Explain tells what is asked for.
func (e *GitPathError) Explain() string {
	return " try     the part behind the colon in URL#ref:dir is a directory of that commit; links are not followed"
}
