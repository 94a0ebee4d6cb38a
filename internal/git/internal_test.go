// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package git

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func TestWildmatch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern, path string
		want          bool
	}{
		{"*.txt", "a.txt", true},
		{"*.txt", "d/a.txt", false},
		{"d/*.txt", "d/a.txt", true},
		{"d/*.txt", "d/e/a.txt", false},
		{"**/a.txt", "a.txt", true},
		{"**/a.txt", "d/e/a.txt", true},
		{"d/**", "d/e/a.txt", true},
		{"d/**", "d", false},
		{"d/**/a.txt", "d/a.txt", true},
		{"d/**/a.txt", "d/e/f/a.txt", true},
		{"d**/a.txt", "d/e/a.txt", false},
		{"d**/a.txt", "dd/a.txt", true},
		{"?.txt", "é.txt", false},
		{"[a-c].t", "b.t", true},
		{"[!a-c].t", "b.t", false},
		{"[^a-c].t", "d.t", true},
		{"[]a].t", "].t", true},
		{"[[:digit:]x].t", "7.t", true},
		{"[a", "a", false},
		{`\*.t`, "*.t", true},
		{`\*.t`, "a.t", false},
		{"*", "", true},
		{"a*b*c", "aXbXXc", true},
		{"a*b*c", "aXbXX", false},
		{strings.Repeat("*a", 30), strings.Repeat("a", 200) + "b", false},
	} {
		if got := wildmatch(tt.pattern, tt.path); got != tt.want {
			t.Errorf("wildmatch(%q, %q) = %v", tt.pattern, tt.path, got)
		}
	}
}

func TestParseTree(t *testing.T) {
	t.Parallel()
	entry := func(mode, name string) string { return mode + " " + name + "\x00" + strings.Repeat("i", 20) }
	list, err := parseTree([]byte(entry("100664", "b") + entry("40000", "a") + entry("100755", "c") + entry("120000", "d") + entry("160000", "e") + entry("100644", ".gitignore")))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		got = append(got, e.Name+" "+map[Mode]string{Directory: "dir", Regular: "file", Executable: "exec", Symlink: "link", Submodule: "module"}[e.Mode])
	}
	if diff := cmp.Diff([]string{".gitignore file", "a dir", "b file", "c exec", "d link", "e module"}, got); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"", ".", "..", "a/b", "/", ".git", ".GIT", ".Git", ".git.", ".git ", ".git . .", ".git:x", `.git\x`, "git~1", "GIT~1", "git~1.", ".git::$INDEX_ALLOCATION"} {
		var bad *NameError
		if _, err := parseTree([]byte(entry("100644", name))); !errors.As(err, &bad) {
			t.Errorf("the name %q: %v", name, err)
		}
	}
	for _, name := range []string{".gitx", ".git~1", "git~2", "git", ".gitattributes", "a\\b", "...", ".git x"} {
		if _, err := parseTree([]byte(entry("100644", name))); err != nil {
			t.Errorf("the name %q: %v", name, err)
		}
	}
	for what, b := range map[string]string{
		"twice": entry("100644", "a") + entry("40000", "a"), "cut": "100644 a\x00iii", "no mode": "a\x00" + strings.Repeat("i", 20),
		"a device": entry("20644", "a"), "modules as a link": entry("120000", ".gitmodules"),
	} {
		if _, err := parseTree([]byte(b)); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func FuzzParseTree(f *testing.F) {
	f.Add([]byte("100644 a\x00" + strings.Repeat("i", 20)))
	f.Add([]byte("100644 ..\x00" + strings.Repeat("i", 20)))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseTree(b)
		if err != nil {
			return
		}
		for _, e := range list {
			if e.Name == "" || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") || strings.EqualFold(e.Name, ".git") {
				t.Errorf("the name %q passes", e.Name)
			}
		}
	})
}

func TestPackets(t *testing.T) {
	t.Parallel()
	p := newPacketReader(strings.NewReader("0008abc\n0000000100020004ffff0"))
	var got []string
	for range 5 {
		s, kind, err := p.line()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, s+[]string{"", "flush", "delim", "end"}[kind])
	}
	if diff := cmp.Diff([]string{"abc", "flush", "delim", "end", ""}, got); diff != "" {
		t.Error(diff)
	}
	for _, s := range []string{"", "00", "0003", "zzzz", "fff5", "0009a"} {
		if _, _, err := newPacketReader(strings.NewReader(s)).next(); err == nil {
			t.Errorf("%q is taken for a packet", s)
		}
	}
	var said *RemoteError
	if _, _, err := newPacketReader(strings.NewReader("0013ERR not our ref")).next(); !errors.As(err, &said) || !IsRefused(err) {
		t.Errorf("ERR: %v", err)
	}
}

func TestModules(t *testing.T) {
	t.Parallel()
	got, err := ParseModules([]byte("# c\n[submodule \"a b\"]\n\tpath = lib/a ; c\n\turl = \"../a#b.git\"\n[Submodule \"q\\\"q\"] path=q\n url = x \\\n  y\n branch\n[submodule \"n\"]\n path = n/\n url = ./n\n update = none\n[core] x = 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Module{
		"lib/a": {Name: "a b", Path: "lib/a", URL: "../a#b.git"},
		"q":     {Name: `q"q`, Path: "q", URL: "x   y"},
		"n":     {Name: "n", Path: "n/", URL: "./n", Skip: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, s := range []string{
		"[submodule \"../x\"]\npath = a\n", "[submodule \"a/../../x\"]\npath = a\n", "[submodule \"a\\\\..\\\\b\"]\npath = a\n",
		"[submodule \"a\"]\nupdate = !touch x\n", "[submodule \"a\"]\nurl = -u./x\n", "[submodule \"a\"]\npath = -x\n",
		"path = a\n", "[submodule\n", "[submodule \"a]\n", "[a]\nb = \"c\n", "[a]\nb = \\q\n", "[a]\n=\n",
	} {
		if m, err := ParseModules([]byte(s)); err == nil {
			t.Errorf("%q passes as %v", s, m)
		}
	}
}

func FuzzModules(f *testing.F) {
	f.Add("[submodule \"a b\"]\n\tpath = lib/a ; c\n\turl = \"../a#b.git\"\n")
	f.Add("[a.b]c=\"\\n\\\nd\"")
	f.Fuzz(func(t *testing.T, s string) {
		modules, err := ParseModules([]byte(s))
		if err != nil {
			return
		}
		for _, m := range modules {
			for part := range strings.SplitSeq(m.Name, "/") {
				if part == ".." {
					t.Errorf("the name %q leads elsewhere", m.Name)
				}
			}
		}
	})
}

func TestResolve(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ base, sub, want string }{
		{"https://h/a/b.git", "../c.git", "https://h/a/c.git"},
		{"https://h/a/b.git/", "../../c", "https://h/c"},
		{"https://h/a/b", "./c/", "https://h/a/b/c"},
		{"https://h/a", "https://x/y", "https://x/y"},
		{"git@h:a/b.git", "../c.git", "git@h:a/c.git"},
		{"git@h:b.git", "../c.git", "git@h:c.git"},
		{"ssh://git@h:22/a/b", "../../c/d", "ssh://git@h:22/c/d"},
		{"https://h/a", "../../x", ""},
		{"git@h:a", "../../x", ""},
	} {
		got, err := Resolve(tt.base, tt.sub)
		if got != tt.want && (tt.want != "" || err == nil) {
			t.Errorf("Resolve(%q, %q) = %q, %v; want %q", tt.base, tt.sub, got, err, tt.want)
		}
	}
	for _, s := range []string{"/etc", "file:///etc", "../x", "ext::sh", "ext::sh -c x", "git@h", "https://", "ssh://-oProxyCommand=x/y", "https://h/a\nb"} {
		if u, err := ParseURL(s); err == nil {
			t.Errorf("ParseURL(%q) = %v", s, u)
		}
	}
}

func TestKnownHosts(t *testing.T) {
	t.Parallel()
	key := func(seed byte) ssh.PublicKey {
		k, err := ssh.NewPublicKey(ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune('a'+seed)), 32))).Public())
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	line := func(host string, k ssh.PublicKey) string { return host + " " + string(ssh.MarshalAuthorizedKey(k)) }
	first := "# c\n\nbroken line\n" + line("h.test,[h.test]:2222", key(0)) + line("*.wild.test,!not.wild.test", key(1)) +
		line(knownhosts.HashHostname("hashed.test"), key(2)) + "@revoked " + line("*", key(5))
	second := line("h.test", key(3)) + line("other.test", key(3)) + "@cert-authority " + line("*.ca.test", key(4))
	k := parseKnownHosts([][]byte{[]byte(first), []byte(second)})
	for _, tt := range []struct {
		addr string
		key  byte
		want string
	}{
		{"h.test:22", 0, ""},
		{"H.test:22", 0, ""},
		{"h.test:2222", 0, ""},
		{"h.test:2223", 0, "not known"},
		{"h.test:22", 3, "not the one"}, // the first file decides
		{"other.test:22", 3, ""},
		{"a.wild.test:22", 1, ""},
		{"not.wild.test:22", 1, "not known"},
		{"hashed.test:22", 2, ""},
		{"hashed.test:22", 1, "not the one"},
		{"nowhere.test:22", 1, "not known"},
		{"x.ca.test:22", 4, "not known"},
		{"h.test:22", 5, "revoked"},
	} {
		err := k.check(tt.addr, nil, key(tt.key))
		var h *HostKeyError
		if (err == nil) != (tt.want == "") || err != nil && (!errors.As(err, &h) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s with key %d: %v, want %q", tt.addr, tt.key, err, tt.want)
		}
	}
	if got := k.algorithms("h.test:22"); len(got) != 1 || got[0] != ssh.KeyAlgoED25519 {
		t.Errorf("algorithms %v", got)
	}
}
