// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"bytes"
	"slices"
)

const redacted = "***"

// minLine is the length from which a line of a secret is a secret by itself: a
// key printed line by line must not be shown, but a brace of it may.
const minLine = 8

// redactor takes values out of text. Its zero value takes out nothing.
type redactor struct {
	values [][]byte // longest first, so that a value holding another goes as a whole
}

func (r *redactor) add(values [][]byte) {
	for _, v := range values {
		v = bytes.TrimSpace(v)
		r.addOne(v)
		for line := range bytes.Lines(v) {
			if line = bytes.TrimSpace(line); len(line) >= minLine {
				r.addOne(line)
			}
		}
	}
	slices.SortStableFunc(r.values, func(a, b []byte) int { return len(b) - len(a) })
}

func (r *redactor) addOne(v []byte) {
	known := slices.ContainsFunc(r.values, func(k []byte) bool { return bytes.Equal(k, v) })
	if len(v) > 0 && !known {
		r.values = append(r.values, bytes.Clone(v))
	}
}

func (r *redactor) clean(s string) string {
	if len(r.values) == 0 {
		return s
	}
	clean, tail := r.scan([]byte(s), true)
	return string(append(clean, tail...))
}

// filter cleans data, of which more is to come. The tail is the end of it that
// may turn out to belong to a value, so shorter than the longest value; it has
// to be put before what comes next.
func (r *redactor) filter(data []byte) (clean, tail []byte) {
	if len(r.values) == 0 {
		return data, nil
	}
	return r.scan(data, false)
}

// scan goes from left to right, so that the same text gives the same result
// however it was cut into pieces.
func (r *redactor) scan(data []byte, final bool) (clean, tail []byte) {
	clean = make([]byte, 0, len(data))
	for i := 0; i < len(data); {
		n, partial := r.match(data[i:])
		switch {
		case partial && !final:
			return clean, data[i:]
		case n > 0:
			clean = append(clean, redacted...)
			i += n
		default:
			clean = append(clean, data[i])
			i++
		}
	}
	return clean, nil
}

// match returns the length of the longest value at the start of data; partial
// means that a longer one may be there.
func (r *redactor) match(data []byte) (n int, partial bool) {
	for _, v := range r.values {
		if v[0] != data[0] {
			continue
		}
		if len(v) > len(data) {
			partial = partial || bytes.HasPrefix(v, data)
		} else if bytes.HasPrefix(data, v) {
			return len(v), partial
		}
	}
	return 0, partial
}
