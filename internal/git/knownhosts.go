// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the format's own
	"encoding/base64"
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// A HostKeyError is returned for an ssh server that is not known, or whose key
// is not the one that is known.
type HostKeyError struct {
	Host        string // as known_hosts has it
	Fingerprint string // of the key that the server showed
	Known       bool   // there are keys for the host, and this is none of them
	Revoked     bool
}

func (e *HostKeyError) Error() string {
	switch {
	case e.Revoked:
		return fmt.Sprintf("the key of %s (%s) is revoked", e.Host, e.Fingerprint)
	case e.Known:
		return fmt.Sprintf("the key of %s is %s, which is not the one that is known", e.Host, e.Fingerprint)
	}
	return fmt.Sprintf("the host %s is not known; its key is %s", e.Host, e.Fingerprint)
}

// Explain says what to do.
func (e *HostKeyError) Explain() string {
	if e.Known || e.Revoked {
		return " why     somebody may be answering in the server's place, or the server has a new key\n" +
			" try     compare the key with what the server's operator publishes, then correct known_hosts"
	}
	return " why     without its key nobody can tell the server from an impostor\n" +
		" try     ssh-keyscan on a trusted line, into ~/.ssh/known_hosts or a file that SSH_KNOWN_HOSTS names"
}

// knownHosts are the lines of known_hosts files. Which file they come from
// matters: the first that has a host decides.
type knownHosts struct{ files [][]knownHost }

type knownHost struct {
	patterns []string
	marker   string
	key      ssh.PublicKey
}

func parseKnownHosts(files [][]byte) *knownHosts {
	k := &knownHosts{}
	for _, rest := range files {
		var list []knownHost
		for len(rest) > 0 {
			line, after, _ := bytes.Cut(rest, []byte("\n"))
			rest = after
			marker, hosts, key, _, _, err := ssh.ParseKnownHosts(line)
			if err != nil {
				continue // empty, a comment, or a type of key that is not known: as ssh does
			}
			list = append(list, knownHost{patterns: hosts, marker: marker, key: key})
		}
		k.files = append(k.files, list)
	}
	return k
}

// hostName returns the name of host:port in the form of known_hosts(5).
func hostName(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	switch {
	case err != nil:
		return addr
	case port == "22":
		return host
	}
	return "[" + host + "]:" + port
}

// of returns the keys of a host.
func (k *knownHosts) of(name string) []knownHost {
	for _, list := range k.files {
		var found []knownHost
		for _, h := range list {
			if h.marker == "" && h.matches(name) {
				found = append(found, h)
			}
		}
		if len(found) > 0 {
			return found
		}
	}
	return nil
}

func (h *knownHost) matches(name string) bool {
	matched := false
	for _, p := range h.patterns {
		if rest, ok := strings.CutPrefix(p, "!"); ok {
			if matchHost(rest, name) {
				return false
			}
			continue
		}
		matched = matched || matchHost(p, name)
	}
	return matched
}

// matchHost matches a pattern with * and ?, or a hashed name.
func matchHost(pattern, name string) bool {
	if rest, ok := strings.CutPrefix(pattern, "|1|"); ok {
		salt, hash, ok := strings.Cut(rest, "|")
		s, err1 := base64.StdEncoding.DecodeString(salt)
		want, err2 := base64.StdEncoding.DecodeString(hash)
		if !ok || err1 != nil || err2 != nil {
			return false
		}
		m := hmac.New(sha1.New, s)
		m.Write([]byte(name))
		return hmac.Equal(m.Sum(nil), want)
	}
	return matchStars(strings.ToLower(pattern), strings.ToLower(name))
}

func matchStars(pattern, s string) bool {
	for i, c := range []byte(pattern) {
		switch {
		case c == '*':
			for j := range len(s) + 1 - i {
				if matchStars(pattern[i+1:], s[i+j:]) {
					return true
				}
			}
			return false
		case i >= len(s) || c != '?' && c != s[i]:
			return false
		}
	}
	return len(pattern) == len(s)
}

// check is an [ssh.HostKeyCallback].
func (k *knownHosts) check(addr string, _ net.Addr, key ssh.PublicKey) error {
	name := hostName(addr)
	fail := &HostKeyError{Host: name, Fingerprint: ssh.FingerprintSHA256(key)}
	for _, list := range k.files {
		for _, h := range list {
			if h.marker == "revoked" && h.matches(name) && sameKey(h.key, key) {
				fail.Revoked = true
				return fail
			}
		}
	}
	keys := k.of(name)
	for _, h := range keys {
		if sameKey(h.key, key) {
			return nil
		}
	}
	fail.Known = len(keys) > 0
	return fail
}

func sameKey(a, b ssh.PublicKey) bool { return bytes.Equal(a.Marshal(), b.Marshal()) }

// algorithms returns those of the keys that are known for a host, so that the
// server shows one of them and not another; nil leaves it to the server.
func (k *knownHosts) algorithms(addr string) []string {
	var list []string
	for _, h := range k.of(hostName(addr)) {
		t := h.key.Type()
		if t == ssh.KeyAlgoRSA {
			list = append(list, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		}
		list = append(list, t)
	}
	slices.Sort(list)
	return slices.Compact(list)
}
