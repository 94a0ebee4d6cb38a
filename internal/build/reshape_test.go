// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import "testing"

func TestIgnored(t *testing.T) {
	t.Parallel()
	tests := []struct {
		pattern, path string
		want          bool
	}{
		{"/a", "a", true},
		{"/a", "a/b/c", true},
		{"a/", "a/b", true},
		{"/a", "ab", false},
		{"/a/b", "a", false},
		{"/a/*/c", "a/x/c/d", true},
		{"/a/*/c", "a/x/y/c", false},
		{"/a?", "ab", true},
		{"/a/../b", "b", true},
	}
	for _, test := range tests {
		if got := ignored([]string{"/none", test.pattern})(test.path); got != test.want {
			t.Errorf("ignored(%q)(%q) = %t, want %t", test.pattern, test.path, got, test.want)
		}
	}
	if ignored(nil) != nil || ignored([]string{"", "/"}) != nil {
		t.Error("nothing to ignore is not nil")
	}
}
