// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
)

func TestLastLines(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in string
		n        int
		want     []string
	}{
		{"none", "", 3, nil},
		{"fewer", "a\nb\n", 3, []string{"a", "b"}},
		{"more", "a\nb\nc\nd", 2, []string{"c", "d"}},
		{"empty ones", "a\n\n \nb\n\n", 2, []string{"a", "b"}},
		{"drawn over", "1%\r50%\r100%\n", 2, []string{"100%"}},
		{"drawn over, dos", "1%\r2%\r\n", 2, []string{"2%"}},
		{"colours", "\x1b[1;31mred\x1b[0m\tend\x07\n", 2, []string{"red end"}},
		{"title", "\x1b]0;title\x07shown\n", 2, []string{"shown"}},
		{"long", strings.Repeat("ü", maxLine+5), 1, []string{strings.Repeat("ü", maxLine) + "…"}},
		{"not text", "\xff\xfe\n", 1, []string{"��"}},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, lastLines([]byte(test.in), test.n)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestDisplayKeepsEnds(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	d := newTestDisplay(t, &out, "quiet")
	d.Redact([]byte("s3cr3t"))
	bad, good := digest.FromString("bad"), digest.FromString("good")
	for _, v := range []digest.Digest{bad, good} {
		task := Start(d, v, "step")
		task.Output(1, bytes.Repeat([]byte("line\n"), 10*maxEnd))
		task.Output(2, []byte("the s3c"))
		task.Output(2, []byte("r3t\n"))
		if v == bad {
			task.Done(errors.New("exit 1"))
		} else {
			task.Done(nil)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"line", "the ***"}, d.LastLines(bad, 2)); diff != "" {
		t.Errorf("of the failed step (-want +got):\n%s", diff)
	}
	if got := d.LastLines(good, 2); got != nil {
		t.Errorf("of the finished step: %q", got)
	}
	if n := len(d.queue.ends[bad]); n > 2*maxEnd {
		t.Errorf("%d bytes are kept", n)
	}
}
