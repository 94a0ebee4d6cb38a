// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"net/http"
	"strings"
)

// A challenge is one way to sign in, as a 401 answer offers it (RFC 9110,
// 11.6.1).
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// challengeOf returns the first challenge of resp that we can meet.
func challengeOf(resp *http.Response) (challenge, bool) {
	for i, h := range resp.Header.Values("WWW-Authenticate") {
		if i == 8 {
			break
		}
		for _, c := range parseChallenges(h) {
			if c.scheme == "bearer" || c.scheme == "basic" {
				return c, true
			}
		}
	}
	return challenge{}, false
}

const tokenChars = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

func cutToken(s string) (tok, rest string) {
	rest = strings.TrimLeft(s, tokenChars)
	return s[:len(s)-len(rest)], rest
}

func skipBlank(s string) string { return strings.TrimLeft(s, " \t") }

// parseChallenges reads the value of a WWW-Authenticate header; what is not
// understood ends it. At most 16 challenges of 16 parameters are kept.
func parseChallenges(s string) []challenge {
	const limit = 16
	var out []challenge
	for s = strings.TrimLeft(s, " \t,"); s != ""; s = strings.TrimLeft(s, " \t,") {
		tok, rest := cutToken(s)
		if tok == "" {
			return out
		}
		after := skipBlank(rest)
		if len(out) > 0 && strings.HasPrefix(after, "=") {
			value, rest, ok := cutValue(skipBlank(after[1:]))
			if !ok {
				return out
			}
			p := out[len(out)-1].params
			key := strings.ToLower(tok)
			if _, dup := p[key]; !dup && len(p) < limit {
				p[key] = value
			}
			s = rest
			continue
		}
		if len(out) == limit {
			return out
		}
		out = append(out, challenge{scheme: strings.ToLower(tok), params: map[string]string{}})
		s = rest
	}
	return out
}

// cutValue reads a token or a quoted string.
func cutValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value, rest = cutToken(s)
		return value, rest, value != ""
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			i++
			if i == len(s) {
				return "", "", false
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}
