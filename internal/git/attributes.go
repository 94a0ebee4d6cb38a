// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"bytes"
	"path"
	"strings"
)

// AttributesFile is the name of files with attributes.
const AttributesFile = ".gitattributes"

// maxAttributes is the largest attributes file and line that git reads
// (attr.h); larger ones count as empty.
const (
	maxAttributes     = 100 << 20
	maxAttributesLine = 2048
)

// Attributes are the rules of one attributes file.
type Attributes struct {
	rules  []attrRule
	macros map[string][]assignment
}

type attrRule struct {
	pattern string
	hasDir  bool // match the path below the file's directory, not the last name
	sets    []assignment
}

// An assignment gives an attribute a value: "true", "false", what is behind
// the equals sign, or "" for unspecified.
type assignment struct{ name, value string }

const (
	attrSet   = "true"
	attrUnset = "false"
)

// ParseAttributes reads an attributes file (gitattributes(5)). Only the file at
// the top of a repository may define macros.
func ParseAttributes(b []byte, top bool) *Attributes {
	a := &Attributes{macros: make(map[string][]assignment)}
	if len(b) >= maxAttributes {
		return a
	}
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	for line := range bytes.Lines(b) {
		if len(line) < maxAttributesLine {
			a.line(strings.Trim(string(line), " \t\r\n"), top)
		}
	}
	return a
}

func (a *Attributes) line(s string, top bool) {
	if s == "" || s[0] == '#' {
		return
	}
	var pattern string
	if p, rest, ok := unquoteC(s); ok {
		pattern, s = p, rest
	} else {
		end := strings.IndexAny(s+" ", " \t\r\n")
		pattern, s = s[:end], s[end:]
	}
	var sets []assignment
	for _, word := range strings.Fields(s) {
		set, ok := parseAssignment(word)
		if !ok {
			return // git leaves the whole line out
		}
		sets = append(sets, set)
	}
	if name, ok := strings.CutPrefix(pattern, "[attr]"); ok {
		if top && isAttrName(name) {
			a.macros[name] = sets
		}
		return
	}
	if strings.HasPrefix(pattern, "!") || strings.HasSuffix(pattern, "/") {
		return // forbidden; matches directories, which have no attributes here
	}
	pattern = strings.TrimPrefix(pattern, `\`+"!")
	r := attrRule{pattern: pattern, hasDir: strings.Contains(pattern, "/"), sets: sets}
	r.pattern = strings.TrimPrefix(r.pattern, "/")
	a.rules = append(a.rules, r)
}

func parseAssignment(word string) (assignment, bool) {
	switch word[0] {
	case '-':
		return assignment{word[1:], attrUnset}, isAttrName(word[1:])
	case '!':
		return assignment{word[1:], ""}, isAttrName(word[1:])
	}
	name, value, ok := strings.Cut(word, "=")
	if !ok {
		value = attrSet
	}
	return assignment{name, value}, isAttrName(name)
}

func isAttrName(s string) bool {
	return s != "" && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '-' && r != '.' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
}

// unquoteC reads a pattern in double quotes, with the escapes of C.
func unquoteC(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		return "", s, false
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; c {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			i++
			if i >= len(s) {
				return "", s, false
			}
			n, used := escapeC(s[i:])
			if used == 0 {
				return "", s, false
			}
			b.WriteByte(n)
			i += used - 1
		default:
			b.WriteByte(c)
		}
	}
	return "", s, false
}

func escapeC(s string) (byte, int) {
	const names, values = `abfnrtv\"`, "\a\b\f\n\r\t\v\\\""
	if i := strings.IndexByte(names, s[0]); i >= 0 {
		return values[i], 1
	}
	if len(s) < 3 || s[0] > '3' {
		return 0, 0
	}
	n := 0
	for _, c := range []byte(s[:3]) {
		if c < '0' || c > '7' {
			return 0, 0
		}
		n = n<<3 | int(c-'0')
	}
	return byte(n), 3
}

// MatchAttributes returns the attributes of a file. files are the attributes
// files of the directories above it, the topmost first, nil where there is
// none. p is the file's path in the repository.
func MatchAttributes(files []*Attributes, p string) map[string]string {
	macros := map[string][]assignment{"binary": {{"diff", attrUnset}, {"merge", attrUnset}, {"text", attrUnset}}}
	if len(files) > 0 && files[0] != nil {
		for name, sets := range files[0].macros {
			macros[name] = sets
		}
	}
	found := make(map[string]string)
	names := strings.Split(p, "/")
	for depth := len(files) - 1; depth >= 0; depth-- {
		a := files[depth]
		if a == nil || depth >= len(names) {
			continue
		}
		below := strings.Join(names[depth:], "/")
		for i := len(a.rules) - 1; i >= 0; i-- {
			if a.rules[i].matches(below) {
				assign(found, macros, a.rules[i].sets)
			}
		}
	}
	return found
}

// assign sets what is not known yet: the last word of a line decides, as the
// last line and the deepest file do.
func assign(found map[string]string, macros map[string][]assignment, sets []assignment) {
	for i := len(sets) - 1; i >= 0; i-- {
		s := sets[i]
		if _, known := found[s.name]; known {
			continue
		}
		found[s.name] = s.value
		if s.value == attrSet {
			assign(found, macros, macros[s.name])
		}
	}
}

func (r *attrRule) matches(p string) bool {
	if !r.hasDir {
		return wildmatch(r.pattern, path.Base(p))
	}
	return wildmatch(r.pattern, p)
}
