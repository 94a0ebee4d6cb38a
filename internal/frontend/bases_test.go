// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package frontend

import (
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
)

func TestBases(t *testing.T) {
	t.Parallel()
	build, target := platforms.MustParse("linux/amd64"), platforms.MustParse("linux/arm64")
	for _, tt := range []struct {
		name, text string
		args       map[string]string
		want       string // "REF PLATFORM, …", or the error
	}{
		{"one", "FROM debian", nil, "debian linux/arm64"},
		{"names of stages", "FROM a AS b\nFROM B\nFROM b AS c\nCOPY --from=B / /\nCOPY --from=0 / /\nFROM scratch", nil, "a linux/arm64"},
		{"a name used before it is given", "FROM b\nFROM a AS b", nil, "b linux/arm64, a linux/arm64"},
		{"each once", "FROM a\nFROM a\nFROM --platform=linux/amd64 a", nil, "a linux/arm64, a linux/amd64"},
		{"defaults", "ARG V=1\nARG W=${V}2\nFROM a:$W", nil, "a:12 linux/arm64"},
		{"given arguments", "ARG V=1\nARG W=${V}2\nFROM a:$W", map[string]string{"V": "3"}, "a:32 linux/arm64"},
		{"an argument without a default", "ARG V\nFROM a:${V:-x}", nil, "a:x linux/arm64"},
		{"an argument that was given and not declared", "FROM a:${V:-x}", map[string]string{"V": "3"}, "a:x linux/arm64"},
		{"an argument of a stage", "FROM a\nARG V=1\nFROM b:${V:-x}", nil, "a linux/arm64, b:x linux/arm64"},
		{"platforms", "FROM --platform=$BUILDPLATFORM a\nFROM --platform=linux/${TARGETARCH} b\nFROM c:$TARGETARCH", nil, "a linux/amd64, b linux/arm64, c:arm64 linux/arm64"},
		{"copied and mounted from", "FROM a\nCOPY --from=x/y:1 / /\nRUN --mount=from=z,target=/z --mount=type=cache,target=/c,from=w true", nil, "a linux/arm64, x/y:1 linux/arm64, z linux/arm64, w linux/arm64"},
		{"a heredoc", "FROM a\nRUN <<EOF\nFROM b\nEOF", nil, "a linux/arm64"},
		{"an escape of its own", "# escape=`\nFROM a`\n:1", nil, "a:1 linux/arm64"},
		{"nothing is left", "ARG V\nFROM $V", nil, "should not be blank"},
		{"a platform that is none", "FROM --platform=a/b/c/d a", nil, "a/b/c/d"},
		{"no Dockerfile", "hello", nil, "unknown instruction"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			list, err := Bases([]byte(tt.text), tt.args, build, target)
			if err != nil {
				if !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got the error %v, want %s", err, tt.want)
				}
				return
			}
			var got []string
			for _, b := range list {
				got = append(got, b.Ref+" "+platforms.FormatAll(b.Platform))
			}
			if d := cmp.Diff(tt.want, strings.Join(got, ", ")); d != "" {
				t.Error(d)
			}
		})
	}
}

func FuzzBases(f *testing.F) {
	f.Add("ARG V=1\nFROM --platform=$BUILDPLATFORM a:$V AS b\nCOPY --from=b x y\nRUN --mount=from=c true", "V", "2")
	f.Add("FROM a\nRUN --mount=type=bind,from=$X true\nFROM ${A:-${B}}", "A", "")
	p := platforms.MustParse("linux/amd64")
	f.Fuzz(func(t *testing.T, text, name, value string) {
		list, err := Bases([]byte(text), map[string]string{name: value}, p, p)
		if err != nil && len(list) > 0 {
			t.Error("an error and images")
		}
		for _, b := range list {
			if b.Ref == "" || b.Ref == "scratch" {
				t.Errorf("%q is no image", b.Ref)
			}
		}
	})
}
