// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"errors"
	"fmt"
	"strings"
)

// ModulesFile is the file at the top of a repository that says where its
// submodules come from.
const ModulesFile = ".gitmodules"

// A Module is a submodule as .gitmodules describes it.
type Module struct {
	Name, Path, URL string
	Skip            bool // update = none
}

// ParseModules reads .gitmodules, by path. Names that lead out of .git/modules
// and updates that run commands are refused, as git does.
func ParseModules(b []byte) (map[string]Module, error) {
	byName := make(map[string]Module)
	var names []string
	err := parseConfig(string(b), func(section, name, key, value string) error {
		if section != "submodule" || name == "" {
			return nil
		}
		if !isModuleName(name) {
			return fmt.Errorf("the submodule's name %q leads elsewhere", name)
		}
		m, ok := byName[name]
		if !ok {
			names = append(names, name)
		}
		m.Name = name
		switch key {
		case "path":
			m.Path = value
		case "url":
			m.URL = value
		case "update":
			if strings.HasPrefix(value, "!") {
				return fmt.Errorf("the submodule %q asks for a command to be run", name)
			}
			m.Skip = value == "none"
		}
		if strings.HasPrefix(m.URL, "-") || strings.HasPrefix(m.Path, "-") {
			return fmt.Errorf("the submodule %q has an option for an address or path", name)
		}
		byName[name] = m
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", ModulesFile, err)
	}
	byPath := make(map[string]Module)
	for _, n := range names {
		byPath[strings.TrimSuffix(byName[n].Path, "/")] = byName[n]
	}
	return byPath, nil
}

// isModuleName is check_submodule_name of git's submodule-config.c.
func isModuleName(s string) bool {
	for part := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == '/' || r == '\\' }) {
		if part == ".." {
			return false
		}
	}
	return s != "" && !strings.ContainsAny(s, "\x00\n")
}

// parseConfig reads a file in the form of git-config(1) and calls f for each
// variable. Sections and keys are in lower case; subsections are as written.
func parseConfig(s string, f func(section, sub, key, value string) error) error {
	s = strings.TrimPrefix(s, "\xef\xbb\xbf")
	var section, sub string
	for n := 1; s != ""; n++ {
		line, rest, _ := strings.Cut(s, "\n")
		trimmed := strings.TrimLeft(line, " \t\r")
		var err error
		switch {
		case trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';':
			s = rest
			continue
		case trimmed[0] == '[':
			var after string
			if section, sub, after, err = parseSection(trimmed); err != nil {
				return fmt.Errorf("line %d: %w", n, err)
			}
			s = after + "\n" + rest
			if strings.TrimSpace(after) == "" {
				s = rest
			} else {
				n--
			}
			continue
		}
		if section == "" {
			return fmt.Errorf("line %d: it is in no section", n)
		}
		key, value, after, lines, err := parseVariable(strings.TrimLeft(s, " \t\r"))
		if err == nil {
			err = f(section, sub, key, value)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		s, n = after, n+lines-1
	}
	return nil
}

// parseSection reads [section], [section "sub"] or [section.sub].
func parseSection(s string) (section, sub, rest string, err error) {
	end := strings.IndexAny(s, "] \t")
	if end < 0 {
		return "", "", "", errors.New("a section's bracket is not closed")
	}
	section, rest = strings.ToLower(s[1:end]), strings.TrimLeft(s[end:], " \t")
	if section == "" {
		return "", "", "", errors.New("a section has no name")
	}
	if strings.HasPrefix(rest, "]") {
		section, sub, _ = strings.Cut(section, ".")
		return section, sub, rest[1:], nil
	}
	if !strings.HasPrefix(rest, `"`) {
		return "", "", "", errors.New("what follows a section's name is not in quotes")
	}
	var b strings.Builder
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '"':
			if !strings.HasPrefix(rest[i+1:], "]") {
				return "", "", "", errors.New("a section's bracket is not closed")
			}
			return section, b.String(), rest[i+2:], nil
		case c == '\\' && i+1 < len(rest):
			i++
			b.WriteByte(rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", "", errors.New("a section's quotes are not closed")
}

// parseVariable reads a key and its value, which may go on behind a backslash
// at a line's end.
func parseVariable(s string) (key, value, rest string, lines int, err error) {
	end := strings.IndexFunc(s, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if end < 0 {
		end = len(s)
	}
	if end == 0 {
		return "", "", "", 1, errors.New("a key is missing")
	}
	key, s = strings.ToLower(s[:end]), strings.TrimLeft(s[end:], " \t")
	if s == "" || s[0] == '\n' || strings.HasPrefix(s, "\r\n") {
		_, rest, _ = strings.Cut(s, "\n")
		return key, "true", rest, 1, nil
	}
	if s[0] != '=' {
		return "", "", "", 1, fmt.Errorf("no = behind %q", key)
	}
	value, rest, lines, err = parseValue(strings.TrimLeft(s[1:], " \t"))
	return key, value, rest, lines, err
}

func parseValue(s string) (value, rest string, lines int, err error) {
	var b strings.Builder
	quoted, kept := false, 0 // kept: up to where spaces are not the line's end
	lines = 1
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\n' || c == '\r' && strings.HasPrefix(s[i:], "\r\n"):
			if quoted {
				return "", "", lines, errors.New("quotes are not closed")
			}
			_, rest, _ = strings.Cut(s[i:], "\n")
			return b.String()[:kept], rest, lines, nil
		case !quoted && (c == '#' || c == ';'):
			_, rest, _ = strings.Cut(s[i:], "\n")
			return b.String()[:kept], rest, lines, nil
		case c == '"':
			quoted = !quoted
			kept = b.Len()
		case c == '\\':
			i++
			if strings.HasPrefix(s[i:], "\r\n") {
				i++
			}
			if i >= len(s) {
				return "", "", lines, errors.New("it ends with a backslash")
			}
			switch s[i] {
			case '\n':
				lines++
				continue
			case 'n':
				b.WriteByte('\n')
			case 't':
				b.WriteByte('\t')
			case 'b':
				b.WriteByte('\b')
			case '\\', '"':
				b.WriteByte(s[i])
			default:
				return "", "", lines, fmt.Errorf("\\%c is no escape", s[i])
			}
			kept = b.Len()
		default:
			b.WriteByte(c)
			if quoted || c != ' ' && c != '\t' {
				kept = b.Len()
			}
		}
	}
	if quoted {
		return "", "", lines, errors.New("quotes are not closed")
	}
	return b.String()[:kept], "", lines, nil
}
