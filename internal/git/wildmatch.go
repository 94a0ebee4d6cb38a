// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import "strings"

// wildmatch matches a path with a pattern as git's wildmatch.c does with
// WM_PATHNAME: * and ? and [] do not match a slash, ** between slashes matches
// any directories.
func wildmatch(pattern, s string) bool {
	// Each * is tried at every place; without a bound a pattern of many could
	// take for ever.
	steps := 1 << 20
	return matchFrom(pattern, s, true, &steps)
}

// matchFrom matches the rest of a pattern; start says that it follows a slash,
// or nothing.
func matchFrom(p, s string, start bool, steps *int) bool {
	for p != "" {
		if *steps--; *steps < 0 {
			return false
		}
		switch p[0] {
		case '*':
			return matchStar(p, s, start, steps)
		case '?':
			if s == "" || s[0] == '/' {
				return false
			}
			p = p[1:]
		case '[':
			if s == "" {
				return false
			}
			rest, ok := matchClass(p, s[0])
			if !ok {
				return false
			}
			p = rest
		default:
			if p[0] == '\\' && len(p) > 1 {
				p = p[1:]
			}
			if s == "" || s[0] != p[0] {
				return false
			}
			p = p[1:]
		}
		start = s[0] == '/'
		s = s[1:]
	}
	return s == ""
}

func matchStar(p, s string, start bool, steps *int) bool {
	rest := strings.TrimLeft(p, "*")
	double := len(p)-len(rest) >= 2 && start && (rest == "" || rest[0] == '/')
	if double && rest != "" && matchFrom(rest[1:], s, true, steps) {
		return true // no directory at all
	}
	for i := 0; ; i++ {
		if matchFrom(rest, s[i:], false, steps) {
			return true
		}
		if i == len(s) || s[i] == '/' && !double || *steps < 0 {
			return false
		}
	}
}

// matchClass matches a bracket expression at the beginning of p and returns
// what is behind it.
func matchClass(p string, c byte) (rest string, ok bool) {
	p = p[1:]
	not := p != "" && (p[0] == '!' || p[0] == '^')
	if not {
		p = p[1:]
	}
	found := false
	for first := true; ; first = false {
		if p == "" {
			return "", false
		}
		if p[0] == ']' && !first {
			return p[1:], found != not && c != '/'
		}
		if end := strings.Index(p, ":]"); strings.HasPrefix(p, "[:") && end > 0 {
			found = found || inClass(p[2:end], c)
			p = p[end+2:]
			continue
		}
		var lo, hi byte
		if lo, p = classByte(p); p == "" {
			return "", false
		}
		hi = lo
		if len(p) > 1 && p[0] == '-' && p[1] != ']' {
			hi, p = classByte(p[1:])
		}
		found = found || lo <= c && c <= hi
	}
}

func classByte(p string) (byte, string) {
	if p[0] == '\\' && len(p) > 1 {
		p = p[1:]
	}
	return p[0], p[1:]
}

func inClass(name string, c byte) bool {
	lower, upper, digit := c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9'
	switch name {
	case "alnum":
		return lower || upper || digit
	case "alpha":
		return lower || upper
	case "blank":
		return c == ' ' || c == '\t'
	case "cntrl":
		return c < ' ' || c == 0x7f
	case "digit":
		return digit
	case "graph":
		return c > ' ' && c < 0x7f
	case "lower":
		return lower
	case "print":
		return c >= ' ' && c < 0x7f
	case "punct":
		return c > ' ' && c < 0x7f && !lower && !upper && !digit
	case "space":
		return strings.IndexByte(" \t\n\v\f\r", c) >= 0
	case "upper":
		return upper
	case "xdigit":
		return digit || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
	}
	return false
}
