// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// A URL is the address of a repository.
type URL struct {
	Scheme string // http, https, ssh or git
	User   *url.Userinfo
	Host   string // with the port, if one is given
	Path   string // decoded
}

// scpStyle is user@host:path, as BuildKit reads it (util/sshutil).
var scpStyle = regexp.MustCompile(`^([a-zA-Z0-9-_]+)@([a-zA-Z0-9-.]+):(.*)$`)

// ParseURL reads the address of a repository: a URL, or user@host:path. Other
// ways than the network's are refused, above all paths of this machine.
func ParseURL(s string) (*URL, error) {
	if strings.ContainsAny(s, "\n\r\x00") {
		return nil, errors.New("a repository's address has a line break")
	}
	if !strings.Contains(s, "://") {
		m := scpStyle.FindStringSubmatch(s)
		if m == nil {
			return nil, fmt.Errorf("%q is no address of a repository: want https://, http://, ssh://, git:// or user@host:path", s)
		}
		return &URL{Scheme: "ssh", User: url.User(m[1]), Host: m[2], Path: m[3]}, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("the repository's address cannot be parsed") // the error has the credentials
	}
	switch scheme := strings.ToLower(u.Scheme); scheme {
	case "http", "https", "ssh", "git":
		if u.Hostname() == "" || strings.HasPrefix(u.Host, "-") {
			return nil, fmt.Errorf("the repository's address has no host: %s", u.Redacted())
		}
		return &URL{Scheme: scheme, User: u.User, Host: u.Host, Path: u.Path}, nil
	}
	return nil, fmt.Errorf("repositories cannot be reached by %s://: want https://, http://, ssh:// or git://", u.Scheme)
}

// String returns the address without credentials.
func (u *URL) String() string {
	v := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	if u.Scheme == "ssh" && u.User != nil {
		v.User = url.User(u.User.Username())
	}
	if !strings.HasPrefix(u.Path, "/") {
		v.Path = "/" + u.Path
	}
	return v.String()
}

// Resolve returns the address that a submodule's URL means in the repository
// with the address base: one that begins with ./ or ../ is relative to it, as
// in git-submodule(1).
func Resolve(base, sub string) (string, error) {
	if !strings.HasPrefix(sub, "./") && !strings.HasPrefix(sub, "../") {
		return sub, nil
	}
	base, sep := strings.TrimSuffix(base, "/"), "/"
	floor := 0
	if i := strings.Index(base, "://"); i >= 0 {
		floor = i + len("://")
	}
	for rest := true; rest; {
		switch {
		case strings.HasPrefix(sub, "./"):
			sub = sub[2:]
		case strings.HasPrefix(sub, "../"):
			sub = sub[3:]
			if i := strings.LastIndexByte(base[floor:], '/'); i >= 0 {
				base = base[:floor+i]
			} else if i := strings.LastIndexByte(base, ':'); i >= 0 && floor == 0 {
				base, sep = base[:i], ":"
			} else {
				return "", fmt.Errorf("the relative address %q leads above the host", sub)
			}
		default:
			rest = false
		}
	}
	return strings.TrimSuffix(base+sep+sub, "/"), nil
}
