// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"regexp"
	"strconv"
	"testing"
)

// A root that changes in every way that the kernel tells of, and in some that it
// tells little of: a file that is changed through a name, or in a directory, that
// is gone when the command ends.
const followedDockerfile = `FROM base.test/busybox
RUN mkdir -p /a/b /c /many && for i in $(seq 1 20); do echo $i > /a/b/$i; done && for i in $(seq 1 400); do echo $i > /many/$i; done && ln -s 1 /a/b/link
RUN echo new > /a/new
RUN echo changed > /a/b/1
RUN chmod 700 /a/b/2 && chown 5:6 /a/b/3 && touch -d @100 /a/b/4
RUN chmod 711 /c && rm /a/b/5 /a/b/link && mv /a/b/6 /c/six
RUN sed -i s/7/seven/ /a/b/7
RUN ln /a/b/8 /c/tmp && echo unseen > /c/tmp && rm /c/tmp
RUN mkdir /tmp2 && ln /a/b/9 /tmp2/x && echo unseen > /tmp2/x && rm -r /tmp2
RUN ln /a/b/10 /c/tmp && exec 3>>/c/tmp && rm /c/tmp && echo later >&3
RUN mv /a/b /c/moved && echo in > /c/moved/11
RUN echo again > /c/moved/12 && ln /c/moved/14 /c/moved/140
RUN rm -rf /c/moved && mkdir /c/moved && echo anew > /c/moved/13
RUN true
`

var lookedAt = regexp.MustCompile(`(\d+) files looked at`)

// What is found by what the kernel tells is what is found by looking at all.
func TestFollowed(t *testing.T) {
	w := start(t, true)
	bctx := w.files(t, map[string]string{"Dockerfile": followedDockerfile})
	w.equalToBuildKit(t, bctx, true)

	looked := func(args ...string) (digest string, each []int) {
		s, out := w.spec(t, w.scratch(t), bctx, true, args...)
		digest, log := w.build(t, s, out)
		for _, m := range lookedAt.FindAllStringSubmatch(log, -1) {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			each = append(each, n)
		}
		if len(each) != 13 {
			t.Fatalf("%d commands say how many files were looked at, want 13:\n%s", len(each), log)
		}
		return digest, each
	}
	few, all := 0, 0
	digest, each := looked("--reproducible")
	_, eachOfAll := looked("--reproducible", "--snapshot-mode=full")
	for i := range each {
		if each[i] < eachOfAll[i]/2 {
			few++
		}
		all = max(all, eachOfAll[i])
	}
	// Not of those that make, move or remove directories, or leave names written to.
	if want := 7; few < want || all < 400 {
		t.Errorf("looked at %d files, and with --snapshot-mode=full at %d; want a few after %d of the commands", each, eachOfAll, want)
	}
	if again, _ := looked("--reproducible", "--snapshot-mode=full"); again != digest {
		t.Errorf("--snapshot-mode=full makes %s, without it it is %s", again, digest)
	}
}
