// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package ops

import (
	"slices"
	"testing"
	"time"

	"hako/internal/tree"
)

func TestWithChanges(t *testing.T) {
	made, err := mountPoints(nil, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name       string
		have, want []string
	}{
		{"nothing changed", nil, []string{"dev", "proc", "sys"}},
		{"between and below", []string{"bin", "dev", "dev/x", "etc", "proc-x", "z"}, []string{"bin", "dev", "dev/x", "etc", "proc", "proc-x", "sys", "z"}},
		{"all there", []string{"dev", "proc", "sys"}, []string{"dev", "proc", "sys"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			changes := func(yield func(tree.Change, error) bool) {
				for _, p := range test.have {
					if !yield(tree.Change{Entry: tree.Entry{Path: p}}, nil) {
						return
					}
				}
			}
			for c, err := range withChanges(changes, made) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, c.Path)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}
