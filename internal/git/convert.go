// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"bytes"
	"fmt"
	"strings"
)

// A Conversion is what a checkout does to the content of a file, from its
// attributes and git's configuration without a line: the zero value is nothing.
type Conversion struct {
	crlf  bool // line ends become CR LF
	auto  bool // but not those of what looks binary, or has CR already
	ident bool // $Id$ is filled in
}

// A ConversionError is returned for a file whose content a checkout would
// convert in a way that is not known here.
type ConversionError struct{ Encoding string }

func (e *ConversionError) Error() string {
	return fmt.Sprintf("the attribute working-tree-encoding=%s is not supported", e.Encoding)
}

// Explain says what to do.
func (e *ConversionError) Explain() string {
	return " why     a checkout would convert the file to that encoding, so that leaving it as it is would build another image\n" +
		" try     take the attribute out of .gitattributes, or clone with git and COPY"
}

// ConversionOf returns what the attributes ask for, as convert_attrs in git's
// convert.c does where neither core.autocrlf nor core.eol is set.
func ConversionOf(attrs map[string]string) (Conversion, error) {
	var c Conversion
	if e := attrs["working-tree-encoding"]; e != "" && e != attrUnset && !strings.EqualFold(e, "utf-8") && !strings.EqualFold(e, "utf8") {
		return c, &ConversionError{Encoding: e}
	}
	c.ident = attrs["ident"] == attrSet
	text, known := crlfAttr(attrs["text"])
	if !known {
		text, known = crlfAttr(attrs["crlf"])
	}
	if known && text == attrUnset || attrs["eol"] != "crlf" {
		return c, nil
	}
	c.crlf, c.auto = true, text == "auto"
	return c, nil
}

// crlfAttr reads the attribute text, or its old name crlf.
func crlfAttr(v string) (string, bool) {
	switch v {
	case attrSet, attrUnset, "input", "auto":
		return v, true
	}
	return "", false
}

// IsZero reports whether c does nothing.
func (c Conversion) IsZero() bool { return c == Conversion{} }

// Apply returns the content of a checked-out file. id is that of the blob.
func (c Conversion) Apply(b []byte, id ID) []byte {
	if c.ident {
		b = fillIdent(b, id)
	}
	if c.crlf {
		b = toCRLF(b, c.auto)
	}
	return b
}

// fillIdent is ident_to_worktree of convert.c.
func fillIdent(src []byte, id ID) []byte {
	var out bytes.Buffer
	for {
		i := bytes.IndexByte(src, '$')
		if i < 0 {
			break
		}
		out.Write(src[:i+1])
		src = src[i+1:]
		if len(src) < 3 || string(src[:2]) != "Id" {
			continue
		}
		switch src[2] {
		case '$':
			src = src[3:]
		case ':':
			end := bytes.IndexByte(src[3:], '$')
			if end < 0 {
				out.Write(src)
				return out.Bytes()
			}
			end += 3
			if bytes.IndexByte(src[3:end], '\n') >= 0 {
				continue
			}
			// Spaces within are another system's: git keeps those.
			if sp := bytes.IndexByte(src[min(4, end):end], ' '); sp >= 0 && sp+4 < end-1 {
				continue
			}
			src = src[end+1:]
		default:
			continue
		}
		fmt.Fprintf(&out, "Id: %s $", id)
	}
	out.Write(src)
	return out.Bytes()
}

// toCRLF is crlf_to_worktree of convert.c.
func toCRLF(src []byte, auto bool) []byte {
	s := gather(src)
	if s.lf == 0 || auto && (s.cr > 0 || s.crlf > 0 || s.isBinary()) {
		return src
	}
	out := make([]byte, 0, len(src)+s.lf)
	for i, c := range src {
		if c == '\n' && (i == 0 || src[i-1] != '\r') {
			out = append(out, '\r')
		}
		out = append(out, c)
	}
	return out
}

// textStats counts what tells text from other content.
type textStats struct{ cr, lf, crlf, nul, printable, other int }

func gather(b []byte) (s textStats) {
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '\r' && i+1 < len(b) && b[i+1] == '\n':
			s.crlf++
			i++
		case c == '\r':
			s.cr++
		case c == '\n':
			s.lf++
		case c == '\b' || c == '\t' || c == '\033' || c == '\014':
			s.printable++
		case c == 0:
			s.nul++
			s.other++
		case c < 32 || c == 127:
			s.other++
		default:
			s.printable++
		}
	}
	if n := len(b); n > 0 && b[n-1] == '\032' {
		s.other-- // an end-of-file mark is no sign of a binary
	}
	return s
}

func (s *textStats) isBinary() bool {
	return s.cr > 0 || s.nul > 0 || s.printable>>7 < s.other
}
