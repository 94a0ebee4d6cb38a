// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"strings"
	"testing"

	"hako/internal/git"
)

func TestParseKanikoGit(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("1a", 20)
	for _, tt := range []struct {
		in, method string
		want       kanikoGit
		problem    string
	}{
		{in: "git://h/a/b", want: kanikoGit{remote: "https://h/a/b"}},
		{in: "git://h/a/b.git#refs/heads/x", method: "http", want: kanikoGit{remote: "http://h/a/b.git", ref: "refs/heads/x"}},
		{in: "git://u:p@h:8080/a#main#" + id, want: kanikoGit{remote: "https://u:p@h:8080/a", ref: "main", commit: id}},
		{in: "git://h/a##" + id, want: kanikoGit{remote: "https://h/a", commit: id}},
		{in: "https://h/a.git#" + id, method: "http", want: kanikoGit{remote: "https://h/a.git", ref: id}},
		{in: "git://h/a", method: "ftp", problem: "there are https and http"},
		{in: "git://h/a#x#" + id[1:], problem: "is no commit"},
		{in: "git://h/a#x#" + id + "#", problem: "more than two #"},
		{in: "git://h/a#main:some/dir", want: kanikoGit{remote: "https://h/a", ref: "main", dir: "some/dir"}},
		{in: "git://h/a#:dir#" + id, want: kanikoGit{remote: "https://h/a", commit: id, dir: "dir"}},
		{in: "git:///a", problem: "no host"},
	} {
		got, err := parseKanikoGit(tt.in, tt.method)
		switch {
		case tt.problem != "":
			if err == nil || !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("%s: %v, %v; want %q", tt.in, got, err, tt.problem)
			}
		case err != nil || got != tt.want:
			t.Errorf("%s: %v, %v; want %v", tt.in, got, err, tt.want)
		}
	}
	for s, want := range map[string]bool{
		"git://h/a": true, "https://h/a.git#x": true, "https://h/a.tar.gz": false, "dir:///a.git": false, "/a.git": false, "https://h/a#b.git": false,
	} {
		if got := isKanikoGit(s); got != want {
			t.Errorf("isKanikoGit(%q) = %v", s, got)
		}
	}
	if got := RedactContext("git://u:p@ss@h/a@b#c"); got != "git://xxxxx@h/a@b#c" {
		t.Errorf("redacted: %s", got)
	}
}

func FuzzParseKanikoGit(f *testing.F) {
	f.Add("git://u:p@h/a#refs/heads/x#"+strings.Repeat("1a", 20), "http")
	f.Add("https://h/a.git#main", "")
	f.Fuzz(func(t *testing.T, s, method string) {
		if !isKanikoGit(s) {
			return
		}
		k, err := parseKanikoGit(s, method)
		if err != nil {
			return
		}
		u, err := git.ParseURL(k.remote)
		if err != nil || u.Scheme != "https" && (u.Scheme != "http" || method != "http") {
			t.Errorf("%q becomes %q: %v", s, k.remote, err)
		}
		if _, ok := git.ParseID(k.commit); k.commit != "" && !ok || strings.ContainsAny(k.ref, "#:") {
			t.Errorf("%q becomes ref %q, commit %q", s, k.ref, k.commit)
		}
	})
}
